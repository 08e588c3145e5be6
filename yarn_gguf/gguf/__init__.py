"""The GGUF format: a file's header, and changes of its keys."""
