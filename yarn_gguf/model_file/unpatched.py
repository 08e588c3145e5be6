"""Describe what a llama.cpp without our patches does with a file's rope keys.

tests/model_file/test_unpatched.py compares the description with such a library.
"""

from __future__ import annotations

import math

from yarn_gguf.gguf.header import ValueType
from yarn_gguf.rope.architectures import architecture
from yarn_gguf.rope.factor_tensors import LONG_FACTORS
from yarn_gguf.rope.formulas import ggml_attn_factor, mscale_ratio, yarn_mscale
from yarn_gguf.rope.gguf_keys import ORIGINAL_FREQ_BASE, SCALING_TYPES
from yarn_gguf.rope.gguf_read import log_multiplier
from yarn_gguf.rope.read import RopeModel


def unpatched_view(model: RopeModel) -> list[str]:
    """Return one line for each difference between the file and what an unpatched llama.cpp does.

    Without a difference, the single line is "scales as the file says". The scaling may be unsound: then
    the lines say what happens. Raises GGUFError for a key of a wrong type, which llama.cpp refuses too.
    """
    type_ = model.get("rope.scaling.type", ValueType.STRING, "linear")
    if type_ not in SCALING_TYPES:
        return [f"ends the whole process: it does not know {model.key('rope.scaling.type')} = {type_!r}"]
    factor = _float(model, "factor", model.get("rope.scale_linear", ValueType.FLOAT32, 0.0))
    if type_ != "none" and not factor >= 0:
        return [f"loads it without a word and computes nonsense: {_name(model, 'factor')} = {factor:g}"]
    lines = []
    if type_ != "none" and factor == 0 and model.has("rope.scaling.factor"):
        lines.append(f"takes {_name(model, 'factor')} = 0 for no scaling, without a word")
    if model.get("rope.scaling.original_context_length", ValueType.UINT32) == 0:
        lines.append(f"takes {_name(model, 'original_context_length')} = 0 for {model.context_length}")
    if model.has("rope.scaling.inv_freq"):
        lines.append(f"scales by type {type_!r}: it ignores {_name(model, 'inv_freq')}")
    if model.has("rope.scaling.long_factor") and LONG_FACTORS not in model.header.tensors:
        lines.append(f"does not scale: it ignores {_name(model, 'short_factor')} and long_factor")
    if type_ == "yarn":
        lines += _yarn_lines(model, factor or 1.0)
    if type_ == "linear" and factor > 1 and architecture(model.arch).scales_logits:
        lines.append(f"multiplies attention logits by {yarn_mscale(factor) ** 2:.6g}, as if this were YaRN")
    if ORIGINAL_FREQ_BASE in model.header.entries and _gives_windows_the_base(model):
        lines.append("gives layers with a sliding window, which are not scaled, the larger base of NTK")
    if model.has("rope.scaling.dynamic"):
        lines.append(f"scales every text by the whole factor: it ignores {_name(model, 'dynamic')}")
    return lines or ["scales as the file says"]


# ----------------------------------------------------------------------------------------------


def _yarn_lines(model: RopeModel, factor: float) -> list[str]:
    lines = []
    if not architecture(model.arch).reads_betas:
        lines += _ignored(model, "yarn_beta_fast", 32.0) + _ignored(model, "yarn_beta_slow", 1.0)
    if not architecture(model.arch).reads_ext_factor and _float(model, "yarn_ext_factor", 1.0) >= 0:
        lines += _ignored(model, "yarn_ext_factor", 1.0)
    return lines + _temperature_line(model, factor)


def _temperature_line(model: RopeModel, factor: float) -> list[str]:
    """Return the line, if any, about the temperature.

    An unpatched llama.cpp overwrites yarn_attn_factor with its own value, then multiplies it by attn_factor.
    """
    wanted = _float(model, "yarn_attn_factor", 1.0)
    if not model.has("rope.scaling.yarn_attn_factor"):
        return []
    if architecture(model.arch).yarn_attn_factor_is_operand:
        wanted *= yarn_mscale(factor)
    used = _own_temperature(model, factor) * _float(model, "attn_factor", 1.0)
    lines = _temperature_out_of_place(model, factor, used)
    if not math.isclose(used, wanted, rel_tol=1e-6):
        ignored = f"{_name(model, 'yarn_attn_factor')} = {wanted:.6g}"
        lines.append(f"uses the temperature {used:.6g}: it ignores {ignored}")
    return lines


def _temperature_out_of_place(model: RopeModel, factor: float, used: float) -> list[str]:
    if architecture(model.arch).scales_logits and not math.isclose(used, 1, rel_tol=1e-6):
        return [f"multiplies the temperature {used:.6g} into the unrotated part of each head as well"]
    operand = ggml_attn_factor(used, factor)
    if architecture(model.arch).windows_get_attn_factor and not math.isclose(operand, 1, rel_tol=1e-6):
        return [f"gives layers with a sliding window, which are not scaled, the temperature {operand:.6g}"]
    return []


def _gives_windows_the_base(model: RopeModel) -> bool:
    return architecture(model.arch).windows_get_base and model.has("attention.sliding_window")


def _own_temperature(model: RopeModel, factor: float) -> float:
    multiplier = log_multiplier(model)
    if not multiplier > 0:
        return yarn_mscale(factor)
    return mscale_ratio(factor, architecture(model.arch).mscale_beside(multiplier), multiplier)


def _ignored(model: RopeModel, name: str, default: float) -> list[str]:
    value = _float(model, name, default)
    return [] if value == default else [f"uses {default:g}: it ignores {_name(model, name)} = {value:g}"]


def _float(model: RopeModel, name: str, default: float) -> float:
    return model.get(f"rope.scaling.{name}", ValueType.FLOAT32, default)


def _name(model: RopeModel, name: str) -> str:
    return model.key(f"rope.scaling.{name}")
