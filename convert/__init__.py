"""Converters from Hugging Face checkpoints to GGUF, installed as yarn_gguf.convert.

So far: weights in float32, hyperparameters, and the tokenizer.
"""
