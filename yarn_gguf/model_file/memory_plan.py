"""The data of a memory plan. Sizes are in bytes, contexts in tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yarn_gguf.model_file.suitability import Suitability


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in the RAM and on the GPU."""

    ram: int
    gpu: int

    def __add__(self, other: MemoryUse) -> MemoryUse:
        return MemoryUse(self.ram + other.ram, self.gpu + other.gpu)

    @property
    def total(self) -> int:
        """The sum of both."""
        return self.ram + self.gpu


@dataclass(frozen=True)
class CacheUse:
    """The cache of all layers of one kind.

    kind: "full attention", "compressed attention (MLA)", "sliding window", "recurrent states" or "other".
    layers, cells: number of layers, and of tokens or states in each layer for all texts. 0 for "other".
    """

    kind: str
    layers: int
    cells: int
    use: MemoryUse


@dataclass(frozen=True)
class ModelMemory:
    """The memory of a model and of a context on it."""

    weights: MemoryUse
    caches: tuple[CacheUse, ...]
    compute: MemoryUse

    @property
    def use(self) -> MemoryUse:
        """The sum of all parts."""
        return sum((each.use for each in self.caches), self.weights + self.compute)


@dataclass(frozen=True)
class Layout(ModelMemory):
    """The memory of a model with a KV cache of one type, and with its last layers on the GPU.

    gpu_layers: the number for -ngl, which counts the output as a layer.
    missing: the memory that has to be added to hold the layout and the reserve.
    largest_context: the longest context of each text that fits with all layers on the GPU. If not even a
        short text fits so, the longest that fits with `gpu_layers` there. 0 if none fits.
    """

    kv_type: str
    gpu_layers: int
    missing: MemoryUse
    largest_context: int

    @property
    def fits(self) -> bool:
        """Whether no memory is missing."""
        return self.missing.total == 0


@dataclass(frozen=True)
class MemoryPlan:
    """The plan that `yarn-gguf plan` shows.

    context, parallel: the context of each text, and the number of texts.
    layers: all layers that -ngl counts.
    gpu, ram: the memory planned for. gpu is 0 if there is no GPU.
    reserve: the bytes left free of each.
    keys: "f32" if the file asks for dynamic scaling "exact", which needs K in that type. None: K has the
        KV type.
    layouts: one for each KV type that the model can have, in the order asked.
    chosen: the first of the layouts that fit with the most layers on the GPU; None if none fits.
    refused: each KV type that the model cannot have, with the reason.
    arguments: the arguments of Llama for the chosen layout. None if none is chosen, or for several texts.
    scaling: whether the file's rope scaling suits the context.
    warnings: what else looks wrong in the file.
    """

    path: Path
    arch: str
    context: int
    parallel: int
    layers: int
    gpu: int
    ram: int
    reserve: int
    keys: str | None
    layouts: tuple[Layout, ...]
    chosen: Layout | None
    refused: dict[str, str]
    arguments: dict[str, Any] | None
    scaling: Suitability
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the plan in JSON's types."""
        layouts = [asdict(each) | {"use": asdict(each.use), "fits": each.fits} for each in self.layouts]
        chosen = self.chosen and self.chosen.kv_type
        return asdict(self) | {"path": str(self.path), "layouts": layouts, "chosen": chosen}
