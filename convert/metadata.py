"""The general.* keys (name, license, tags, sampling), as upstream's converter derives them."""

from __future__ import annotations

from pathlib import Path

import gguf
import yaml
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue

from yarn_gguf.errors import ConversionError

_MODEL_CARD, _GENERATION = "README.md", "generation_config.json"
_PYTHON_TYPES: dict[GGUFValueType, tuple[type, ...]] = {
    GGUFValueType.STRING: (str,),
    GGUFValueType.UINT32: (int,),
    GGUFValueType.INT32: (int,),
    GGUFValueType.FLOAT32: (int, float),
}
_YAML_START = 2  # the line of the model card on which its YAML begins


def add_metadata(writer: gguf.GGUFWriter, folder: Path, kind: str = gguf.GGUFType.MODEL) -> None:
    """Write the general.* keys.

    They come from the folder's name, the model card, generation_config.json and the sizes of the writer's
    tensors. Raises ConversionError if one of these files is damaged.
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
    for key, entry in writer.kv_data[0].items():
        if not _fits(entry):
            path = folder / (_GENERATION if key.startswith("general.sampling.") else _MODEL_CARD)
            raise ConversionError(
                f"{path}: {key} would be {entry.value!r}, but it is {entry.type.name} in GGUF: mend it there"
            )


# ----------------------------------------------------------------------------------------------


def _metadata(writer: gguf.GGUFWriter, folder: Path) -> gguf.Metadata:
    """Return the metadata, with a name in any case, and with a size label unless it is an adapter's."""
    total, shared, expert, experts = writer.get_total_parameter_count()
    metadata = gguf.Metadata.load(model_path=folder, total_params=total)
    metadata.name = metadata.name or folder.resolve().name
    if total > 0:  # an adapter's is negative, and upstream gives it no label
        metadata.size_label = metadata.size_label or gguf.size_label(total, shared, expert, experts)
    return metadata


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
