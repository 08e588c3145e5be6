"""The only room that calls the C library: finds it, checks it, loads it, and calls what our patches add."""
