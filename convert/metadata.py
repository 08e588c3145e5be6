"""The keys that say what a model is and where it comes from, as upstream's converter derives them."""

from __future__ import annotations

from pathlib import Path

import gguf
import yaml
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue

from yarn_gguf.errors import ConversionError

_MODEL_CARD, _GENERATION = "README.md", "generation_config.json"
_KINDS = {
    GGUFValueType.STRING: str,
    GGUFValueType.UINT32: int,
    GGUFValueType.INT32: int,
    GGUFValueType.FLOAT32: (int, float),
}


def add_metadata(writer: gguf.GGUFWriter, folder: Path) -> None:
    """From the names in `folder`, its model card, its generation_config.json, and the writer's tensors.

    Raises ConversionError for a file of these that is damaged.
    """
    writer.add_type(gguf.GGUFType.MODEL)
    try:
        _metadata(writer, folder).set_gguf_meta_model(writer)
    except yaml.YAMLError as error:
        raise ConversionError(
            f"{folder / _MODEL_CARD}: no YAML at its head ({_reason(error)}): mend it, or remove the file"
        ) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ConversionError(
            f"{folder}: {_MODEL_CARD} or {_GENERATION} is damaged ({error}): mend it, or remove the file"
        ) from error
    for key, entry in writer.kv_data[0].items():
        if not _fits(entry):
            path = folder / (_GENERATION if key.startswith("general.sampling.") else _MODEL_CARD)
            raise ConversionError(
                f"{path}: {key} would be {entry.value!r}, and is {entry.type.name} in GGUF: mend it there"
            )


# ----------------------------------------------------------------------------------------------


def _metadata(writer: gguf.GGUFWriter, folder: Path) -> gguf.Metadata:
    total, shared, expert, experts = writer.get_total_parameter_count()
    metadata = gguf.Metadata.load(model_path=folder, total_params=total)
    metadata.name = metadata.name or folder.resolve().name
    metadata.size_label = metadata.size_label or gguf.size_label(total, shared, expert, experts)
    return metadata


def _reason(error: yaml.YAMLError) -> str:
    """Where and what; the YAML begins in the second line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 2}: {error.problem}"
    return str(error).splitlines()[0]


def _fits(entry: GGUFValue) -> bool:
    """The writer takes any value, and fails when it comes to write it."""
    if entry.type == GGUFValueType.ARRAY:
        return all(isinstance(each, str) for each in entry.value)
    return isinstance(entry.value, _KINDS[entry.type])
