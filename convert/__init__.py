"""Converters from Hugging Face checkpoints to GGUF, installed as yarn_gguf.convert.

So far: weights and hyperparameters in float32, without a vocabulary, for the conformance matrix.
"""
