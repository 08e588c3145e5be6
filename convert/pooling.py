"""How the checkpoint of a sentence-transformers model makes one vector of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from yarn_gguf.errors import ConversionError

_MODULES = "modules.json"  # the steps of the model, the transformer first
_OTHER_STEPS = ("Transformer", "Normalize")  # a caller normalizes the vector
_TYPES = {
    "mean": gguf.PoolingType.MEAN,
    "cls": gguf.PoolingType.CLS,
    "lasttoken": gguf.PoolingType.LAST,
}
_FLAGS = {  # the older way to say it
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}


def add_pooling(writer: gguf.GGUFWriter, folder: Path) -> None:
    """Write the pooling of the model in `folder`, if it has one.

    Raises ConversionError for one that llama.cpp lacks, for a step after it, and for a damaged file.
    """
    if not (folder / _MODULES).is_file():
        return
    for step in _read(folder / _MODULES, list):
        kind = str(step.get("type")).rpartition(".")[2] if isinstance(step, dict) else repr(step)
        if kind == "Pooling":
            writer.add_pooling_type(_type(folder / str(step.get("path")) / "config.json"))
        elif kind not in _OTHER_STEPS:
            raise ConversionError(
                f"{folder / _MODULES}: a step of the type {kind!r} would be lost: run this checkpoint with "
                "sentence-transformers, or remove the file to convert the model that writes text"
            )


def _type(path: Path) -> gguf.PoolingType:
    config = _read(path, dict)
    modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or [config.get("pooling_mode")]
    others = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    if len(modes) != 1 or modes[0] not in _TYPES or not set(others) <= _FLAGS.keys():
        asked = [*others, *filter(None, modes)]
        raise ConversionError(f"{path}: the pooling is {asked}: llama.cpp has one of {', '.join(_TYPES)}")
    return _TYPES[modes[0]]


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: cannot be read ({error}): download the checkpoint again") from error
    if not isinstance(content, kind):
        raise ConversionError(f"{path}: a JSON {kind.__name__} is expected: download the checkpoint again")
    return content
