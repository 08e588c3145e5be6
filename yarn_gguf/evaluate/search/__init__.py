"""The search for the scaling that suits a model, a context and the user's own texts."""
