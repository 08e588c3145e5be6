"""Choose a layout: as many layers on the GPU as fit, and the largest context that fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from yarn_gguf.disk.sizes import lack_text, size_text
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.model_file.memory_plan import Layout, MemoryUse
from yarn_gguf.model_file.paper import Paper
from yarn_gguf.run.arguments import PADDING

LONGEST = 1 << 21  # tokens of all texts; the search for the largest context ends here


@dataclass(frozen=True)
class Room:
    """The memory planned for, in bytes. gpu: 0 if there is no GPU. reserve: bytes to leave free of each."""

    gpu: int
    ram: int
    reserve: int

    def missing(self, use: MemoryUse) -> MemoryUse:
        """Return the memory to add for `use` and the reserve. A place that is not used lacks nothing."""
        ram, gpu = use.ram + self.reserve - self.ram, use.gpu + self.reserve - self.gpu
        return MemoryUse(max(0, ram) if use.ram else 0, max(0, gpu) if use.gpu else 0)

    @property
    def free(self) -> MemoryUse:
        """The memory without the reserve."""
        return MemoryUse(max(0, self.ram - self.reserve), max(0, self.gpu - self.reserve))


def check_weights(paper: Paper, room: Room) -> None:
    """Raise YarnGGUFError if the weights alone do not fit, whatever the split between GPU and RAM."""
    weights, free = paper.memory("f16", context=1, gpu_layers=0).weights.total, room.free.total
    if weights <= free:
        return
    gpu = f"{size_text(room.gpu)} on the GPU and " if room.gpu else ""
    there = f"{gpu}{size_text(room.ram)} of RAM, less the reserve, hold {size_text(free)}"
    size, place = (room.gpu, "on the GPU") if room.gpu else (room.ram, "of RAM")
    missing = weights - free + max(0, room.reserve - size)
    raise YarnGGUFError(
        f"{paper.path}: the weights alone take {size_text(weights)}; {there}: {lack_text(missing)} "
        f"{place} are missing; quantize the model further, or take a smaller one"
    )


def layout(paper: Paper, room: Room, kv_type: str, context: int, gpu_layers: int | None) -> Layout:
    """Lay out the model for texts of `context` tokens.

    gpu_layers: how many layers to put on the GPU, all if negative; None for as many as fit.
    Raises ModelLoadError for a KV type that the model cannot have.
    """
    most = paper.layers if room.gpu else 0
    if gpu_layers is None:
        layers = _most_layers(paper, room, kv_type, context, most)
    else:
        most = layers = min(gpu_layers, most) if gpu_layers >= 0 else most
    memory = paper.memory(kv_type, context, layers)
    largest = _largest_context(paper, room, kv_type, most) or _largest_context(paper, room, kv_type, layers)
    return Layout(
        weights=memory.weights,
        caches=memory.caches,
        compute=memory.compute,
        kv_type=kv_type,
        gpu_layers=layers,
        missing=room.missing(memory.use),
        largest_context=largest,
    )


# ----------------------------------------------------------------------------------------------


def _most_layers(paper: Paper, room: Room, kv_type: str, context: int, most: int) -> int:
    """Return how many layers, up to `most`, fit on the GPU."""

    def fits(layers: int) -> bool:
        return room.missing(paper.memory(kv_type, context, layers).use).gpu == 0

    return most if fits(most) else _last_that_fits(fits, 0, most)


def _largest_context(paper: Paper, room: Room, kv_type: str, layers: int) -> int:
    """Return the largest context of each text, in tokens, that fits with `layers` on the GPU. 0: none."""

    def fits(count: int) -> bool:
        return room.missing(paper.memory(kv_type, count * PADDING, layers).use).total == 0

    limit, most = 1, LONGEST // (paper.parallel * PADDING)
    while fits(limit):
        if limit >= most:
            return most * PADDING
        limit = min(2 * limit, most)
    return PADDING * _last_that_fits(fits, limit // 2, limit)


def _last_that_fits(fits: Callable[[int], bool], low: int, high: int) -> int:
    """Return the last number from `low` on and below `high` that fits; `low` if none does (bisection)."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
