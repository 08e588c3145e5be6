"""Write a scaling as the keys of a GGUF file."""

from __future__ import annotations

import numpy as np

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.gguf.header import KeyValue, ValueType, key_value
from yarn_gguf.rope.architectures import architecture
from yarn_gguf.rope.checks import FLOAT32_MAX
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.factor_tensors import has_tensors
from yarn_gguf.rope.formulas import extended_length, ggml_attn_factor, mscale_ratio, ntk_base
from yarn_gguf.rope.gguf_keys import NTK_FACTOR, ORIGINAL_FREQ_BASE
from yarn_gguf.rope.model import RotaryEmbedding
from yarn_gguf.rope.scaling import RopeScaling, rope_op_has

# llama.cpp's type for each of our methods. Without a type, a caller's factor alone has an effect. With keys
# alone, an unpatched llama.cpp computes llama3 as by-parts, the nearest that it can. An explicit table has a
# factor that must not scale there.
_TYPES = {
    "linear": "linear",
    "by-parts": "yarn",
    "yarn": "yarn",
    "llama3": "yarn",
    "longrope": "longrope",
    "explicit": "none",
}
_METHODS_WITH_FACTOR = ("linear", "by-parts", "yarn", "llama3", "explicit")
_UINT32_MAX = int(np.iinfo(np.uint32).max)


def scaling_keys(
    model: RotaryEmbedding,
    scaling: RopeScaling,
    dynamic: DynamicScaling | str | None = None,
    context_length: int | None = None,
    finetuned: bool = False,
) -> list[KeyValue]:
    """Return the keys that make llama.cpp scale as `scaling` says: all of owned_keys that a file needs.

    The file must also have the factor_tensors() of the scaling. Values are rounded to float32.
    scaling: must name its original context.
    dynamic: how the factor follows the length of the text: the policy, or the whole dynamic scaling, which
        has the method of `scaling`. An unpatched llama.cpp takes the factor as it is.
    context_length: tokens that the file is made for. None: the factor times the original context.
    finetuned: whether the model was trained further under this scaling.
    Raises RopeScalingError for a scaling that the model cannot have, or that float32 cannot hold.
    """
    scaling = scaling.as_float32()
    scaling.check(model.dim, model.rope_theta)
    context = scaling.original_context
    length = context_length or _default_length(scaling)
    if length > _UINT32_MAX:
        raise RopeScalingError(f"rope scaling factor {scaling.factor} takes {context} tokens beyond 32 bits")
    keys = [
        key_value(model.key("context_length"), ValueType.UINT32, length),
        *_freq_base_keys(model, scaling),
    ]
    is_in_tensors = has_tensors(model, scaling)
    is_llama3_tensor = is_in_tensors and scaling.method == "llama3"
    if scaling.method in _TYPES and not is_llama3_tensor:
        keys.append(key_value(model.key("rope.scaling.type"), ValueType.STRING, _TYPES[scaling.method]))
    if scaling.method != "none":
        keys.append(key_value(model.key("rope.scaling.original_context_length"), ValueType.UINT32, context))
    if scaling.method in _METHODS_WITH_FACTOR and not is_llama3_tensor:
        keys.append(_float_key(model, "factor", scaling.factor))
    if isinstance(dynamic, str):
        dynamic = DynamicScaling(scaling, dynamic)
    if dynamic is not None:
        keys += _dynamic_keys(model, dynamic)
    if finetuned:
        keys.append(key_value(model.key("rope.scaling.finetuned"), ValueType.BOOL, True))
    if is_llama3_tensor:
        return keys + _llama3_tensor_keys(model, scaling)
    return keys + _temperature_keys(model, scaling) + _table_keys(model, scaling, is_in_tensors)


# ----------------------------------------------------------------------------------------------


def _default_length(scaling: RopeScaling) -> int:
    if scaling.method == "none":
        return scaling.original_context
    return extended_length(scaling.factor, scaling.original_context)


def _freq_base_keys(model: RotaryEmbedding, scaling: RopeScaling) -> list[KeyValue]:
    name = model.key("rope.freq_base")
    if scaling.method != "ntk":
        return [key_value(name, ValueType.FLOAT32, model.rope_theta)]
    base = ntk_base(model.rope_theta, scaling.factor, model.dim)
    if base > FLOAT32_MAX:
        raise RopeScalingError(f"rope scaling factor {scaling.factor} takes {name} beyond float32")
    return [
        key_value(name, ValueType.FLOAT32, base),
        key_value(ORIGINAL_FREQ_BASE, ValueType.FLOAT32, model.rope_theta),
        key_value(NTK_FACTOR, ValueType.FLOAT32, scaling.factor),
    ]


def _dynamic_keys(model: RotaryEmbedding, dynamic: DynamicScaling) -> list[KeyValue]:
    keys = [key_value(model.key("rope.scaling.dynamic"), ValueType.STRING, dynamic.policy)]
    if dynamic.ntk_factor != 1:
        keys.append(_float_key(model, "dynamic_ntk_factor", dynamic.ntk_factor))
    return keys


def _temperature_keys(model: RotaryEmbedding, scaling: RopeScaling) -> list[KeyValue]:
    """Return attn_factor, which an unpatched llama.cpp multiplies in, and for YaRN's type all its keys."""
    total = scaling.temperature()
    if _TYPES.get(scaling.method) != "yarn":
        return [_float_key(model, "attn_factor", total)] if total != 1 else []
    facts = architecture(model.arch)
    operand = ggml_attn_factor(total, scaling.factor)
    if scaling.mscale_all_dim and facts.log_multiplier_scale:
        # the converter writes a log multiplier too, from which llama.cpp makes this temperature
        mscale = facts.mscale_beside(scaling.mscale_all_dim)
        operand = total / mscale_ratio(scaling.factor, mscale, scaling.mscale_all_dim)
    slow, fast = scaling.rotation_bounds
    keys = [
        _float_key(model, "yarn_beta_fast", fast),
        _float_key(model, "yarn_beta_slow", slow),
        _float_key(model, "yarn_attn_factor", operand if facts.yarn_attn_factor_is_operand else total),
        _float_key(model, "attn_factor", operand),
    ]
    if scaling.method == "yarn" and scaling.mscale and scaling.mscale_all_dim:
        keys.append(_float_key(model, "yarn_mscale", scaling.mscale))
        keys.append(_float_key(model, "yarn_mscale_all_dim", scaling.mscale_all_dim))
    return keys


def _llama3_tensor_keys(model: RotaryEmbedding, scaling: RopeScaling) -> list[KeyValue]:
    """Return what the tensor rope_freqs.weight does not say. llama.cpp itself reads attn_factor alone."""
    low, high = scaling.rotation_bounds
    values = {"low_freq_factor": low, "high_freq_factor": high, "llama3_factor": scaling.factor}
    if scaling.temperature() != 1:
        values["attn_factor"] = scaling.temperature()
    return [_float_key(model, name, value) for name, value in values.items()]


def _table_keys(model: RotaryEmbedding, scaling: RopeScaling, is_in_tensors: bool) -> list[KeyValue]:
    """Return the frequencies that llama.cpp's rope op cannot derive, and the values that they come from."""
    if rope_op_has(scaling):
        return []
    if scaling.method == "longrope":
        names = () if is_in_tensors else ("short_factor", "long_factor")
        keys = [_table_key(model, name, getattr(scaling, name)) for name in names]
        return [*keys, _float_key(model, "longrope_factor", scaling.factor)]
    keys = []
    if scaling.method == "llama3":
        low, high = scaling.rotation_bounds
        keys = [_float_key(model, "low_freq_factor", low), _float_key(model, "high_freq_factor", high)]
    elif scaling.has_ramp:
        keys = [
            key_value(model.key("rope.scaling.yarn_ramp"), ValueType.STRING, scaling.ramp),
            key_value(model.key("rope.scaling.yarn_truncate"), ValueType.BOOL, scaling.truncate),
        ]
    table = scaling.frequencies(model.dim, model.rope_theta).inv_freq
    return [*keys, _table_key(model, "inv_freq", tuple(table.tolist()))]


def _table_key(model: RotaryEmbedding, name: str, values: tuple[float, ...]) -> KeyValue:
    return key_value(model.key(f"rope.scaling.{name}"), ValueType.ARRAY, values)


def _float_key(model: RotaryEmbedding, name: str, value: float) -> KeyValue:
    return key_value(model.key(f"rope.scaling.{name}"), ValueType.FLOAT32, value)
