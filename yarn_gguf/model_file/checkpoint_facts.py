"""The facts about the checkpoint in a folder: its weights, its tokenizer, its model card."""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from yarn_gguf.errors import GGUFError
from yarn_gguf.gguf.header import AGAIN
from yarn_gguf.model_file.facts import ModelFacts
from yarn_gguf.rope.hf_config import Config

_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "U8": 8, "I8": 8}
_HEADER_LIMIT = 100 << 20  # bytes; safetensors' own limit for the header of a file


def facts_of_checkpoint(folder: Path, config: Config) -> ModelFacts:
    """Return the facts about the checkpoint in `folder`. Raises GGUFError for damaged weights, OSError."""
    paths, missing = _weights(folder)
    stored: Counter[str] = Counter()
    for path in (path for path in paths if path.suffix == ".safetensors"):
        stored.update(_weights_by_dtype(path))
    parameters = sum(stored.values()) or None
    named = config.values.get("dtype") or config.values.get("torch_dtype")
    bits = sum(_BITS.get(dtype, 0) * count for dtype, count in stored.items())
    return ModelFacts(
        name=folder.resolve().name,
        type=max(stored, key=stored.__getitem__) if stored else named,
        parameters=parameters,
        bits_per_weight=bits / parameters if parameters else None,
        bytes=sum(path.stat().st_size for path in paths),
        files=len(paths),
        missing=missing,
        has_chat_template=_has_template(folder),
        license=_license(folder),
        tokenizer=_kind_of_tokenizer(folder),
        vocabulary=config.whole("vocab_size") if config.values.get("vocab_size") else None,
    )


# ----------------------------------------------------------------------------------------------


def _weights(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return the files with weights, and the names of those that an index names and that are not there."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            places = _json(index).get("weight_map")
            names = sorted({str(each) for each in places.values()}) if isinstance(places, dict) else []
            paths = [folder / Path(name).name for name in names]
            there = [path for path in paths if path.is_file()]
            return there, tuple(path.name for path in paths if not path.is_file())
        if found := sorted(folder.glob(f"{stem}*.{suffix}")):
            return found, ()
    return [], ("model.safetensors",)


def _weights_by_dtype(path: Path) -> Counter[str]:
    """Return the number of weights of each dtype in a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        data = file.read(size) if size < _HEADER_LIMIT else b""
    try:
        tensors = {name: each for name, each in json.loads(data).items() if name != "__metadata__"}
        found: Counter[str] = Counter()
        for each in tensors.values():
            found[str(each["dtype"])] += prod(each["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GGUFError(f"{path}: no sound safetensors file ({error!r}): {AGAIN}") from error
    return found


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    return bool(_json(folder / "tokenizer_config.json").get("chat_template"))


def _kind_of_tokenizer(folder: Path) -> str | None:
    names = ("tokenizer.json", "tokenizer.model", "tekken.json")
    return next((name for name in names if (folder / name).is_file()), None)


def _license(folder: Path) -> str | None:
    """Return the license that the model card states between its first two lines of three dashes."""
    import yaml

    card = folder / "README.md"
    if not card.is_file():
        return None
    _, _, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        values = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return None
    found = values.get("license") if isinstance(values, dict) else None
    return found if isinstance(found, str) else None


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if it is missing or no JSON: it is only shown."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
