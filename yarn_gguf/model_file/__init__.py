"""A GGUF model file: extend it, inspect it, and plan the memory that it needs."""
