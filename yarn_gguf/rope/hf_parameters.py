"""transformers' rope parameters: their names by method, and a scaling written in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope.scaling import RopeScaling

# Our method for each rope_type. "su" is the name in the first longrope checkpoints. "mrope" is Qwen2-VL's: a
# token has several positions, which are all the same in text.
METHODS = {
    "default": "none",
    "mrope": "none",
    "dynamic": "ntk",
    "linear": "linear",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",
}

# fields of RopeScaling with parameters of the same name, by method
PARAMETERS: dict[str, tuple[str, ...]] = {
    "none": (),
    "linear": (),
    "ntk": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"),
    "longrope": ("short_factor", "long_factor", "attention_factor"),
}
NEED_ORIGINAL_CONTEXT = ("yarn", "llama3", "longrope")
FALSY_IS_DEFAULT = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")  # transformers ignores a 0


def rope_parameters(scaling: RopeScaling, rope_theta: float) -> dict[str, Any]:
    """Return transformers' `rope_parameters` for `scaling` and a base.

    by-parts is written as transformers' yarn with an attention_factor of 1. Raises RopeScalingError for a
    scaling that transformers cannot express.
    """
    _require_expressible(scaling)
    if scaling.method == "by-parts":
        scaling = replace(scaling, method="yarn", attention_factor=scaling.temperature())
    rope_type = "default" if scaling.method == "none" else scaling.method
    values: dict[str, Any] = {"rope_type": rope_type, "rope_theta": rope_theta}
    if scaling.method != "none":
        values["factor"] = scaling.factor
    if scaling.method in NEED_ORIGINAL_CONTEXT and scaling.original_max_position_embeddings is not None:
        values["original_max_position_embeddings"] = scaling.original_max_position_embeddings
    for name in PARAMETERS[scaling.method]:
        value = getattr(scaling, name)
        if value is not None:
            values[name] = list(value) if isinstance(value, tuple) else value
    return values


def _require_expressible(scaling: RopeScaling) -> None:
    if scaling.ramp != "index" or scaling.method == "explicit":
        what = scaling.method if scaling.ramp == "index" else f"the ramp by {scaling.ramp}"
        raise RopeScalingError(f"transformers has no rope parameters for {what}")
    if scaling.method == "ntk":
        base = "yarn_gguf.rope.formulas.ntk_base(rope_theta, factor, dim)"
        raise RopeScalingError(f"transformers has no ntk: give it rope_theta = {base}")
    if scaling.attention_factor not in (None, 1.0) and scaling.method in ("none", "linear", "llama3"):
        raise RopeScalingError(f"transformers has no attention_factor for {scaling.method}")
