"""The rotary embedding of a Hugging Face checkpoint: config.json -> RopeScaling, and back.

Reads transformers 5's `rope_parameters` and the older `rope_scaling`, with `rope_type` or `type`, flat or
by layer type. Where values may stand in several places, the order is that of transformers 5.23
(modeling_rope_utils.RotaryEmbeddingConfigMixin).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.scaling import RopeScaling

DEFAULT_THETA = 10000.0

_SECTIONS = ("rope_scaling", "rope_parameters")

# rope_type -> method. "su" is what the first longrope checkpoints said; "mrope" is Qwen2-VL's, of positions
# that are all the same in text.
_METHODS = {
    "default": "none",
    "mrope": "none",
    "dynamic": "ntk",
    "linear": "linear",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",
}
_YARN = ("beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim")
_PARAMETERS = {
    "none": (),
    "linear": (),
    "ntk": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": _YARN,
    "longrope": ("short_factor", "long_factor", "attention_factor"),
}
# what transformers takes for values that a config.json leaves out, where no other does, by model_type
_GEMMA_3 = {
    "num_attention_heads": 8,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
}
_GPT_OSS = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
_DEFAULTS = {
    "gemma2": {"head_dim": 256},
    "gemma3": _GEMMA_3,
    "gemma3_text": _GEMMA_3,
    "gpt_neox": {"rotary_pct": 0.25},
    "gpt_oss": {"head_dim": 64, "rope_theta": 150000.0, "rope_parameters": _GPT_OSS},
    "olmo3": {"rope_theta": 500000.0},
    "qwen3": {"head_dim": 128},
    "smollm3": {"rope_theta": 2000000.0},
}
_HUGE = 1e30  # what no config.json means; infinity and integers that no float holds are more
_NEEDS_ORIGINAL_CONTEXT = ("yarn", "llama3", "longrope")
_SAYS_YARN_FOR_LONGROPE = ("phi3", "phi4_multimodal")  # in early checkpoints
# transformers takes 0 and null of these for "not given"
_FALSY_IS_DEFAULT = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")


@dataclass(frozen=True)
class HFRope:
    """What a checkpoint's config.json says of its rotary embedding.

    dim: rotary dimensions of a head. scaling: that of the full-attention layers; those with a sliding
    window are unscaled, with the base sliding_rope_theta, where the config tells them apart (else None).
    max_position_embeddings, original_context: tokens, of which the latter is what any other scaling starts
    from. finetuned: whether the checkpoint was trained further under its scaling. dynamic: how its factor
    follows the length of the text, where it does (transformers' "dynamic"); scaling is then the static one
    of the same factor.
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
        """How the factor is to follow the text: by `policy`, where that is given."""
        if self.dynamic is None or policy is None:
            return policy or self.dynamic
        return replace(self.dynamic, policy=policy)


def read_hf_rope(folder: str | Path) -> HFRope:
    """Read config.json in `folder` (or that file itself). Raises RopeScalingError or OSError."""
    return rope_of(read_config(folder))


def read_config(folder: str | Path) -> Config:
    """config.json in `folder` (or that file itself), text_config's values outermost, defaults filled in."""
    path = Path(folder)
    path = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RopeScalingError(f"{path}: no JSON ({error}): download it again") from error
    if not isinstance(values, dict):
        raise RopeScalingError(f"{path}: a JSON object is expected, got {type(values).__name__}")
    return _outermost(path, values)


def hf_rope(config: dict[str, Any]) -> HFRope:
    """As read_hf_rope, from the values of a config.json in memory."""
    return rope_of(_outermost(Path("config.json"), config))


def scaling_from_hf(config: dict[str, Any] | str | Path) -> RopeScaling:
    """Return the static scaling of a checkpoint: of config.json's values, of its folder, or of that file.

    Raises RopeScalingError, also for a dynamic one; OSError.
    """
    rope = hf_rope(config) if isinstance(config, dict) else read_hf_rope(config)
    if rope.dynamic is not None:
        way = f"DynamicScaling.of('ntk', ntk_factor={rope.dynamic.ntk_factor:g})"
        raise RopeScalingError(f"{rope.path}: rope_type 'dynamic' is no static scaling: it is {way}")
    return rope.scaling


def rope_parameters(scaling: RopeScaling, rope_theta: float) -> dict[str, Any]:
    """transformers' `rope_parameters` for `scaling`; by-parts is its yarn with an attention_factor of 1.

    Of ntk it knows the base alone. Raises RopeScalingError for what it cannot express.
    """
    if scaling.ramp != "index" or scaling.method == "explicit":
        what = scaling.method if scaling.ramp == "index" else f"the ramp by {scaling.ramp}"
        raise RopeScalingError(f"transformers has no rope parameters for {what}")
    if scaling.method == "ntk":
        raise RopeScalingError(
            "transformers has no ntk: give it rope_theta = yarn_gguf.rope.ntk_base(rope_theta, factor, dim)"
        )
    if scaling.attention_factor not in (None, 1.0) and scaling.method in ("none", "linear", "llama3"):
        raise RopeScalingError(f"transformers has no attention_factor for {scaling.method}")
    if scaling.method == "by-parts":
        scaling = replace(scaling, method="yarn", attention_factor=scaling.temperature())
    types = {"none": "default"}
    values = {"rope_type": types.get(scaling.method, scaling.method), "rope_theta": rope_theta}
    if scaling.method != "none":
        values["factor"] = scaling.factor
    if scaling.method in _NEEDS_ORIGINAL_CONTEXT and scaling.original_max_position_embeddings is not None:
        values["original_max_position_embeddings"] = scaling.original_max_position_embeddings
    for name in _PARAMETERS[scaling.method]:
        value = getattr(scaling, name)
        if value is not None:
            values[name] = list(value) if isinstance(value, tuple) else value
    return values


def rope_of(config: Config) -> HFRope:
    """As read_hf_rope, from a config that has been read."""
    _refuse_two_sections(config)
    nested = config.section(next((name for name in _SECTIONS if config.values.get(name)), _SECTIONS[-1]))
    full, sliding, context_of = nested, None, config
    if _is_by_layer_type(nested):
        if not isinstance(nested.values.get("full_attention"), dict):
            nested.refuse("full_attention", "an object: the others are of other layers")
        full, sliding = nested.section("full_attention"), nested.section("sliding_attention")
        context_of = full  # the config's own is not asked
    theta = full.number("rope_theta", _rope_theta(config))
    dim = _rotary_dimensions(config, full)
    context = config.whole("max_position_embeddings")
    scaling = _scaling(config, full, context, context_of)
    with full.blamed():
        scaling.frequencies(dim, theta)
    original = scaling.original_max_position_embeddings or _unscaled_context(config, scaling, context)
    local, finetuned = _sliding_theta(config, sliding), full.values.get("finetuned") is True
    dynamic = None
    if scaling.method == "ntk":
        dynamic = DynamicScaling.of(
            "ntk", original_max_position_embeddings=original, ntk_factor=scaling.factor
        )
    return HFRope(config.path, scaling, theta, dim, context, original, local, finetuned, dynamic)


# ----------------------------------------------------------------------------------------------


def _outermost(path: Path, values: dict[str, Any]) -> Config:
    text = Config(path, "", values).section("text_config").values
    if any(name in text for name in _SECTIONS):  # then what stands outside is not the text's
        values = {name: value for name, value in values.items() if name not in _SECTIONS}
    values = {**values, **text}
    return Config(path, "", {**_DEFAULTS.get(str(values.get("model_type")), {}), **values})


class Config:
    """A part of the config that knows its place, so that errors can name file, key and value."""

    def __init__(self, path: Path, place: str, values: dict[str, Any]) -> None:
        self.path, self.place, self.values = path, place, values

    def section(self, name: str) -> Config:
        value = self.values.get(name)
        if not isinstance(value, dict | None):
            self.refuse(name, "an object")
        return Config(self.path, f"{self.place}{name}.", value or {})

    def number(self, name: str, default: float | None = None) -> float:
        value = default if self.values.get(name) is None else self.values[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _HUGE:
            self.refuse(name, "a number")
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.number(name, default)
        if value != int(value) or value <= 0:
            self.refuse(name, "a whole number > 0")
        return int(value)

    def refuse(self, name: str, expected: str) -> None:
        value = self.values.get(name)
        raise RopeScalingError(f"{self.path}: {self.place}{name} must be {expected}, got {value!r}")

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Errors of RopeScaling name the field and the value; say in which file they are."""
        try:
            yield
        except RopeScalingError as error:
            raise RopeScalingError(f"{self.path}: {self.place.rstrip('.') or 'config'}: {error}") from error


def _is_by_layer_type(section: Config) -> bool:
    return any(isinstance(value, dict) for value in section.values.values())


def _refuse_two_sections(config: Config) -> None:
    """Some models of transformers merge them, others drop the second."""
    if config.values.get("rope_scaling") and _is_by_layer_type(config.section("rope_parameters")):
        config.refuse("rope_scaling", "left out: rope_parameters, by layer type, is where it belongs")


def _rope_theta(config: Config) -> float:
    """Outside the section of scaling; rotary_emb_base is GPT-NeoX's name of it."""
    return config.number("rope_theta", config.number("rotary_emb_base", DEFAULT_THETA))


def _rotary_dimensions(config: Config, section: Config) -> int:
    """As transformers has it: a fraction of a head, MLA's own rotary part, or a number (MiniMax-M2's way)."""
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


def _rope_type(section: Config) -> Any:
    return section.values.get("rope_type") or section.values.get("type") or "default"


def _scaling(config: Config, section: Config, context: int, context_of: Config) -> RopeScaling:
    rope_type = _rope_type(section)
    if not isinstance(rope_type, str) or rope_type not in _METHODS:
        section.refuse(
            "rope_type" if "rope_type" in section.values else "type", f"one of {', '.join(_METHODS)}"
        )
    method = _METHODS[rope_type]
    is_early_phi_3 = config.values.get("model_type") in _SAYS_YARN_FOR_LONGROPE and method == "yarn"
    if is_early_phi_3 and section.values.get("long_factor") is not None:
        method = "longrope"
    if method not in ("none", "yarn") and section.values.get("mscale_all_dim"):
        section.refuse("mscale_all_dim", "left out: no file can ask for it without yarn")
    if method == "ntk" and section.values.get("alpha"):
        section.refuse("alpha", "left out: a base that it stretches, whatever the length, is the rope_theta")
    values: dict[str, Any] = {}
    for name in _PARAMETERS[method]:
        value = section.values.get(name)
        if value is not None and not (name in _FALSY_IS_DEFAULT and not value):
            values[name] = tuple(value) if isinstance(value, list) else value
    if method in _NEEDS_ORIGINAL_CONTEXT:
        values["original_max_position_embeddings"] = _original_context(context_of, section)
    if method == "longrope" and section.values.get("long_mscale") is not None:
        values["attention_factor"] = _longrope_mscale(section)
    if method != "none":
        values["factor"] = _factor(section, method, context, values)
    with section.blamed():
        if method == "yarn" and values.get("attention_factor") == 1:
            method, values = "by-parts", {**values, "attention_factor": None}
        return RopeScaling(method, **values)


def _original_context(config: Config, section: Config) -> int:
    name = "original_max_position_embeddings"
    return (config if config.values.get(name) else section).whole(name)


def _longrope_mscale(section: Config) -> float:
    """Phi-3.5-MoE's temperatures, one for each list of factors."""
    mscale = section.number("long_mscale")
    if section.values.get("short_mscale") != mscale:
        section.refuse("short_mscale", f"the same as long_mscale = {mscale}: a file has one temperature")
    return mscale


def _factor(section: Config, method: str, context: int, values: dict[str, Any]) -> float:
    """yarn and longrope may leave the factor to the ratio of the two contexts. Of longrope it makes no more
    than the temperature, which a ratio below 1 leaves at 1."""
    if section.values.get("factor") is not None or method not in ("yarn", "longrope"):
        return section.number("factor")
    ratio = context / values["original_max_position_embeddings"]
    return max(1.0, ratio) if method == "longrope" else ratio


def _unscaled_context(config: Config, scaling: RopeScaling, context: int) -> int:
    """Where config.json does not tell. Under linear scaling max_position_embeddings is the extended context
    in Together's, DeepSeek-Coder's and Gemma 3's; Vicuna's has that in max_sequence_length."""
    if scaling.method != "linear":
        return context
    return max(1, round(config.whole("max_sequence_length", context) / scaling.factor))


def _sliding_theta(config: Config, sliding: Config | None) -> float | None:
    """The base of layers with a sliding window, which must be unscaled."""
    local = config.values.get("rope_local_base_freq")
    local = None if local is None else config.number("rope_local_base_freq")
    if sliding is None:
        return local
    if _rope_type(sliding) != "default":
        name = "rope_type" if sliding.values.get("rope_type") else "type"
        sliding.refuse(name, "'default': layers with a sliding window cannot be scaled")
    return sliding.number("rope_theta", _rope_theta(config) if local is None else local)
