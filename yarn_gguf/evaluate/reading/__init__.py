"""Let a model read texts: the loss of each token, and the log-likelihood of continuations."""
