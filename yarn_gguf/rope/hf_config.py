"""Read the config.json of a Hugging Face checkpoint as values that know their place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from yarn_gguf.errors import RopeScalingError

SECTIONS = ("rope_scaling", "rope_parameters")  # the older and the newer name; the older one counts first

# transformers' own defaults of a model_type, for values that a config.json leaves out
_GEMMA_3 = {
    "num_attention_heads": 8,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
}
_GPT_OSS_PARAMETERS = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 256},
    "gemma3": _GEMMA_3,
    "gemma3_text": _GEMMA_3,
    "gpt_neox": {"rotary_pct": 0.25},
    "gpt_oss": {"head_dim": 64, "rope_theta": 150000.0, "rope_parameters": _GPT_OSS_PARAMETERS},
    "olmo3": {"rope_theta": 500000.0},
    "qwen3": {"head_dim": 128},
    "smollm3": {"rope_theta": 2000000.0},
}
# the same within a text_config, where transformers saves only what differs from them
_TEXT_NAMES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "max_position_embeddings", "rms_norm_eps"),
)
_TEXT_VALUES: dict[str, tuple[float, ...]] = {
    "llama": (4096, 11008, 32, 32, 32, 32000, 2048, 1e-6),
    "mistral": (4096, 14336, 32, 32, 8, 32000, 131072, 1e-6),
    "qwen2": (4096, 22016, 32, 32, 32, 151936, 32768, 1e-6),
    "phi3": (3072, 8192, 32, 32, 32, 32064, 4096, 1e-5),
    "qwen3": (4096, 22016, 32, 32, 32, 151936, 32768, 1e-6),
    "gemma3_text": (2304, 9216, 26, 8, 4, 262208, 131072, 1e-6),
}
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    name: dict(zip(_TEXT_NAMES, values, strict=True)) for name, values in _TEXT_VALUES.items()
}
_TEXT_TYPES = {"gemma3": "gemma3_text"}  # of a text_config that does not say its model_type
_CLASSES = ("architectures", "auto_map")
_HUGE = 1e30  # beyond any sensible value; also excludes infinity and integers that no float holds


class Config:
    """A part of a config.json that knows its place, so that errors can name file, key and value.

    path: the file. place: the prefix of its keys, such as "rope_scaling."; "" for the outermost part.
    values: the part's keys and values, as JSON has them.
    around: the whole config.json of the multimodal checkpoint whose text model this is; None for another.
    """

    def __init__(self, path: Path, place: str, values: dict[str, Any], around: Config | None = None) -> None:
        self.path, self.place, self.values, self.around = path, place, values, around

    def with_values(self, **values: Any) -> Config:
        """Return the same part with other values of these names."""
        return Config(self.path, self.place, self.values | values, self.around)

    def section(self, name: str) -> Config:
        """Return the object `name`, empty if it is missing or null. Raises RopeScalingError for no object."""
        value = self.values.get(name)
        if not isinstance(value, dict | None):
            self.refuse(name, "an object")
        return Config(self.path, f"{self.place}{name}.", value or {})

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number; `default` if it is missing or null.

        Raises RopeScalingError for anything else, and if there is neither.
        """
        value = default if self.values.get(name) is None else self.values[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _HUGE:
            self.refuse(name, "a number")
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        """Return a whole number > 0, which may be written as a float. Raises as `number` does."""
        value = self.number(name, default)
        if value != int(value) or value <= 0:
            self.refuse(name, "a whole number > 0")
        return int(value)

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raise RopeScalingError for the value `name`, which should be `expected`."""
        value = self.values.get(name)
        raise RopeScalingError(f"{self.path}: {self.place}{name} must be {expected}, got {value!r}")

    @contextmanager
    def locating_errors(self) -> Iterator[None]:
        """Put file and place in front of RopeScaling's errors, which name field and value."""
        try:
            yield
        except RopeScalingError as error:
            raise RopeScalingError(f"{self.path}: {self.place.rstrip('.') or 'config'}: {error}") from error


def read_config(folder: str | Path) -> Config:
    """Read config.json in `folder` (or that file itself), as config_of describes.

    Raises RopeScalingError for a damaged file, OSError.
    """
    path = Path(folder)
    path = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RopeScalingError(
            f"{path}: no JSON ({error}): give a checkpoint's folder or its config.json; if this is it, "
            "download it again"
        ) from error
    if not isinstance(values, dict):
        raise RopeScalingError(f"{path}: a JSON object is expected, got {type(values).__name__}")
    return config_of(values, path)


def config_of(values: dict[str, Any], path: Path = Path("config.json")) -> Config:
    """Return the values of a config.json, with defaults filled in; of the text model, if it is multimodal.

    path: the file that errors name. Raises RopeScalingError.
    """
    whole = Config(path, "", values)
    text = whole.section("text_config").values
    if text:
        values = _of_text_model(values, text)
    values = {name: value for name, value in values.items() if value is not None or name not in SECTIONS}
    defaults = _DEFAULTS.get(str(values.get("model_type")), {})
    return Config(path, "", {**defaults, **values}, whole if text else None)


# ----------------------------------------------------------------------------------------------


def _of_text_model(values: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """Return the values of text_config, and the others where it has none.

    Names of classes are left out: those outside are the whole model's, and transformers uses no others.
    """
    has_rope = any(name in text for name in SECTIONS)  # then the sections outside are not the text model's
    outside = {name: value for name, value in values.items() if not (has_rope and name in SECTIONS)}
    model_type = text.get("model_type") or _TEXT_TYPES.get(str(values.get("model_type")))
    if model_type:
        text = text | {"model_type": model_type}
    found = {**outside, **_TEXT_DEFAULTS.get(str(model_type), {}), **text}
    return {name: value for name, value in found.items() if name not in _CLASSES}
