"""Write the tokenizer of a Hugging Face checkpoint as the vocabulary of a GGUF file, and check it."""

from yarn_gguf.convert.tokenizer.check import check_vocabulary, vocabulary_difference
from yarn_gguf.convert.tokenizer.files import TokenizerFiles, has_tokenizer
from yarn_gguf.convert.tokenizer.vocabulary import add_vocabulary

__all__ = ["TokenizerFiles", "add_vocabulary", "check_vocabulary", "has_tokenizer", "vocabulary_difference"]
