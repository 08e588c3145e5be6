"""The general.* keys (name, license, tags, sampling), as upstream's converter derives them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf
import yaml
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue

from yarn_gguf.errors import ConversionError

_log = logging.getLogger(__name__)
_MODEL_CARD, _GENERATION = "README.md", "generation_config.json"
_PYTHON_TYPES: dict[GGUFValueType, tuple[type, ...]] = {
    GGUFValueType.STRING: (str,),
    GGUFValueType.UINT32: (int,),
    GGUFValueType.INT32: (int,),
    GGUFValueType.FLOAT32: (int, float),
}
_FENCE = "---"  # the line before and after the YAML of the model card
_YAML_START = 2  # the line of the model card on which its YAML begins
# values of generation_config.json that have a key, and the name of one that is another in gguf.Metadata
_SAMPLING = (
    *("sequence", "top_k", "top_p", "min_p", "xtc_probability", "xtc_threshold", "temperature"),
    *("penalty_last_n", "penalty_repeat", "mirostat", "mirostat_tau", "mirostat_eta"),
)
_RENAMED = {"temperature": "temp"}


class _TextLoader(yaml.SafeLoader):
    """Read every scalar but null as text: YAML itself takes the version 1.10 for the number 1.1."""


_TextLoader.yaml_implicit_resolvers = {
    first: [each for each in found if each[0] in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def add_metadata(writer: gguf.GGUFWriter, folder: Path, kind: str = gguf.GGUFType.MODEL) -> None:
    """Write the general.* keys.

    They come from the folder's name, the model card, generation_config.json and the sizes of the writer's
    tensors. A value of the model card that has no place in its key is left out, with a warning.
    Raises ConversionError if one of these files is damaged.
    """
    writer.add_type(kind)
    try:
        _metadata(writer, folder).set_gguf_meta_model(writer)
    except yaml.YAMLError as error:
        raise ConversionError(
            f"{folder / _MODEL_CARD}: its head is not YAML ({_reason(error)}): mend it, or remove the file"
        ) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ConversionError(
            f"{folder}: {_MODEL_CARD} or {_GENERATION} is damaged ({error}): mend it, or remove the file"
        ) from error
    for key, entry in [each for each in writer.kv_data[0].items() if not _fits(each[1])]:
        what = f"{key} would be {entry.value!r}, but it is {entry.type.name} in GGUF"
        if key.startswith("general.sampling."):
            raise ConversionError(f"{folder / _GENERATION}: {what}: mend it there")
        _log.warning(f"{folder / _MODEL_CARD}: {what}: left out")
        del writer.kv_data[0][key]


# ----------------------------------------------------------------------------------------------


def _metadata(writer: gguf.GGUFWriter, folder: Path) -> gguf.Metadata:
    """Return the metadata, with a name in any case, and with a size label unless it is an adapter's."""
    total, shared, expert, experts = writer.get_total_parameter_count()
    card, parameters = _model_card(folder), gguf.Metadata.load_hf_parameters(folder)
    metadata = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, parameters, folder, total)
    for name, value in gguf.Metadata.load_generation_config(folder).items():
        if name in _SAMPLING:
            setattr(metadata, f"sampling_{_RENAMED.get(name, name)}", value)
    metadata.name = metadata.name or folder.resolve().name
    if total >= 0:  # an adapter's is negative, and upstream gives it no label
        metadata.size_label = metadata.size_label or gguf.size_label(total, shared, expert, experts)
    return metadata


def _model_card(folder: Path) -> dict[str, Any]:
    """Return the YAML at the head of the model card, with every number, date and "no" as it is written."""
    path = folder / _MODEL_CARD
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if not lines or lines[0] != _FENCE:
        return {}
    head = lines[1 : lines.index(_FENCE, 1) if _FENCE in lines[1:] else None]
    values = yaml.load("\n".join(head).replace("\t", "  "), _TextLoader)
    return values if isinstance(values, dict) else {}


def _reason(error: yaml.YAMLError) -> str:
    """Return the error's line and reason."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + _YAML_START}: {error.problem}"
    return str(error).splitlines()[0]


def _fits(entry: GGUFValue) -> bool:
    """Return whether the value has its key's type. The writer itself would fail only while it writes."""
    if entry.type == GGUFValueType.ARRAY:
        return all(isinstance(each, str) for each in entry.value)
    return isinstance(entry.value, _PYTHON_TYPES[entry.type])
