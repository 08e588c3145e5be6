"""The kinds of layers of a model: which have a sliding window, which are rotated, which are scaled."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from yarn_gguf.gguf.header import ValueType
from yarn_gguf.rope.architectures import UNROTATED_PERIOD, VARIED, WINDOWS, Windows
from yarn_gguf.rope.hf_config import Config
from yarn_gguf.rope.hf_rope import HFRope
from yarn_gguf.rope.read import DEFAULT_FREQ_BASE, RopeModel

FULL, WINDOW, NO_ATTENTION = "full attention", "sliding window", "no attention"


@dataclass(frozen=True)
class LayerKind:
    """Layers of a model that attend and rotate alike.

    layers: how many there are. window: tokens that they look back; None for all. rope_theta: their base; None
    if they have no rotary embedding. scaled: whether the model's rope scaling applies to them.
    """

    name: str
    layers: int
    window: int | None
    rope_theta: float | None
    scaled: bool


def layer_kinds(model: RopeModel) -> list[LayerKind]:
    """Return the kinds of layers of the model in a file, the ones with full attention first.

    Empty for an architecture whose layers differ in more ways than the table of facts can tell.
    """
    if model.arch in VARIED or model.has("full_attention_interval"):
        return []
    facts, window = WINDOWS.get(model.arch, Windows()), _window(model)
    count = _layer_count(model)
    if count is None or (window and not _has_pattern(model, facts)):
        return []
    attends = _attending(model, count)
    is_window = [bool(window) and each for each in _pattern(model, facts, count)]
    kinds: Counter[tuple[str, bool]] = Counter()
    for layer in range(count):
        name = (WINDOW if is_window[layer] else FULL) if attends[layer] else NO_ATTENTION
        kinds[name, name != NO_ATTENTION and _is_rotated(model.arch, layer, is_window[layer], window)] += 1
    found = [_kind(model, facts, window, *key, layers) for key, layers in kinds.items()]
    return sorted(found, key=lambda each: (each.name != FULL, each.name != WINDOW, not each.rope_theta))


def window_base(model: RopeModel) -> float | None:
    """Return the base of the layers with a sliding window; None if the model has none that is known."""
    return next((each.rope_theta for each in layer_kinds(model) if each.name == WINDOW), None)


def layer_kinds_of(config: Config, rope: HFRope) -> list[LayerKind]:
    """Return the kinds of layers of a checkpoint, as far as config.json tells them."""
    count = config.whole("num_hidden_layers")
    types = _list(config, "layer_types", count, "full_attention")
    rotated = _list(config, "no_rope_layers", count, 1)  # 1 for a layer with a rotary embedding
    kinds = Counter(zip(types, map(bool, rotated), strict=True))
    return [_hf_kind(config, rope, *key, layers) for key, layers in sorted(kinds.items())]


# ----------------------------------------------------------------------------------------------


def _window(model: RopeModel) -> int:
    """Return the tokens of a sliding window; 0 if no layer has one."""
    facts = WINDOWS.get(model.arch)
    if facts is None:
        return 0
    stated = model.get("attention.sliding_window", ValueType.UINT32, facts.size)
    return facts.fixed_size if stated and facts.fixed_size else stated


def _layer_count(model: RopeModel) -> int | None:
    """Return the number of layers, without those that predict further tokens at once."""
    count = model.get("block_count", ValueType.UINT32)
    return None if count is None else count - model.get("nextn_predict_layers", ValueType.UINT32, 0)


def _has_pattern(model: RopeModel, facts: Windows) -> bool:
    return bool(facts.period) or model.has("attention.sliding_window_pattern")


def _pattern(model: RopeModel, facts: Windows, count: int) -> list[bool]:
    """Return for each layer whether it has a window: the file's list, or one by its period."""
    entry = model.header.entries.get(model.key("attention.sliding_window_pattern"))
    if entry is not None and entry.type == ValueType.ARRAY:
        return [bool(each) for each in [*entry.value, *[False] * count][:count]]
    period = facts.period if entry is None else entry.value
    full = 0 if facts.full_first else period - 1
    return [period == 0 or layer % period != full for layer in range(count)]


def _attending(model: RopeModel, count: int) -> list[bool]:
    """Return for each layer whether it has attention: a hybrid model has layers with no KV head."""
    entry = model.header.entries.get(model.key("attention.head_count_kv"))
    if entry is None or entry.type != ValueType.ARRAY:
        return [True] * count
    return [bool(each) for each in [*entry.value, *[1] * count][:count]]


def _is_rotated(arch: str, layer: int, is_window: bool, window: int) -> bool:
    if arch in UNROTATED_PERIOD:
        return (layer + 1) % UNROTATED_PERIOD[arch] != 0
    return is_window or not window or WINDOWS[arch].rotates_full


def _kind(
    model: RopeModel, facts: Windows, window: int, name: str, is_rotated: bool, layers: int
) -> LayerKind:
    if name == WINDOW:
        return LayerKind(name, layers, window, _base(model, facts) if is_rotated else None, facts.scaled)
    return LayerKind(name, layers, None, model.rope_theta if is_rotated else None, is_rotated)


def _base(model: RopeModel, facts: Windows) -> float:
    """Return the base of the layers with a window."""
    if model.has("rope.freq_base_swa"):
        return model.get("rope.freq_base_swa", ValueType.FLOAT32)
    if facts.has_own_base:
        return DEFAULT_FREQ_BASE
    # the file's own base, which under NTK-aware scaling is larger than that of the model
    return (
        model.rope_theta if facts.scaled else model.get("rope.freq_base", ValueType.FLOAT32, model.rope_theta)
    )


def _list(config: Config, name: str, count: int, default: Any) -> list[Any]:
    """Return a list of `count` values of the type of `default`; of `default`, if there is no such list."""
    found = config.values.get(name)
    is_right = isinstance(found, list) and all(isinstance(each, type(default)) for each in found)
    return list(found) if is_right and found and len(found) == count else [default] * count


def _hf_kind(config: Config, rope: HFRope, type_: str, is_rotated: bool, layers: int) -> LayerKind:
    name = {"full_attention": FULL, "sliding_attention": WINDOW}.get(type_, type_.replace("_", " "))
    if name != WINDOW:
        return LayerKind(name, layers, None, rope.rope_theta if is_rotated else None, is_rotated)
    window = config.whole("sliding_window") if config.values.get("sliding_window") else None
    theta = rope.rope_theta if rope.sliding_rope_theta is None else rope.sliding_rope_theta
    # transformers rotates OLMo 3's windows unscaled, also where config.json does not tell them apart
    scaled = rope.sliding_rope_theta is None and config.values.get("model_type") != "olmo3"
    return LayerKind(name, layers, window, theta if is_rotated else None, scaled and is_rotated)
