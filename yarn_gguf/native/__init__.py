"""The only room that calls the C library. It finds, checks and loads it, and calls what our patches add."""
