"""How far a long piece of work is."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # progress(done, total)
