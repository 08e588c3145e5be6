"""One rope scaling in every notation: Python, config.json, GGUF keys, short names, llama.cpp's arguments."""
