"""Arguments of llama_cpp.Llama: defaults for long contexts; what would end the process is refused by name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

from yarn_gguf.errors import ModelLoadError
from yarn_gguf.native import cache_types

CACHE_TYPES = {name.upper(): number for name, number in cache_types.CACHE_TYPES.items()}

PADDING = 256  # tokens: llama.cpp makes the context of a text a multiple of these

# llama_cpp.Llama passes 1.0, 32 and 1 unless told otherwise, which would override the file's values.
DEFAULTS = {"yarn_attn_factor": -1.0, "yarn_beta_fast": -1.0, "yarn_beta_slow": -1.0}

# the arguments that `rope_scaling` stands for, with the values by which nothing is asked for
_NOT_GIVEN = {
    "rope_scaling_type": (-1, None),
    "rope_freq_base": (0, None),
    "rope_freq_scale": (0, None),
    "yarn_ext_factor": (-1.0, None),
    "yarn_attn_factor": (-1.0, None),
    "yarn_beta_fast": (-1.0, None),
    "yarn_beta_slow": (-1.0, None),
    "yarn_orig_ctx": (0, None),
}
ROPE_ARGUMENTS = tuple(_NOT_GIVEN)

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


def as_of(theirs: Callable) -> Callable[[Callable], Callable]:
    """A decorator: who looks at the signature finds the parameters of `theirs`, and those that ours names."""

    def decorate(ours: Callable) -> Callable:
        variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        own = {name: each for name, each in signature(ours).parameters.items() if each.kind not in variadic}
        given = signature(theirs).parameters
        found = [own.get(name, each) for name, each in given.items()]
        found += [each for name, each in own.items() if name not in given]
        ours.__signature__ = signature(theirs).replace(parameters=sorted(found, key=lambda each: each.kind))
        return ours

    return decorate


def checked(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments`, without rope arguments that ask for nothing. Raises ModelLoadError."""
    for name in ("type_k", "type_v"):
        value = arguments.get(name)
        if value is not None and value not in CACHE_TYPES.values():
            known = ", ".join(f"{key} = {number}" for key, number in CACHE_TYPES.items())
            raise ModelLoadError(f"{name} must be a type that a KV cache can have ({known}), got {value!r}")
    for name, (least, most) in _RANGES.items():
        if arguments.get(name) is not None:
            _check_number(name, arguments[name], least, most)
    if arguments.get("embedding") and "n_ubatch" in arguments:
        batch = min(arguments.get("n_batch", 512), arguments.get("n_ctx") or _MOST)
        sequences = min(batch, 256)  # LLAMA_MAX_SEQ
        _check_number("n_ubatch, with embedding=True,", arguments["n_ubatch"], sequences, _MOST)
    for key in arguments.get("kv_overrides") or {}:
        if key.endswith(".block_count"):
            raise ModelLoadError(f"kv_overrides cannot change {key}: the file has the layers that it has")
    return {name: value for name, value in arguments.items() if value not in _NOT_GIVEN.get(name, ())}


def padded(n_ctx: int) -> int:
    """What the library makes of a context of so many tokens."""
    return -(-n_ctx // PADDING) * PADDING


def with_defaults(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments`, and what suits long contexts where the caller gave nothing."""
    wants_exactness = CACHE_TYPES["F32"] in (arguments.get("type_k"), arguments.get("type_v"))
    needs_it = arguments.get("type_v") not in (None, *(CACHE_TYPES[name] for name in ("F32", "F16", "BF16")))
    defaults = DEFAULTS | {"flash_attn": needs_it or not wants_exactness}
    if arguments.get("embedding") and "n_batch" in arguments:
        defaults["n_ubatch"] = arguments["n_batch"]  # what is not causal has to be read at once
    return defaults | arguments


def _check_number(name: str, value: Any, least: int, most: int) -> None:
    try:
        is_within = least <= operator.index(value) <= most
    except TypeError:
        is_within = False
    if not is_within:
        raise ModelLoadError(f"{name} must be a whole number from {least} to {most}, got {value!r}")
