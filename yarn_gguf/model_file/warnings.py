"""Warn of keys in a file that are missing, without effect, or contradictory."""

from __future__ import annotations

from yarn_gguf.gguf.header import ValueType
from yarn_gguf.rope.architectures import architecture
from yarn_gguf.rope.factor_tensors import FREQ_FACTORS, LONG_FACTORS
from yarn_gguf.rope.layers import layer_kinds
from yarn_gguf.rope.read import DEFAULT_FREQ_BASE, RopeModel

_YARN_KEYS = ("yarn_beta_fast", "yarn_beta_slow", "yarn_attn_factor", "yarn_ext_factor")
_LONG = 8192  # tokens; models that are trained on more have a larger base, or a scaling
_REMEDY = "yarn-gguf extend writes a sound set"


def warnings(model: RopeModel) -> list[str]:
    """Return one line for each thing that looks wrong. Raises RopeScalingError for an unsound scaling."""
    scaling = model.scaling
    original = model.key("rope.scaling.original_context_length")
    context = model.key("context_length")
    lines = _factor_tensors(model) + _idle_yarn_keys(model) + _unscaled(model) + _unreached(model)
    needs_original = scaling.has_ramp or scaling.method == "llama3"
    if needs_original and original not in model.header.entries:
        lines.append(
            f"{original} is missing: {context} = {model.context_length} is taken for the trained context; "
            f"{_REMEDY}"
        )
    elif model.context_length != model.usable_context:
        usable = f"factor x original context = {model.usable_context}"
        lines.append(f"{context} = {model.context_length}, but {usable}; {_REMEDY}")
    return lines


def _unscaled(model: RopeModel) -> list[str]:
    """Warn of an unscaled file that a converter probably left without the checkpoint's base or scaling."""
    if model.scaling.method != "none":
        return []
    lines, base = [], model.key("rope.freq_base")
    type_ = model.get("rope.scaling.type", ValueType.STRING)
    if type_ is None and model.original_context < model.context_length:
        lines.append(
            f"{model.key('context_length')} = {model.context_length} is beyond the original context of "
            f"{model.original_context}, and the file asks for no scaling: yarn-gguf extend --from-hf gives "
            "it that of the checkpoint"
        )
    if base not in model.header.entries and model.context_length > _LONG:
        lines.append(
            f"{base} is missing: {DEFAULT_FREQ_BASE:g} is taken, which is rare in a model of "
            f"{model.context_length} tokens: if the checkpoint has another rope_theta, convert it again"
        )
    return lines


def _unreached(model: RopeModel) -> list[str]:
    """Warn of a scaling that reaches no layer. NTK-aware scaling changes the base, which may reach others."""
    kinds = layer_kinds(model)
    if model.scaling.method in ("none", "ntk") or not kinds or any(each.scaled for each in kinds):
        return []
    return [
        f"{model.scaling.method} scaling has no effect: a {model.arch} model rotates only layers with a "
        "sliding window, and leaves these unscaled; its other layers need no scaling for a longer text"
    ]


def _idle_yarn_keys(model: RopeModel) -> list[str]:
    """Warn of YaRN's parameters in a file whose scaling type is not YaRN: they have no effect."""
    prefix = model.key("rope.scaling.")
    type_ = model.get("rope.scaling.type", ValueType.STRING)
    found = [name for name in _YARN_KEYS if prefix + name in model.header.entries]
    if type_ == "yarn" or not found:
        return []
    is_type = f"{prefix}type is " + ("missing" if type_ is None else repr(type_))
    return [f"{prefix}{found[0]} has no effect, since {is_type}; {_REMEDY}"]


def _factor_tensors(model: RopeModel) -> list[str]:
    """Warn of a tensor of rope factors that llama.cpp ignores or refuses for this architecture."""
    facts = architecture(model.arch)
    for name, treatment in {FREQ_FACTORS: facts.freq_factors, LONG_FACTORS: facts.longrope_factors}.items():
        if name in model.header.tensors and treatment != "uses":
            does = "ignores" if treatment == "ignores" else "refuses a file with"
            return [
                f"llama.cpp {does} the tensor {name} in a {model.arch} model: convert it without, and "
                "give it the checkpoint's scaling with yarn-gguf extend --from-hf"
            ]
    return []
