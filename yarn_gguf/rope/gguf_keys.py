"""A scaling as the keys of a GGUF file, and back.

Keys and their meaning: docs/gguf-keys.md. Floats in a file are float32, so a RopeScaling read from
one has float32's values.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.gguf.header import KeyValue, ValueType, key_value, read_floats
from yarn_gguf.rope.architectures import architecture
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.model import LONG_FACTORS, SHORT_FACTORS, RotaryEmbedding, StoredRope
from yarn_gguf.rope.scaling import (
    RopeScaling,
    extended_length,
    ggml_attn_factor,
    ntk_base,
    rope_op_has,
    yarn_mscale,
)

SCALING_TYPES = ("none", "linear", "yarn", "longrope")  # those that llama.cpp knows; any other ends it

# llama.cpp's types for our methods. An unpatched llama.cpp does by-parts for llama3, the nearest that it can.
_TYPES = {"linear": "linear", "by-parts": "yarn", "yarn": "yarn", "llama3": "yarn", "longrope": "longrope"}

# The ntk method is a new freq_base to llama.cpp; these say where it came from.
ORIGINAL_FREQ_BASE = "yarn_gguf.original_freq_base"
NTK_FACTOR = "yarn_gguf.ntk_factor"

# All keys that a scaling may set or remove: suffixes after "{arch}.", and ours.
_ROPE_SUFFIXES = (
    "context_length",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_ramp",
    "rope.scaling.yarn_truncate",
    "rope.scaling.low_freq_factor",
    "rope.scaling.high_freq_factor",
    "rope.scaling.dynamic",
    "rope.scaling.dynamic_ntk_factor",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_mscale",
    "rope.scaling.yarn_mscale_all_dim",
    "rope.scaling.inv_freq",
    "rope.scaling.short_factor",
    "rope.scaling.long_factor",
    "rope.scaling.longrope_factor",
)


def owned_keys(model: RotaryEmbedding) -> set[str]:
    """Every key that a scaling may set or remove."""
    return {ORIGINAL_FREQ_BASE, NTK_FACTOR, *(model.key(suffix) for suffix in _ROPE_SUFFIXES)}


def scaling_keys(
    model: RotaryEmbedding,
    scaling: RopeScaling,
    dynamic: DynamicScaling | str | None = None,
    context_length: int | None = None,
    finetuned: bool = False,
) -> list[KeyValue]:
    """The keys, all of owned_keys that a file needs, that make llama.cpp scale as `scaling` says.

    The scaling must name its original context. dynamic: the policy by which its factor is to follow the
    length of the text, which an unpatched llama.cpp does not, or all of the dynamic scaling, whose method is
    the scaling's. context_length: tokens that the file is made for, where that is not the factor times the
    original context. finetuned: the model was trained further under this scaling. Raises RopeScalingError
    for what float32 cannot hold.
    """
    scaling = _as_float32(scaling)
    if scaling.has_ramp:
        scaling.frequencies(model.dim, model.rope_theta)  # refuses a ramp whose bounds cross
    context = scaling.original_context
    length = context_length or (
        context if scaling.method == "none" else extended_length(scaling.factor, context)
    )
    if length > np.iinfo(np.uint32).max:
        raise RopeScalingError(f"rope scaling factor {scaling.factor} takes {context} tokens beyond 32 bits")
    keys = [
        key_value(model.key("context_length"), ValueType.UINT32, length),
        *_freq_base_keys(model, scaling),
        key_value(model.key("rope.scaling.type"), ValueType.STRING, _TYPES.get(scaling.method, "none")),
    ]
    if scaling.method != "none":
        keys.append(key_value(model.key("rope.scaling.original_context_length"), ValueType.UINT32, context))
    if scaling.method in ("linear", "by-parts", "yarn", "llama3", "explicit"):
        keys.append(_float_key(model, "factor", scaling.factor))
    if dynamic is not None:
        keys += _dynamic_keys(
            model, DynamicScaling(scaling, dynamic) if isinstance(dynamic, str) else dynamic
        )
    if finetuned:
        keys.append(key_value(model.key("rope.scaling.finetuned"), ValueType.BOOL, True))
    return keys + _temperature_keys(model, scaling) + _table_keys(model, scaling)


def log_multiplier(model: StoredRope) -> float:
    """mscale_all_dim, where llama.cpp reads it for this architecture and the file has it; else 0."""
    stored = _number(model, "rope.scaling.yarn_log_multiplier", 0.0)
    return stored * architecture(model.arch).log_multiplier_scale


# ----------------------------------------------------------------------------------------------


def read_scaling(model: StoredRope) -> RopeScaling:
    """The scaling that the file asks for. Raises RopeScalingError or GGUFError if it makes no sense."""
    type_ = model.get("rope.scaling.type", ValueType.STRING)
    if type_ not in (None, *SCALING_TYPES):
        raise RopeScalingError(f"type {type_!r} is none of {', '.join(SCALING_TYPES)}")
    original = model.get("rope.scaling.original_context_length", ValueType.UINT32)
    factor = model.get("rope.scaling.factor", ValueType.FLOAT32)
    if factor is None:
        factor = model.get("rope.scale_linear", ValueType.FLOAT32)
    if factor is None or (factor == 0 and type_ != "yarn"):
        factor = 1.0  # 0 stands for "not scaled" in files that llama.cpp wrote
    if LONG_FACTORS in model.header.tensors or model.key("rope.scaling.long_factor") in model.header.entries:
        return _read_longrope(model, 1.0 if type_ == "none" else factor)
    if model.key("rope.scaling.inv_freq") in model.header.entries:
        return _read_table(model, factor)
    if type_ == "yarn" and _is_blending(model):
        return _read_yarn(model, factor)
    attention_factor = _not_one(_number(model, "rope.scaling.attn_factor"))
    ntk_factor = model.header.get(NTK_FACTOR, ValueType.FLOAT32)
    if type_ == "none" and ntk_factor is not None:
        return RopeScaling("ntk", ntk_factor, original, attention_factor=attention_factor)
    if type_ == "none" or (type_ is None and factor == 1):
        return RopeScaling(attention_factor=attention_factor)
    return RopeScaling("linear", factor, original, attention_factor=attention_factor)


def _read_yarn(model: StoredRope, factor: float) -> RopeScaling:
    plain = RopeScaling(
        "yarn",
        factor,
        _original_context(model),
        beta_fast=_number(model, "rope.scaling.yarn_beta_fast", architecture(model.arch).beta_fast),
        beta_slow=_number(model, "rope.scaling.yarn_beta_slow", 1.0),
        mscale=_number(model, "rope.scaling.yarn_mscale"),
        mscale_all_dim=_number(model, "rope.scaling.yarn_mscale_all_dim"),
    )
    total = _number(model, "rope.scaling.yarn_attn_factor")
    if total is not None and architecture(model.arch).yarn_attn_factor_is_operand:
        total *= yarn_mscale(factor)
    if total is None and (multiplier := log_multiplier(model)):
        mscale = multiplier if architecture(model.arch).log_multiplier_is_mscale else 1.0
        return replace(plain, mscale=mscale, mscale_all_dim=multiplier)
    if total is None:
        total = _number(model, "rope.scaling.attn_factor", 1.0) * yarn_mscale(factor)
    if _same_float32(total, plain.temperature()):
        return plain
    if _same_float32(total, 1.0):
        return replace(plain, method="by-parts")
    return replace(plain, attention_factor=total)


def _read_table(model: StoredRope, factor: float) -> RopeScaling:
    """Explicit frequencies, and the method that they come from, if keys of ours name it."""
    table = tuple(model.header.entries[model.key("rope.scaling.inv_freq")].value)
    low, high = (_number(model, f"rope.scaling.{name}_freq_factor") for name in ("low", "high"))
    if low is not None and high is not None:
        scaling = RopeScaling(
            "llama3",
            factor,
            _original_context(model),
            attention_factor=_not_one(_number(model, "rope.scaling.yarn_attn_factor")),
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
        temperature = _not_one(_number(model, "rope.scaling.attn_factor"))
        return RopeScaling(
            "explicit", factor, _original_context(model), attention_factor=temperature, inv_freq=table
        )
    expected = scaling.frequencies(model.dim, model.rope_theta).inv_freq
    if len(table) != len(expected) or not np.allclose(table, expected, rtol=1e-6, atol=0):
        raise RopeScalingError("inv_freq and the other keys disagree")
    return scaling


def _is_blending(model: StoredRope) -> bool:
    """yarn_ext_factor: negative stands for "not given"; 0 leaves plain interpolation of yarn."""
    mix = _number(model, "rope.scaling.yarn_ext_factor", 1.0)
    if not (mix <= 0 or mix == 1):
        raise RopeScalingError(f"yarn_ext_factor {mix} has no meaning outside llama.cpp: expected 0 or 1")
    return mix != 0


def _read_longrope(model: StoredRope, factor: float) -> RopeScaling:
    if factor != 1:
        raise RopeScalingError(f"factor {factor} beside LongRoPE's lists scales a second time")
    original = _original_context(model)
    plain = RopeScaling(
        "longrope",
        _number(model, "rope.scaling.longrope_factor", max(1.0, model.context_length / original)),
        original,
        short_factor=_factors(model, "short"),
        long_factor=_factors(model, "long"),
    )
    total = _number(model, "rope.scaling.attn_factor", 1.0)
    return plain if _same_float32(total, plain.temperature()) else replace(plain, attention_factor=total)


def _factors(model: StoredRope, which: str) -> tuple[float, ...] | None:
    """LongRoPE's divisors: our key, else the tensor of upstream's converter."""
    entry = model.header.entries.get(model.key(f"rope.scaling.{which}_factor"))
    if entry is not None:
        return tuple(entry.value)
    return read_floats(model.header, {"short": SHORT_FACTORS, "long": LONG_FACTORS}[which])


def _number(model: StoredRope, suffix: str, default: float | None = None) -> Any:
    return model.get(suffix, ValueType.FLOAT32, default)


def _original_context(model: StoredRope) -> int:
    length = model.get("rope.scaling.original_context_length", ValueType.UINT32)
    return model.context_length if length is None else length


def _not_one(value: float | None) -> float | None:
    return None if value == 1 else value


def _same_float32(one: float, other: float) -> bool:
    return abs(one - other) <= 1.5 * np.spacing(np.float32(other))  # a product may round twice


def _as_float32(scaling: RopeScaling) -> RopeScaling:
    values = {each.name: getattr(scaling, each.name) for each in fields(scaling)}
    return replace(scaling, **{k: float(np.float32(v)) for k, v in values.items() if isinstance(v, float)})


def _freq_base_keys(model: RotaryEmbedding, scaling: RopeScaling) -> list[KeyValue]:
    name = model.key("rope.freq_base")
    if scaling.method == "ntk":
        base = ntk_base(model.rope_theta, scaling.factor, model.dim)
        if base > float(np.finfo(np.float32).max):
            raise RopeScalingError(f"rope scaling factor {scaling.factor} takes {name} beyond float32")
        return [
            key_value(name, ValueType.FLOAT32, base),
            key_value(ORIGINAL_FREQ_BASE, ValueType.FLOAT32, model.rope_theta),
            key_value(NTK_FACTOR, ValueType.FLOAT32, scaling.factor),
        ]
    return [key_value(name, ValueType.FLOAT32, model.rope_theta)]


def _dynamic_keys(model: RotaryEmbedding, dynamic: DynamicScaling) -> list[KeyValue]:
    keys = [key_value(model.key("rope.scaling.dynamic"), ValueType.STRING, dynamic.policy)]
    if dynamic.ntk_factor != 1:
        keys.append(_float_key(model, "dynamic_ntk_factor", dynamic.ntk_factor))
    return keys


def _temperature_keys(model: RotaryEmbedding, scaling: RopeScaling) -> list[KeyValue]:
    """attn_factor is what an unpatched llama.cpp honours; by-parts and yarn get the complete set."""
    total = scaling.temperature()
    if scaling.method not in ("by-parts", "yarn", "llama3"):
        return [_float_key(model, "attn_factor", total)] if total != 1 else []
    operand = ggml_attn_factor(total, scaling.factor)
    if scaling.mscale_all_dim and architecture(model.arch).log_multiplier_scale:
        operand = total / _log_multiplier_temperature(model.arch, scaling)  # what upstream multiplies it with
    fast, slow = scaling.beta_fast, scaling.beta_slow
    if scaling.method == "llama3":
        fast, slow = scaling.high_freq_factor, scaling.low_freq_factor
    return [
        _float_key(model, "yarn_beta_fast", fast),
        _float_key(model, "yarn_beta_slow", slow),
        _float_key(
            model,
            "yarn_attn_factor",
            operand if architecture(model.arch).yarn_attn_factor_is_operand else total,
        ),
        _float_key(model, "attn_factor", operand),
        *(
            _float_key(model, f"yarn_{name}", getattr(scaling, name))
            for name in ("mscale", "mscale_all_dim")
            if scaling.method == "yarn" and scaling.mscale and scaling.mscale_all_dim
        ),
    ]


def _log_multiplier_temperature(arch: str, scaling: RopeScaling) -> float:
    """What an unpatched llama.cpp takes for the temperature where a file has yarn_log_multiplier."""
    mscale = scaling.mscale_all_dim if architecture(arch).log_multiplier_is_mscale else 1.0
    return yarn_mscale(scaling.factor, mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)


def _table_keys(model: RotaryEmbedding, scaling: RopeScaling) -> list[KeyValue]:
    """The frequencies themselves, where llama.cpp's rope op cannot derive them, and where they come from."""
    if rope_op_has(scaling):
        return []
    if scaling.method == "longrope":
        for length in (1, None):  # checks both lists
            scaling.frequencies(model.dim, model.rope_theta, seq_len=length)
        keys = [_table_key(model, name, getattr(scaling, name)) for name in ("short_factor", "long_factor")]
        return [*keys, _float_key(model, "longrope_factor", scaling.factor)]
    keys = []
    if scaling.method == "llama3":
        keys = [
            _float_key(model, f"{name}_freq_factor", getattr(scaling, f"{name}_freq_factor"))
            for name in ("low", "high")
        ]
    elif scaling.method != "explicit":
        ramp, truncate = model.key("rope.scaling.yarn_ramp"), model.key("rope.scaling.yarn_truncate")
        keys = [
            key_value(ramp, ValueType.STRING, scaling.ramp),
            key_value(truncate, ValueType.BOOL, scaling.truncate),
        ]
    table = scaling.frequencies(model.dim, model.rope_theta).inv_freq
    return [*keys, _table_key(model, "inv_freq", tuple(table.tolist()))]


def _table_key(model: RotaryEmbedding, name: str, values: tuple[float, ...]) -> KeyValue:
    return key_value(model.key(f"rope.scaling.{name}"), ValueType.ARRAY, values)


def _float_key(model: RotaryEmbedding, name: str, value: float) -> KeyValue:
    return key_value(model.key(f"rope.scaling.{name}"), ValueType.FLOAT32, value)
