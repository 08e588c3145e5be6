"""Read the rotary embedding of a Hugging Face checkpoint out of its config.json.

Reads transformers 5's `rope_parameters` and the older `rope_scaling`, with `rope_type` or `type`, flat or by
layer type. A value that several places may hold is looked for in the order of transformers 5.23
(modeling_rope_utils.RotaryEmbeddingConfigMixin).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.hf_config import SECTIONS, Config, config_of, read_config
from yarn_gguf.rope.hf_parameters import FALSY_IS_DEFAULT, METHODS, NEED_ORIGINAL_CONTEXT, PARAMETERS
from yarn_gguf.rope.scaling import RopeScaling

_DEFAULT_THETA = 10000.0
_BY_LAYER_TYPE = ("gemma3_text", "gemma3n_text", "olmo3", "step3p5")  # model types that lose flat parameters
_SAYS_YARN_FOR_LONGROPE = ("phi3", "phi4_multimodal")  # model types, in early checkpoints


@dataclass(frozen=True)
class HFRope:
    """The rotary embedding that a checkpoint's config.json describes.

    scaling: of the full-attention layers.
    rope_theta, sliding_rope_theta: the base of the full-attention layers, and of those with a sliding window.
        The latter are unscaled. sliding_rope_theta is None if the config does not tell them apart.
    dim: rotary dimensions of a head.
    max_position_embeddings: tokens.
    original_context: tokens; any other scaling starts from this length.
    finetuned: whether the checkpoint was trained further under its scaling.
    dynamic: how the factor follows the length of the text (transformers' "dynamic"), else None. `scaling` is
        then the static one with the same factor.
    """

    path: Path
    scaling: RopeScaling
    rope_theta: float
    dim: int
    max_position_embeddings: int
    original_context: int
    sliding_rope_theta: float | None = None
    finetuned: bool = False
    dynamic: DynamicScaling | None = None

    def dynamic_by(self, policy: str | None) -> DynamicScaling | str | None:
        """Return how the factor is to follow the text: as the checkpoint says, but by `policy` if given."""
        if self.dynamic is None or policy is None:
            return policy or self.dynamic
        return replace(self.dynamic, policy=policy)


def read_hf_rope(folder: str | Path) -> HFRope:
    """Read config.json in `folder` (or that file itself). Raises RopeScalingError or OSError."""
    return rope_of(read_config(folder))


def hf_rope(config: dict[str, Any]) -> HFRope:
    """Return the rotary embedding from the values of a config.json in memory. Raises RopeScalingError."""
    return rope_of(config_of(config))


def scaling_from_hf(config: dict[str, Any] | str | Path) -> RopeScaling:
    """Return the static scaling of a checkpoint.

    config: the values of a config.json, the checkpoint's folder, or the file itself.
    Raises RopeScalingError, also for a dynamic scaling; OSError.
    """
    rope = hf_rope(config) if isinstance(config, dict) else read_hf_rope(config)
    if rope.dynamic is not None:
        way = f"DynamicScaling.of('ntk', ntk_factor={rope.dynamic.ntk_factor:g})"
        raise RopeScalingError(f"{rope.path}: rope_type 'dynamic' is no static scaling: it is {way}")
    return rope.scaling


def rope_of(config: Config) -> HFRope:
    """Return the rotary embedding that a config describes. Raises RopeScalingError."""
    _refuse_two_sections(config)
    nested = config.section(next((name for name in SECTIONS if config.values.get(name)), SECTIONS[-1]))
    full, sliding, context_of = nested, None, config
    if _is_by_layer_type(nested):
        if not isinstance(nested.values.get("full_attention"), dict):
            nested.refuse("full_attention", "an object: the others are of other layers")
        full, sliding = nested.section("full_attention"), nested.section("sliding_attention")
        context_of = full  # transformers does not look outside then
    theta = full.number("rope_theta", _rope_theta(config))
    _refuse_flat_parameters(config, nested, theta)
    dim = _rotary_dimensions(config, full)
    _refuse_lost_values(config, full, theta, dim)
    context = config.whole("max_position_embeddings")
    scaling = _scaling(config, full, context, context_of)
    with full.locating_errors():
        scaling.check(dim, theta)
    original = scaling.original_max_position_embeddings or _unscaled_context(config, scaling, context)
    dynamic = None
    if scaling.method == "ntk":
        dynamic = DynamicScaling.of(
            "ntk", original_max_position_embeddings=original, ntk_factor=scaling.factor
        )
    return HFRope(
        path=config.path,
        scaling=scaling,
        rope_theta=theta,
        dim=dim,
        max_position_embeddings=context,
        original_context=original,
        sliding_rope_theta=_sliding_theta(config, sliding),
        finetuned=full.values.get("finetuned") is True,
        dynamic=dynamic,
    )


# ----------------------------------------------------------------------------------------------


def _is_by_layer_type(section: Config) -> bool:
    return any(isinstance(value, dict) for value in section.values.values())


def _refuse_two_sections(config: Config) -> None:
    """Raise RopeScalingError for rope_scaling beside rope_parameters by layer type.

    Some models of transformers merge the two, others drop the second.
    """
    if config.values.get("rope_scaling") and _is_by_layer_type(config.section("rope_parameters")):
        config.refuse("rope_scaling", "left out: rope_parameters, by layer type, is where it belongs")


def _refuse_flat_parameters(config: Config, section: Config, theta: float) -> None:
    """Raise RopeScalingError if rope_parameters should be by layer type, and a value of it would be lost.

    transformers then takes the defaults of each layer type instead.
    """
    is_older = section.values is not config.section("rope_parameters").values
    if is_older or _is_by_layer_type(section) or config.values.get("model_type") not in _BY_LAYER_TYPE:
        return
    if _rope_type(section) != "default" or theta != _rope_theta(config):
        config.refuse("rope_parameters", "by layer type: put these values into full_attention within it")


def _refuse_lost_values(config: Config, section: Config, theta: float, dim: int) -> None:
    """Raise RopeScalingError if rope_parameters has another base, or other dimensions, than what counts.

    That happens when the older rope_scaling was added beside it. transformers then drops rope_parameters.
    """
    dropped = config.section("rope_parameters")
    if section.values is dropped.values or not config.values.get("rope_scaling"):
        return
    for name, has, counts in (
        ("rope_theta", dropped.number("rope_theta", theta), theta),
        ("partial_rotary_factor", _rotary_dimensions(config, dropped), dim),
    ):
        if dropped.values.get(name) is not None and has != counts:
            raise RopeScalingError(
                f"{config.path}: rope_parameters.{name} is {dropped.values[name]!r}, and is lost beside "
                "rope_scaling, in transformers too: move the values of rope_scaling into rope_parameters"
            )


def _rope_theta(config: Config) -> float:
    """Return the base outside the section of scaling. GPT-NeoX calls it rotary_emb_base."""
    return config.number("rope_theta", config.number("rotary_emb_base", _DEFAULT_THETA))


def _rotary_dimensions(config: Config, section: Config) -> int:
    """Return the rotary dimensions of a head, as transformers finds them.

    They are MLA's own rotary part, a fraction of a head, or a number (MiniMax-M2).
    """
    if config.values.get("qk_rope_head_dim"):
        return config.whole("qk_rope_head_dim")
    if config.values.get("head_dim") is None:
        head = config.whole("hidden_size") // config.whole("num_attention_heads")
    else:
        head = config.whole("head_dim")
    names = ((section, "partial_rotary_factor"), (config, "partial_rotary_factor"), (config, "rotary_pct"))
    place, name = next((each for each in names if each[0].values.get(each[1]) is not None), names[0])
    if place.values.get(name) is None and config.values.get("rotary_dim") is not None:
        return min(head, config.whole("rotary_dim"))
    fraction = place.number(name, 1.0)
    if not 0 < fraction <= 1:
        place.refuse(name, "a number > 0 and at most 1")
    return int(head * fraction)


def _sliding_theta(config: Config, sliding: Config | None) -> float | None:
    """Return the base of layers with a sliding window. Raises RopeScalingError if they are scaled."""
    local = config.values.get("rope_local_base_freq")
    local = None if local is None else config.number("rope_local_base_freq")
    if sliding is None:
        return local
    if _rope_type(sliding) != "default":
        name = "rope_type" if sliding.values.get("rope_type") else "type"
        sliding.refuse(name, "'default': layers with a sliding window cannot be scaled")
    return sliding.number("rope_theta", _rope_theta(config) if local is None else local)


# ---- the scaling -----------------------------------------------------------------------------


def _rope_type(section: Config) -> Any:
    return section.values.get("rope_type") or section.values.get("type") or "default"


def _scaling(config: Config, section: Config, context: int, context_of: Config) -> RopeScaling:
    """Return the scaling of a section.

    context: max_position_embeddings. context_of: where original_max_position_embeddings is looked for first.
    """
    method = _method(config, section)
    values: dict[str, Any] = {}
    for name in PARAMETERS[method]:
        value = section.values.get(name)
        if value is not None and not (name in FALSY_IS_DEFAULT and not value):
            values[name] = tuple(value) if isinstance(value, list) else value
    if method in NEED_ORIGINAL_CONTEXT:
        values["original_max_position_embeddings"] = _original_context(context_of, section, context)
    if method == "longrope" and section.values.get("long_mscale") is not None:
        values["attention_factor"] = _longrope_mscale(section)
    if method != "none":
        values["factor"] = _factor(section, method, context, values)
    with section.locating_errors():
        if method == "yarn" and values.get("attention_factor") == 1:
            method, values = "by-parts", {**values, "attention_factor": None}
        return RopeScaling(method, **values)


def _method(config: Config, section: Config) -> str:
    """Return our method for the section's rope_type. Raises RopeScalingError for one that we lack."""
    rope_type = _rope_type(section)
    if not isinstance(rope_type, str) or rope_type not in METHODS:
        name = "rope_type" if "rope_type" in section.values else "type"
        section.refuse(name, f"one of {', '.join(METHODS)}")
    method = METHODS[rope_type]
    if method == "none" and section.values.get("factor") not in (None, 1):
        section.refuse("factor", f"left out, or its method named: rope_type {rope_type!r} ignores it")
    is_early_phi_3 = config.values.get("model_type") in _SAYS_YARN_FOR_LONGROPE and method == "yarn"
    if is_early_phi_3 and section.values.get("long_factor") is not None:
        method = "longrope"
    if method not in ("none", "yarn") and section.values.get("mscale_all_dim"):
        section.refuse("mscale_all_dim", "left out: no file can ask for it without yarn")
    if method == "ntk" and section.values.get("alpha"):
        section.refuse("alpha", "left out: a base that it stretches, whatever the length, is the rope_theta")
    return method


def _original_context(config: Config, section: Config, context: int) -> int:
    """Return the original context; `context` (max_position_embeddings) if no place has it."""
    name = "original_max_position_embeddings"
    return (config if config.values.get(name) else section).whole(name, context)


def _longrope_mscale(section: Config) -> float:
    """Return the temperature of Phi-3.5-MoE, which gives one for each list of factors.

    Raises RopeScalingError if they differ.
    """
    mscale = section.number("long_mscale")
    if section.values.get("short_mscale") != mscale:
        section.refuse("short_mscale", f"the same as long_mscale = {mscale}: a file has one temperature")
    return mscale


def _factor(section: Config, method: str, context: int, values: dict[str, Any]) -> float:
    """Return the factor. yarn and longrope may leave it to the ratio of the two contexts.

    Under longrope the factor sets only the temperature. A ratio below 1 leaves that at 1.
    """
    if section.values.get("factor") is not None or method not in ("yarn", "longrope"):
        return section.number("factor")
    ratio = context / values["original_max_position_embeddings"]
    return max(1.0, ratio) if method == "longrope" else ratio


def _unscaled_context(config: Config, scaling: RopeScaling, context: int) -> int:
    """Return the original context of a checkpoint that does not name it.

    Under linear scaling max_position_embeddings is the extended context in Together's, DeepSeek-Coder's and
    Gemma 3's checkpoints. Vicuna's have the extended context in max_sequence_length.
    """
    if scaling.method != "linear":
        return context
    return max(1, round(config.whole("max_sequence_length", context) / scaling.factor))
