"""Let a model read texts: the loss of each token, and the likelihood of continuations."""
