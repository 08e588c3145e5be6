"""What a llama.cpp without our patches makes of a file's rope keys (tests/test_unpatched.py asks one)."""

from __future__ import annotations

import math

from yarn_gguf.gguf_file import ValueType
from yarn_gguf.gguf_rope import SCALING_TYPES, RopeModel, log_multiplier
from yarn_gguf.rope import yarn_mscale

_READS_BETAS = ("grok", "mistral3")
_READS_EXT_FACTOR = ("grok",)


def unpatched_view(model: RopeModel) -> list[str]:
    """One line for each thing that it does otherwise than the file says; a single one if there is none.

    Needs no sound scaling: of an unsound one it says what happens. Raises GGUFError for a key of a
    wrong type, which llama.cpp refuses too.
    """
    type_ = model.get("rope.scaling.type", ValueType.STRING, "linear")
    if type_ not in SCALING_TYPES:
        return [f"ends the whole process: it does not know {model.key('rope.scaling.type')} = {type_!r}"]
    factor = _float(model, "factor", _scale_linear(model))
    if type_ != "none" and not factor >= 0:
        return [f"loads it without a word and computes nonsense: {_name(model, 'factor')} = {factor:g}"]
    lines = []
    if type_ != "none" and factor == 0 and _name(model, "factor") in model.header.entries:
        lines.append(f"takes {_name(model, 'factor')} = 0 for no scaling, without a word")
    if model.get("rope.scaling.original_context_length", ValueType.UINT32) == 0:
        lines.append(f"takes {_name(model, 'original_context_length')} = 0 for {model.context_length}")
    if model.key("rope.scaling.inv_freq") in model.header.entries:
        lines.append(f"scales by type {type_!r}: it ignores {_name(model, 'inv_freq')}")
    if type_ == "yarn":
        lines += _yarn_lines(model, factor or 1.0)
    return lines or ["scales as the file says"]


# ----------------------------------------------------------------------------------------------


def _yarn_lines(model: RopeModel, factor: float) -> list[str]:
    lines = []
    if model.arch not in _READS_BETAS:
        lines += _ignored(model, "yarn_beta_fast", 32.0) + _ignored(model, "yarn_beta_slow", 1.0)
    if model.arch not in _READS_EXT_FACTOR and _float(model, "yarn_ext_factor", 1.0) >= 0:
        lines += _ignored(model, "yarn_ext_factor", 1.0)
    return lines + _temperature_line(model, factor)


def _temperature_line(model: RopeModel, factor: float) -> list[str]:
    """It overwrites yarn_attn_factor with a value of its own, then multiplies attn_factor in."""
    wanted = _float(model, "yarn_attn_factor", None)
    if wanted is None:
        return []
    if model.arch == "grok":  # there the key holds ggml's operand
        wanted *= yarn_mscale(factor)
    used = _own_temperature(model, factor) * _float(model, "attn_factor", 1.0)
    if math.isclose(used, wanted, rel_tol=1e-6):
        return []
    ignored = f"{_name(model, 'yarn_attn_factor')} = {wanted:.6g}"
    return [f"uses the temperature {used:.6g}: it ignores {ignored}"]


def _own_temperature(model: RopeModel, factor: float) -> float:
    multiplier = log_multiplier(model)
    if not multiplier > 0:
        return yarn_mscale(factor)
    mscale = multiplier if model.arch == "deepseek2" else 1.0
    return yarn_mscale(factor, mscale) / yarn_mscale(factor, multiplier)


def _ignored(model: RopeModel, name: str, default: float) -> list[str]:
    value = _float(model, name, default)
    return [] if value == default else [f"uses {default:g}: it ignores {_name(model, name)} = {value:g}"]


def _scale_linear(model: RopeModel) -> float:
    return model.get("rope.scale_linear", ValueType.FLOAT32, 0.0)


def _float(model: RopeModel, name: str, default: float | None) -> float | None:
    return model.get(f"rope.scaling.{name}", ValueType.FLOAT32, default)


def _name(model: RopeModel, name: str) -> str:
    return model.key(f"rope.scaling.{name}")
