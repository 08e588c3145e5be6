"""The GGUF format: read a file's header, and change its keys."""
