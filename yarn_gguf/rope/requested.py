"""The scaling that a caller asks for, in any of its forms, for the model in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.gguf.header import ValueType
from yarn_gguf.rope.dynamic import DynamicScaling, Scaling, dynamic_of
from yarn_gguf.rope.hf_config import Config
from yarn_gguf.rope.hf_rope import rope_of
from yarn_gguf.rope.read import RopeModel
from yarn_gguf.rope.scaling import EXTENDING_METHODS, RopeScaling

_HF_KEYS = {
    *(
        "rope_type",
        "type",
        "rope_theta",
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
    ),
    *("attention_factor", "mscale", "mscale_all_dim", "truncate", "low_freq_factor", "high_freq_factor"),
    *("short_factor", "long_factor", "partial_rotary_factor"),
}

RequestedScaling = RopeScaling | DynamicScaling | str | dict[str, Any]


def requested_scaling(asked: RequestedScaling, model: RopeModel, n_ctx: int) -> Scaling:
    """Return the scaling that is asked for, with the model's original context where it names none.

    asked: a scaling; the name "yarn", "linear", "ntk" or "by-parts", with the factor that makes `n_ctx`
    tokens fit; "dynamic-yarn" and the like; "none"; or Hugging Face's rope_parameters, a dict such as
    {"rope_type": "yarn", "factor": 4.0}. Raises RopeScalingError.
    """
    if isinstance(asked, dict):
        scaling = _from_hf(asked, model)
    elif isinstance(asked, str):
        scaling = _by_name(asked, model, n_ctx)
    elif isinstance(asked, RopeScaling | DynamicScaling):
        scaling = asked
    else:
        raise RopeScalingError(
            "rope_scaling must be a RopeScaling, a DynamicScaling, a name or Hugging Face's dict, "
            f"got {asked!r}"
        )
    scaling = scaling.with_original_context(model.original_context)
    scaling.check(model.dim, model.rope_theta)
    return scaling


def by_length(scaling: RopeScaling) -> Scaling:
    """Return the scaling as transformers applies it: LongRoPE's factors are those of the text's length."""
    is_longrope = scaling.method == "longrope" and scaling.factor > 1
    return DynamicScaling(scaling) if is_longrope else scaling


def static_part(scaling: Scaling) -> RopeScaling:
    """Return the static scaling that a context is made with: under dynamic scaling none."""
    return scaling if isinstance(scaling, RopeScaling) else RopeScaling("none")


def replaced_scaling(model: RopeModel, scaling: Scaling) -> RopeScaling | None:
    """Return the scaling that the model was trained with, if `scaling` takes its place; else None.

    The file's scaling may be unsound: then it counts as none.
    """
    try:
        own = model.scaling
    except RopeScalingError:
        return None
    return own if own.is_trained_in and scaling not in (own, by_length(own)) else None


def require_own_base(scaling: Scaling, model: RopeModel, rope_freq_base: float) -> None:
    """Raise RopeScalingError for a dynamic scaling in a context that was made with another base.

    rope_freq_base: of the context; 0 for the file's.
    """
    base = rope_freq_base or model.get("rope.freq_base", ValueType.FLOAT32, model.rope_theta)
    if isinstance(scaling, DynamicScaling) and np.float32(base) != np.float32(model.rope_theta):
        raise RopeScalingError(
            f"{model.path}: opened with a rotary base of {base:g}, where the model's is "
            f"{model.rope_theta:g}: open it with the dynamic scaling, or with rope_scaling='none'"
        )


# ----------------------------------------------------------------------------------------------


def _by_name(name: str, model: RopeModel, n_ctx: int) -> Scaling:
    if (dynamic := dynamic_of(name)) is not None:
        return dynamic
    if name == "none":
        return RopeScaling("none")
    if name not in EXTENDING_METHODS:
        known = ", ".join(EXTENDING_METHODS)
        raise RopeScalingError(
            f"rope_scaling must be one of none, {known}, or dynamic- and one of these, got {name!r}; for "
            "another factor: RopeScaling('yarn', 4)"
        )
    if n_ctx <= 0:
        raise RopeScalingError(f"rope_scaling={name!r} takes its factor from n_ctx: give n_ctx")
    factor = max(1.0, n_ctx / model.original_context)
    return RopeScaling(name, factor)


def _from_hf(parameters: dict[str, Any], model: RopeModel) -> Scaling:
    """Read rope_parameters as those of a checkpoint with the model's dimensions, base and context."""
    theta = parameters.get("rope_theta", model.rope_theta)
    if not isinstance(theta, int | float) or np.float32(theta) != np.float32(model.rope_theta):
        raise RopeScalingError(
            f"rope_scaling: rope_theta must be the model's {model.rope_theta:g}, got {theta!r}: leave it out"
        )
    if unknown := sorted(map(str, parameters.keys() - _HF_KEYS)):
        raise RopeScalingError(f"rope_scaling: {unknown[0]!r} is none of {', '.join(sorted(_HF_KEYS))}")
    for name, value in parameters.items():
        if isinstance(value, dict):
            raise RopeScalingError(f"rope_scaling: {name} must be a single value, got {value!r}")
    rope_type = parameters.get("rope_type") or parameters.get("type")
    if rope_type is None or (rope_type != "default" and parameters.get("factor") is None):
        missing = "rope_type" if rope_type is None else "factor"
        raise RopeScalingError(f"rope_scaling: {missing} is missing in {parameters!r}: give it")
    original = {"original_max_position_embeddings": model.original_context}
    config = {
        "head_dim": model.dim,
        "max_position_embeddings": model.original_context,
        "rope_theta": model.rope_theta,
        "rope_parameters": original | parameters | {"partial_rotary_factor": 1.0},
    }
    rope = rope_of(Config(Path("rope_scaling"), "", config))
    return rope.dynamic or by_length(rope.scaling)
