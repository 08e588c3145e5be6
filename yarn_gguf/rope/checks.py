"""Check the values of a rope scaling. Every refusal names the value, what is expected, and what was given.

GGUF and ggml hold these values as float32. A number that float32 cannot hold is refused, which also keeps
every formula finite in float64: no number in a JSON file can overflow one.
"""

from __future__ import annotations

from typing import TypeGuard

import numpy as np

from yarn_gguf.errors import RopeScalingError

FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT32_TINY = float(np.finfo(np.float32).tiny)  # the smallest normal number


def refusal(name: str, value: object, expected: str) -> RopeScalingError:
    """Return the error for a value of the field or argument `name` that is not `expected`."""
    return RopeScalingError(f"rope scaling {name} must be {expected}, got {value!r}")


def require(name: str, value: object, holds: bool, expected: str) -> None:
    """Raise RopeScalingError for `value`, unless the condition `holds`."""
    if not holds:
        raise refusal(name, value, expected)


def require_rotary_embedding(dim: object, rope_theta: object) -> None:
    """Raise RopeScalingError unless `dim` can be a number of rotary dimensions, and `rope_theta` a base."""
    require("dim", dim, isinstance(dim, int) and dim > 0 and dim % 2 == 0, "an even number > 0")
    require("rope_theta", rope_theta, is_number(rope_theta) and rope_theta > 1, "a number > 1")


def is_number(value: object) -> TypeGuard[float]:
    """Return whether `value` is an int or a float (not a bool) that float32 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX


def is_positive(value: object) -> TypeGuard[float]:
    """Return whether `value` is a number > 0 that float32 can hold as a normal number."""
    return is_number(value) and value >= _FLOAT32_TINY


def is_positive_tuple(value: object) -> bool:
    """Return whether `value` is a tuple of one or more positive numbers."""
    return isinstance(value, tuple) and len(value) > 0 and all(is_positive(each) for each in value)
