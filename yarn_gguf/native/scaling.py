"""Set the rope scaling of a context: a table of frequencies, or a dynamic scaling with its state."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.native.library import library
from yarn_gguf.native.log import captured_errors, reason
from yarn_gguf.native.prototypes import METHOD_NUMBERS, DynamicPolicy, DynamicState
from yarn_gguf.rope.dynamic import DynamicScaling


def set_rope_frequencies(context: int, inv_freq: np.ndarray, factor: float, attention_factor: float) -> None:
    """Set the frequencies of a context with an empty cache. They replace any scaling in force.

    inv_freq: (rotary dimensions // 2,), radians per position.

    Raises RopeScalingError if the library refuses them.
    """
    table = np.ascontiguousarray(inv_freq, dtype=np.float64)
    pointer = table.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
    with captured_errors() as lines:
        done = library().yarn_gguf_set_rope_frequencies(
            context, pointer, len(table), factor, attention_factor
        )
    if not done:
        raise RopeScalingError(reason(lines))


def set_dynamic_scaling(context: int, dynamic: DynamicScaling) -> None:
    """Make the scaling of a context with an empty cache follow the length of its text.

    `dynamic` must know its original context. Raises RopeScalingError if the library refuses it.
    """
    static = dynamic.scaling
    policy = DynamicPolicy(
        method=METHOD_NUMBERS[static.method],
        n_ctx_orig=static.original_context,
        factor=static.factor,
        ntk_factor=dynamic.ntk_factor,
        step=1.0 if dynamic.policy == "exact" else dynamic.step,
        beta_fast=static.beta_fast,
        beta_slow=static.beta_slow,
        by_rotations=static.ramp == "rotations",
        truncate=static.truncate,
    )
    if static.method == "longrope":
        short, long = static.short_factor or (), static.long_factor or ()
        policy.short_factor, policy.long_factor = (_doubles(each) for each in (short, long))
        policy.n_factors, policy.attention_factor = len(short), static.temperature()
    with captured_errors() as lines:
        done = library().yarn_gguf_set_dynamic_scaling(context, policy)
    if not done:
        raise RopeScalingError(reason(lines))


def _doubles(values: Sequence[float]) -> ctypes.Array[ctypes.c_double]:
    return (ctypes.c_double * len(values))(*values)


def reserve_context(context: int, tokens: int) -> None:
    """Make dynamic scaling use a factor for at least `tokens` from now on. 0 cancels an earlier call."""
    library().yarn_gguf_reserve_context(context, tokens)


def dynamic_state(context: int) -> DynamicState:
    """Return the state of dynamic scaling. Without dynamic scaling the factor is 1, and the rest 0."""
    return library().yarn_gguf_get_dynamic_state(context)
