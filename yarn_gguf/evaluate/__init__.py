"""Evaluation of a model as it runs: what it predicts, and where in the context."""
