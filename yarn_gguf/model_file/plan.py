"""Plan the memory of a context: what a model takes, whether it fits, and how to split it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from yarn_gguf.errors import ModelLoadError, RopeScalingError, YarnGGUFError
from yarn_gguf.gguf.header import Header, ValueType, read_header
from yarn_gguf.model_file.inspect import inspect_file
from yarn_gguf.model_file.layout import Room, check_weights, layout
from yarn_gguf.model_file.memory_plan import Layout, MemoryPlan
from yarn_gguf.model_file.paper import Paper, types_of_cache
from yarn_gguf.model_file.suitability import suitability
from yarn_gguf.native.cache_types import CACHE_TYPES
from yarn_gguf.native.memory import machine_memory
from yarn_gguf.rope.read import dynamic_in

DEFAULT_KV_TYPES = ("f16", "q8_0", "q4_0")
RESERVE = 1 << 30  # bytes
_MOST_TOKENS = 1 << 25  # of all texts: the library allocates 50 bytes of notes for each, even on paper


def plan(
    path: str | Path,
    context: int,
    *,
    memory: int | None = None,
    ram: int | None = None,
    reserve: int = RESERVE,
    kv_types: Sequence[str] = DEFAULT_KV_TYPES,
    parallel: int = 1,
    gpu_layers: int | None = None,
    flash_attn: bool = True,
    ubatch: int = 512,
    swa_full: bool = False,
) -> MemoryPlan:
    """Plan for `parallel` texts of `context` tokens each, read by the model in the GGUF file at `path`.

    memory: bytes of the GPU; of the RAM if gpu_layers is 0. Default: the largest GPU that the library can
        use here.
    ram: bytes. Default: this machine's.
    reserve: bytes of each that stay free for other uses.
    kv_types: the types to choose from, the best first.
    gpu_layers: how many layers to put on the GPU, all if negative. 0: there is no GPU. Default: as many as
        fit.
    ubatch: tokens that are computed at once.
    swa_full: sliding-window layers cache the whole text.

    The planned memory is not allocated. Raises GGUFError and OSError; ModelLoadError if the library refuses
    the file or every KV type; YarnGGUFError for an invalid value, or if the weights alone do not fit.
    """
    _check(context, parallel, ubatch)
    cache_types = [_cache_type(name) for name in kv_types]
    header = read_header(path)
    room, keys = _room(memory, ram, reserve, gpu_layers), _type_of_keys(header)
    params = {
        "n_seq_max": parallel,
        "n_batch": ubatch,
        "n_ubatch": ubatch,
        "swa_full": swa_full,
        "flash_attn_type": int(flash_attn),
    }
    with closing(Paper(header.path, has_gpu=room.gpu > 0, keys=keys, params=params)) as paper:
        check_weights(paper, room)
        layouts, refused = _layouts(paper, room, cache_types, context, gpu_layers)
        chosen = max((each for each in layouts if each.fits), key=lambda each: each.gpu_layers, default=None)
        scaling = suitability(header, context, paper.can_be_dynamic)
        return MemoryPlan(
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
            scaling=scaling,
            warnings=() if scaling.verdict == "no rope" else inspect_file(path).warnings,
        )


# ----------------------------------------------------------------------------------------------


def _check(context: int, parallel: int, ubatch: int) -> None:
    """Raise YarnGGUFError for a number that cannot be planned for."""
    for name, value in (("context", context), ("parallel", parallel), ("ubatch", ubatch)):
        if value < 1:
            raise YarnGGUFError(f"{name} must be at least 1, got {value}")
    if context * parallel > _MOST_TOKENS:
        raise YarnGGUFError(
            f"{context:,} x {parallel} tokens are more than the {_MOST_TOKENS:,} that can be planned for"
        )


def _cache_type(name: str) -> str:
    """Return the type's name as CACHE_TYPES has it. Raises YarnGGUFError for a name that it lacks."""
    if name.lower() not in CACHE_TYPES:
        raise YarnGGUFError(f"a KV cache can be of type {', '.join(CACHE_TYPES)}, not {name!r}")
    return name.lower()


def _room(memory: int | None, ram: int | None, reserve: int, gpu_layers: int | None) -> Room:
    ram_here, gpu_here = machine_memory()
    if gpu_layers == 0:
        return Room(0, memory or ram or ram_here, reserve)
    gpu = memory or gpu_here
    if gpu_layers and not gpu:
        raise YarnGGUFError("the library can use no GPU here: give the memory of the GPU that you plan for")
    return Room(gpu, ram or ram_here, reserve)


def _type_of_keys(header: Header) -> str | None:
    """Return "f32" if the file's dynamic scaling needs it for K, else None."""
    try:
        dynamic = dynamic_in(header)
    except RopeScalingError:  # unsound: `suitability` reports it
        return None
    return "f32" if dynamic and dynamic.needs_float32_keys else None


def _layouts(
    paper: Paper, room: Room, kv_types: Sequence[str], context: int, gpu_layers: int | None
) -> tuple[list[Layout], dict[str, str]]:
    """Return the layouts, and each KV type that the library refuses with its reason.

    Raises ModelLoadError if it refuses all of them.
    """
    layouts, refused = [], {}
    for kv_type in kv_types:
        try:
            layouts.append(layout(paper, room, kv_type, context, gpu_layers))
        except ModelLoadError as error:
            refused[kv_type] = str(error)
    if not layouts:
        raise ModelLoadError("; ".join(refused.values()))
    return layouts, refused


def _arguments(layout: Layout, context: int, keys: str | None, params: dict[str, int]) -> dict[str, Any]:
    """Return the arguments of Llama for a layout."""
    return {
        "n_ctx": context,
        "n_gpu_layers": layout.gpu_layers,
        **types_of_cache(layout.kv_type, keys),
        "n_batch": params["n_batch"],
        "n_ubatch": params["n_ubatch"],
        "swa_full": params["swa_full"],
        "flash_attn": bool(params["flash_attn_type"]),
    }
