"""Read the scaling that the keys of a GGUF file ask for.

Floats in a file are float32, so the RopeScaling has float32's values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.gguf.header import ValueType
from yarn_gguf.rope.architectures import architecture
from yarn_gguf.rope.factor_tensors import (
    FREQ_FACTORS,
    divided,
    factor_tensors,
    read_freq_factors,
    read_longrope,
)
from yarn_gguf.rope.formulas import yarn_mscale
from yarn_gguf.rope.gguf_keys import NTK_FACTOR, SCALING_TYPES
from yarn_gguf.rope.model import StoredRope
from yarn_gguf.rope.scaling import RopeScaling

_TABLE_RTOL = 1e-6  # inv_freq against the frequencies of the other keys, whose values are float32


def read_scaling(model: StoredRope) -> RopeScaling:
    """Return the scaling that the file asks for.

    Raises RopeScalingError, or GGUFError for a key of the wrong type, if it makes no sense.
    """
    type_ = model.get("rope.scaling.type", ValueType.STRING)
    if type_ not in (None, *SCALING_TYPES):
        raise RopeScalingError(f"type {type_!r} is none of {', '.join(SCALING_TYPES)}")
    factor = _factor(model, is_yarn=type_ == "yarn")
    tensors = read_longrope(model.header, model.has("rope.scaling.longrope_factor"))
    if tensors is not None or model.has("rope.scaling.long_factor"):
        return _read_longrope(model, tensors or ((), ()), 1.0 if type_ == "none" else factor)
    if model.has("rope.scaling.inv_freq"):
        return _read_table(model, factor)
    is_llama3 = model.has("rope.scaling.llama3_factor")
    factors = read_freq_factors(model, is_llama3)
    if factors is not None and is_llama3:
        return _read_llama3_tensor(model, factors)
    is_yarn = type_ == "yarn" and _is_blending(model)
    scaling = _read_yarn(model, factor) if is_yarn else _read_unblended(model, type_, factor)
    return scaling if factors is None else divided(scaling, factors, model, model.context_length)


def log_multiplier(model: StoredRope) -> float:
    """Return mscale_all_dim from the key yarn_log_multiplier; 0 without it, or if llama.cpp ignores it."""
    return _number(model, "yarn_log_multiplier", 0.0) * architecture(model.arch).log_multiplier_scale


# ----------------------------------------------------------------------------------------------


def _factor(model: StoredRope, is_yarn: bool) -> float:
    factor = _optional_number(model, "factor")
    if factor is None:
        factor = model.get("rope.scale_linear", ValueType.FLOAT32)
    if factor is None or (factor == 0 and not is_yarn):
        return 1.0  # 0 stands for "not scaled" in files that llama.cpp wrote
    return factor


def _read_unblended(model: StoredRope, type_: str | None, factor: float) -> RopeScaling:
    """Return linear scaling, ntk, or none. Without a type, any factor but 1 is linear."""
    original = model.get("rope.scaling.original_context_length", ValueType.UINT32)
    attention_factor = _not_one(_optional_number(model, "attn_factor"))
    ntk_factor = model.header.get(NTK_FACTOR, ValueType.FLOAT32)
    if type_ in (None, "none") and ntk_factor is not None:
        return RopeScaling("ntk", ntk_factor, original, attention_factor=attention_factor)
    if type_ == "none" or (type_ is None and factor == 1):
        return RopeScaling(attention_factor=attention_factor)
    return RopeScaling("linear", factor, original, attention_factor=attention_factor)


def _read_yarn(model: StoredRope, factor: float) -> RopeScaling:
    facts = architecture(model.arch)
    plain = RopeScaling(
        "yarn",
        factor,
        _original_context(model),
        beta_fast=_number(model, "yarn_beta_fast", facts.beta_fast),
        beta_slow=_number(model, "yarn_beta_slow", 1.0),
        mscale=_optional_number(model, "yarn_mscale"),
        mscale_all_dim=_optional_number(model, "yarn_mscale_all_dim"),
    )
    total = _optional_number(model, "yarn_attn_factor")
    if total is not None and facts.yarn_attn_factor_is_operand:
        total *= yarn_mscale(factor)
    if total is None and (multiplier := log_multiplier(model)):
        return replace(plain, mscale=facts.mscale_beside(multiplier), mscale_all_dim=multiplier)
    if total is None:
        total = _number(model, "attn_factor", 1.0) * yarn_mscale(factor)
    if _same_float32(total, plain.temperature()):
        return plain
    if _same_float32(total, 1.0):
        return replace(plain, method="by-parts")
    return replace(plain, attention_factor=total)


def _read_table(model: StoredRope, factor: float) -> RopeScaling:
    """Return the method that explicit frequencies come from, if keys of ours name it; else "explicit".

    Raises RopeScalingError if the frequencies are not those of the method.
    """
    table = tuple(model.header.entries[model.key("rope.scaling.inv_freq")].value)
    low, high = (_optional_number(model, f"{name}_freq_factor") for name in ("low", "high"))
    if low is not None and high is not None:
        scaling = RopeScaling(
            "llama3",
            factor,
            _original_context(model),
            attention_factor=_not_one(_optional_number(model, "yarn_attn_factor")),
            low_freq_factor=low,
            high_freq_factor=high,
        )
    elif model.get("rope.scaling.type", ValueType.STRING) == "yarn":
        scaling = replace(
            _read_yarn(model, factor),
            ramp=model.get("rope.scaling.yarn_ramp", ValueType.STRING, "index"),
            truncate=model.get("rope.scaling.yarn_truncate", ValueType.BOOL, True),
        )
    else:
        temperature = _not_one(_optional_number(model, "attn_factor"))
        return RopeScaling(
            "explicit", factor, _original_context(model), attention_factor=temperature, inv_freq=table
        )
    _require_same(table, scaling.frequencies(model.dim, model.rope_theta).inv_freq, "inv_freq")
    return scaling


def _read_llama3_tensor(model: StoredRope, factors: np.ndarray) -> RopeScaling:
    """Return the scaling that our keys name and the tensor rope_freqs.weight holds."""
    scaling = RopeScaling(
        "llama3",
        _number(model, "llama3_factor", 1.0),
        _original_context(model),
        attention_factor=_not_one(_optional_number(model, "attn_factor")),
        low_freq_factor=_optional_number(model, "low_freq_factor"),
        high_freq_factor=_optional_number(model, "high_freq_factor"),
    )
    tensor = factor_tensors(model, scaling)[FREQ_FACTORS]
    _require_same(factors, tensor, f"the tensor {FREQ_FACTORS}")
    return scaling


def _require_same(found: Sequence[float] | np.ndarray, expected: np.ndarray, name: str) -> None:
    if len(found) != len(expected) or not np.allclose(found, expected, rtol=_TABLE_RTOL, atol=0):
        raise RopeScalingError(f"{name} and the other keys disagree")


def _read_longrope(
    model: StoredRope, tensors: tuple[tuple[float, ...], tuple[float, ...]], factor: float
) -> RopeScaling:
    """Return LongRoPE. tensors: its short and long factors, which keys of ours replace."""
    if factor != 1:
        raise RopeScalingError(f"factor {factor} beside LongRoPE's lists scales a second time")
    original = _original_context(model)
    plain = RopeScaling(
        "longrope",
        _number(model, "longrope_factor", max(1.0, model.context_length / original)),
        original,
        short_factor=_factors(model, "short_factor", tensors[0]),
        long_factor=_factors(model, "long_factor", tensors[1]),
    )
    total = _number(model, "attn_factor", 1.0)
    return plain if _same_float32(total, plain.temperature()) else replace(plain, attention_factor=total)


def _factors(model: StoredRope, name: str, tensor: tuple[float, ...]) -> tuple[float, ...]:
    entry = model.header.entries.get(model.key(f"rope.scaling.{name}"))
    return tensor if entry is None else tuple(entry.value)


def _is_blending(model: StoredRope) -> bool:
    """Return whether a file of type yarn has a ramp: yarn_ext_factor 1, negative ("not given") or missing.

    With 0, plain interpolation remains of yarn. Raises RopeScalingError for any other value.
    """
    mix = _number(model, "yarn_ext_factor", 1.0)
    if not (mix <= 0 or mix == 1):
        raise RopeScalingError(f"yarn_ext_factor {mix} has no meaning outside llama.cpp: expected 0 or 1")
    return mix != 0


def _original_context(model: StoredRope) -> int:
    length = model.get("rope.scaling.original_context_length", ValueType.UINT32)
    return model.context_length if length is None else length


def _number(model: StoredRope, name: str, default: float) -> float:
    return model.get(f"rope.scaling.{name}", ValueType.FLOAT32, default)


def _optional_number(model: StoredRope, name: str) -> float | None:
    return model.get(f"rope.scaling.{name}", ValueType.FLOAT32)


def _not_one(value: float | None) -> float | None:
    return None if value == 1 else value


def _same_float32(one: float, other: float) -> bool:
    return abs(one - other) <= 1.5 * np.spacing(np.float32(other))  # a product may round twice
