"""What a model takes at a context, whether a memory holds it, and how best to put it there.

The library itself is asked, on a model that is loaded without its weights: the sizes are those which it
would allocate, whatever the architecture, and it allocates nothing for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yarn_gguf.disk.sizes import lack_text, size_text
from yarn_gguf.errors import ModelLoadError, RopeScalingError, YarnGGUFError
from yarn_gguf.gguf.header import Header, ValueType, read_header
from yarn_gguf.model_file.inspect import inspect_file
from yarn_gguf.model_file.suitability import Suitability, suitability
from yarn_gguf.native.memory import PaperModel, machine_memory, memory_of
from yarn_gguf.native.prototypes import Memory, PlacedBytes
from yarn_gguf.native.scaling import set_dynamic_scaling
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.read import dynamic_in
from yarn_gguf.run.arguments import CACHE_TYPES, PADDING, padded

KV_TYPES = ("f16", "q8_0", "q4_0")
RESERVE = 1 << 30  # bytes
LONGEST = 1 << 21  # tokens of all texts: no longer context is looked for
MOST = 1 << 25  # tokens of all texts: the library notes 50 bytes of each, even on paper


@dataclass(frozen=True)
class Use:
    """Bytes in the RAM, and on the GPU."""

    ram: int
    gpu: int

    def __add__(self, other: Use) -> Use:
        return Use(self.ram + other.ram, self.gpu + other.gpu)

    @property
    def total(self) -> int:
        """Both together."""
        return self.ram + self.gpu


@dataclass(frozen=True)
class Cache:
    """What the layers of one kind remember. kind: "full attention", "compressed attention (MLA)", "sliding
    window", "recurrent states" or "other". cells: tokens or states of a layer, of all texts together."""

    kind: str
    layers: int
    cells: int
    use: Use


@dataclass(frozen=True)
class Layout:
    """The model with a KV cache of one type, and its last layers on the GPU.

    gpu_layers: as -ngl takes them, the output counted. missing: what the memory lacks to hold it and the
    reserve. largest_context: tokens of each text that fit, with every layer on the GPU if that holds any
    text, else with `gpu_layers` there; 0 if none fits.
    """

    kv_type: str
    gpu_layers: int
    weights: Use
    caches: tuple[Cache, ...]
    compute: Use
    missing: Use
    largest_context: int

    @property
    def use(self) -> Use:
        """All of it."""
        return sum((each.use for each in self.caches), self.weights + self.compute)

    @property
    def fits(self) -> bool:
        """Whether the memory holds all of it."""
        return self.missing.total == 0


@dataclass(frozen=True)
class Plan:
    """What `yarn-gguf plan` shows. Sizes in bytes, contexts in tokens.

    context: of each of `parallel` texts. layers: those that -ngl counts. gpu, ram: the memory planned
    for; gpu is 0 if there is none. reserve: what stays free of each. layouts: one a KV type, as asked. keys:
    K's type where the file asks for dynamic scaling "exact", which takes no other; None for the KV type.
    chosen: of those that fit, the first of those with most layers on the GPU; None if none fits. refused: KV
    types that the model cannot have, and why. arguments: what Llama takes to be as chosen; None if nothing
    is, or for more than one text. warnings: what else looks wrong in the file.
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
        """The plan in JSON's types."""
        layouts = [asdict(each) | {"use": asdict(each.use), "fits": each.fits} for each in self.layouts]
        chosen = self.chosen and self.chosen.kv_type
        return asdict(self) | {"path": str(self.path), "layouts": layouts, "chosen": chosen}


def plan(
    path: str | Path,
    context: int,
    *,
    memory: int | None = None,
    ram: int | None = None,
    reserve: int = RESERVE,
    kv_types: Sequence[str] = KV_TYPES,
    parallel: int = 1,
    gpu_layers: int | None = None,
    flash_attn: bool = True,
    ubatch: int = 512,
    swa_full: bool = False,
) -> Plan:
    """Plan for `parallel` texts of `context` tokens each, read by the model in the GGUF file at `path`.

    memory: bytes of the GPU, by default of the largest that the library can use here; of the RAM, if
    gpu_layers is 0. ram: bytes, by default of this machine. reserve: bytes of each that stay free, for what
    is not the model's. kv_types: to choose from, the best first. gpu_layers: how many layers to put on the
    GPU, by default as many as fit; 0: there is no GPU. ubatch: tokens that are computed at once. swa_full:
    sliding-window layers cache all of the text.

    Nothing of what is planned for is allocated. Raises GGUFError, OSError; ModelLoadError if the library
    refuses the file or every KV type; YarnGGUFError if the weights alone do not fit, or for a value that
    makes no sense.
    """
    for name, value in (("context", context), ("parallel", parallel), ("ubatch", ubatch)):
        if value < 1:
            raise YarnGGUFError(f"{name} must be at least 1, got {value}")
    if context * parallel > MOST:
        raise YarnGGUFError(
            f"{context:,} x {parallel} tokens are more than the {MOST:,} that can be planned for"
        )
    for name in kv_types:
        if name.upper() not in CACHE_TYPES:
            known = ", ".join(each.lower() for each in CACHE_TYPES)
            raise YarnGGUFError(f"a KV cache can be of type {known}, not {name!r}")
    header = read_header(path)
    room, keys = _room(memory, ram, reserve, gpu_layers), _keys(header)
    params = {
        "n_seq_max": parallel,
        "n_batch": ubatch,
        "n_ubatch": ubatch,
        "swa_full": swa_full,
        "flash_attn_type": int(flash_attn),
    }
    with closing(_Paper(header.path, room, keys, params)) as paper:
        paper.require_room_for_weights()
        layouts, refused = [], {}
        for kv_type in kv_types:
            try:
                layouts.append(paper.layout(kv_type, context, gpu_layers))
            except ModelLoadError as error:
                refused[kv_type] = str(error)
        if not layouts:
            raise ModelLoadError("; ".join(refused.values()))
        suits = suitability(header, context, paper.can_be_dynamic)
        chosen = max((each for each in layouts if each.fits), key=lambda each: each.gpu_layers, default=None)
        return Plan(
            path=header.path,
            arch=header.get("general.architecture", ValueType.STRING),
            context=context,
            parallel=parallel,
            layers=paper.layers,
            gpu=room.gpu,
            ram=room.ram,
            reserve=reserve,
            keys=keys,
            layouts=tuple(layouts),
            chosen=chosen,
            refused=refused,
            arguments=_arguments(chosen, context, keys, params) if chosen and parallel == 1 else None,
            scaling=suits,
            warnings=() if suits.verdict == "no rope" else inspect_file(path).warnings,
        )


# ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Room:
    """The memory planned for. gpu: 0 if there is none."""

    gpu: int
    ram: int
    reserve: int

    def missing(self, use: Use) -> Use:
        """What has to be added for `use` and the reserve; nothing where nothing is used."""
        ram, gpu = use.ram + self.reserve - self.ram, use.gpu + self.reserve - self.gpu
        return Use(max(0, ram) if use.ram else 0, max(0, gpu) if use.gpu else 0)

    @property
    def free(self) -> Use:
        return Use(max(0, self.ram - self.reserve), max(0, self.gpu - self.reserve))


def _room(memory: int | None, ram: int | None, reserve: int, gpu_layers: int | None) -> _Room:
    here_ram, here_gpu = machine_memory()
    if gpu_layers == 0:
        return _Room(0, memory or ram or here_ram, reserve)
    gpu = memory or here_gpu
    if gpu_layers and not gpu:
        raise YarnGGUFError("the library can use no GPU here: give the memory of the GPU that you plan for")
    return _Room(gpu, ram or here_ram, reserve)


def _keys(header: Header) -> str | None:
    try:
        dynamic = dynamic_in(header)
    except RopeScalingError:  # unsound, as `suitability` says
        return None
    return "f32" if dynamic and dynamic.policy == "exact" else None


def _cache_types(kv_type: str, keys: str | None) -> dict[str, int]:
    return {"type_k": CACHE_TYPES[(keys or kv_type).upper()], "type_v": CACHE_TYPES[kv_type.upper()]}


def _arguments(layout: Layout, context: int, keys: str | None, params: dict[str, int]) -> dict[str, Any]:
    return {
        "n_ctx": context,
        "n_gpu_layers": layout.gpu_layers,
        **_cache_types(layout.kv_type, keys),
        "n_batch": params["n_batch"],
        "n_ubatch": params["n_ubatch"],
        "swa_full": params["swa_full"],
        "flash_attn": bool(params["flash_attn_type"]),
    }


class _Paper:
    """The model on paper, once for each number of layers on the GPU that is tried. To be closed."""

    def __init__(self, path: Path, room: _Room, keys: str | None, params: dict[str, int]) -> None:
        self.path, self.room, self._keys, self._params = path, room, keys, params
        self._models: dict[int, PaperModel] = {}

    def close(self) -> None:
        for model in self._models.values():
            model.close()

    @property
    def layers(self) -> int:
        return self._model(0).layers

    def require_room_for_weights(self) -> None:
        """Raises YarnGGUFError if no split of the layers leaves room for anything else."""
        weights, free = _use(self._memory("f16", 1, 0).weights).total, self.room.free.total
        if weights > free:
            gpu = f"{size_text(self.room.gpu)} on the GPU and " if self.room.gpu else ""
            there = f"{gpu}{size_text(self.room.ram)} of RAM, less the reserve, hold {size_text(free)}"
            size, place = (self.room.gpu, "on the GPU") if self.room.gpu else (self.room.ram, "of RAM")
            missing = weights - free + max(0, self.room.reserve - size)
            raise YarnGGUFError(
                f"{self.path}: the weights alone take {size_text(weights)}; {there}: {lack_text(missing)} "
                f"{place} are missing; quantize the model further, or take a smaller one"
            )

    def layout(self, kv_type: str, context: int, gpu_layers: int | None) -> Layout:
        """With as many layers on the GPU as are given, or as fit. Raises ModelLoadError for a KV type that
        the model cannot have."""
        most = self.layers if self.room.gpu else 0
        if gpu_layers is not None:
            most = layers = min(gpu_layers, most) if gpu_layers >= 0 else most
        else:
            layers = self._most_layers(kv_type, context, most)
        memory = self._memory(kv_type, context, layers)
        parts = _use(memory.weights), _caches(memory), _use(memory.compute)
        missing = self.room.missing(_sum(memory))
        largest = self._largest_context(kv_type, most) or self._largest_context(kv_type, layers)
        return Layout(kv_type, layers, *parts, missing, largest)

    def can_be_dynamic(self, dynamic: DynamicScaling) -> bool:
        """Whether the library can scale this model so."""
        f32 = CACHE_TYPES["F32"]  # for the sake of the policy "exact"
        with self._model(0).context(n_ctx=PADDING, type_k=f32, type_v=f32) as context:
            try:
                set_dynamic_scaling(context, dynamic)
            except RopeScalingError:
                return False
        return True

    def _most_layers(self, kv_type: str, context: int, layers: int) -> int:
        """Up to `layers`, on the GPU."""

        def fits(count: int) -> bool:
            return self.room.missing(_sum(self._memory(kv_type, context, count))).gpu == 0

        return layers if fits(layers) else _last(fits, 0, layers)

    def _largest_context(self, kv_type: str, layers: int) -> int:
        """Tokens of a text."""

        def fits(count: int) -> bool:
            return self.room.missing(_sum(self._memory(kv_type, count * PADDING, layers))).total == 0

        limit, most = 1, LONGEST // (self._params["n_seq_max"] * PADDING)
        while fits(limit):
            if limit >= most:
                return most * PADDING
            limit = min(2 * limit, most)
        return PADDING * _last(fits, limit // 2, limit)

    def _memory(self, kv_type: str, context: int, layers: int) -> Memory:
        types = _cache_types(kv_type, self._keys)
        n_ctx = padded(context) * self._params["n_seq_max"]
        with self._model(layers).context(n_ctx=n_ctx, **types, **self._params) as paper:
            return memory_of(paper)

    def _model(self, layers: int) -> PaperModel:
        if layers not in self._models:
            self._models[layers] = PaperModel(self.path, layers if self.room.gpu else None)
        return self._models[layers]


def _last(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The last number below `high` that fits; `low`, if none does."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _use(value: PlacedBytes) -> Use:
    return Use(value.host, value.device)


def _caches(memory: Memory) -> tuple[Cache, ...]:
    attention = "compressed attention (MLA)" if memory.compressed else "full attention"
    kinds = {
        attention: memory.attention,
        "sliding window": memory.window,
        "recurrent states": memory.recurrent,
    }
    caches = [Cache(kind, each.layers, each.cells, _use(each.bytes)) for kind, each in kinds.items()]
    caches.append(Cache("other", 0, 0, _use(memory.other)))
    return tuple(each for each in caches if each.use.total)


def _sum(memory: Memory) -> Use:
    return sum((each.use for each in _caches(memory)), _use(memory.weights) + _use(memory.compute))
