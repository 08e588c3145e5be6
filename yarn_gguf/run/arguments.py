"""Arguments of Llama: defaults for long contexts; values that would end the process are refused by name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, ParamSpec, TypeVar

from yarn_gguf.errors import ModelLoadError
from yarn_gguf.native.cache_types import CACHE_TYPES

P = ParamSpec("P")
T = TypeVar("T")

PADDING = 256  # tokens: llama.cpp makes the context of a text a multiple of these

# The arguments that `rope_scaling` stands for, with the value by which nothing is asked for: the file's value
# holds.
ROPE_DEFAULTS = {
    "rope_scaling_type": -1,
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "yarn_orig_ctx": 0,
}
ROPE_ARGUMENTS = tuple(ROPE_DEFAULTS)

# llama_cpp.Llama's own defaults, where they are others. They ask for nothing, either: its server passes every
# argument. In the library they would override the file's values.
_OTHER_ROPE_DEFAULTS = {"yarn_attn_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}

_MOST = 2**31 - 1
_RANGES = {
    "n_ctx": (0, _MOST),  # 0: the model's
    "n_batch": (1, _MOST),
    "n_ubatch": (1, _MOST),
    "n_threads": (0, 512),  # 0: the default; 512: GGML_MAX_N_THREADS
    "n_threads_batch": (0, 512),
    "last_n_tokens_size": (0, _MOST),
    "yarn_orig_ctx": (0, _MOST),
    # enums of llama.h and ggml-cpu.h
    "rope_scaling_type": (-1, 3),
    "pooling_type": (-1, 4),
    "attention_type": (-1, 1),
    "split_mode": (0, 3),
    "numa": (0, 4),
}


def signature_of(theirs: Callable[P, Any]) -> Callable[[Callable[..., T]], Callable[P, T]]:
    """Decorate a method that passes its arguments on to `theirs`: editors see those parameters."""

    def decorate(ours: Callable[..., T]) -> Callable[P, T]:
        variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        own = {name: each for name, each in signature(ours).parameters.items() if each.kind not in variadic}
        found = [own.get(name, each) for name, each in signature(theirs).parameters.items()]
        ours.__signature__ = signature(theirs).replace(parameters=found)  # type: ignore[attr-defined]
        return ours

    return decorate


def checked(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments for llama_cpp.Llama, from those of Llama. Raises ModelLoadError.

    An argument of None is left to llama_cpp.Llama's default, or to what suits a long context. A rope argument
    that asks for nothing is left out.
    """
    given: dict[str, Any] = {"n_ctx": 512, "n_batch": 512}  # where None is given
    given |= {name: value for name, value in arguments.items() if not _asks_for_nothing(name, value)}
    for name in ("type_k", "type_v"):
        value = given.get(name)
        if value is not None and value not in CACHE_TYPES.values():
            known = ", ".join(f"{key} = {number}" for key, number in CACHE_TYPES.items())
            raise ModelLoadError(f"{name} must be a type that a KV cache can have ({known}), got {value!r}")
    for name, (least, most) in _RANGES.items():
        if name in given:
            _check_number(name, given[name], least, most)
    if given.get("embedding") and "n_ubatch" in given:
        batch = min(given["n_batch"], given["n_ctx"] or _MOST)
        sequences = min(batch, 256)  # LLAMA_MAX_SEQ
        _check_number("n_ubatch, with embedding=True,", given["n_ubatch"], sequences, _MOST)
    if given.get("rpc_servers") is not None:
        raise ModelLoadError("rpc_servers has no effect in llama-cpp-python: leave it out")
    for key in given.get("kv_overrides") or {}:
        if key.endswith(".block_count"):
            raise ModelLoadError(f"kv_overrides cannot change {key}: the file has the layers that it has")
    return given


def with_defaults(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return checked `arguments` with values that suit long contexts, where the caller gave none."""
    wants_exactness = CACHE_TYPES["f32"] in (arguments.get("type_k"), arguments.get("type_v"))
    needs_it = arguments.get("type_v") not in (None, *(CACHE_TYPES[name] for name in ("f32", "f16", "bf16")))
    defaults = ROPE_DEFAULTS | {"flash_attn": needs_it or not wants_exactness}
    if arguments.get("embedding"):
        defaults["n_ubatch"] = arguments["n_batch"]  # without causality all tokens are read at once
    return defaults | arguments


def padded(n_ctx: int) -> int:
    """Return the context that the library makes for a text of `n_ctx` tokens."""
    return -(-n_ctx // PADDING) * PADDING


# ----------------------------------------------------------------------------------------------


def _asks_for_nothing(name: str, value: Any) -> bool:
    if value is None:
        return True
    return any(name in each and value == each[name] for each in (ROPE_DEFAULTS, _OTHER_ROPE_DEFAULTS))


def _check_number(name: str, value: Any, least: int, most: int) -> None:
    try:
        is_within = least <= operator.index(value) <= most
    except TypeError:
        is_within = False
    if not is_within:
        raise ModelLoadError(f"{name} must be a whole number from {least} to {most}, got {value!r}")
