"""Converters from Hugging Face checkpoints to GGUF, installed as yarn_gguf.convert. None is written yet."""
