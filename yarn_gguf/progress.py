"""The type of a callback that reports on long work."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # called as progress(done, total)
