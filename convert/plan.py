"""Plan a conversion: the header of every file and the type of every tensor, before a weight is read."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from pathlib import Path

import gguf

from yarn_gguf.convert.arch import architecture
from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.convert.checkpoint import read_checkpoint
from yarn_gguf.convert.gguf_header import headers, new_writer
from yarn_gguf.convert.imatrix import ImportanceMatrix, read_imatrix
from yarn_gguf.convert.lora.adapter import holds_adapter, read_adapter
from yarn_gguf.convert.lora.merge import merged
from yarn_gguf.convert.metadata import add_metadata
from yarn_gguf.convert.pooling import add_pooling
from yarn_gguf.convert.quantize import Target, file_type, targets, targets_like
from yarn_gguf.convert.quantized import dequantized
from yarn_gguf.convert.rope_keys import add_rope_keys, other_rope, rope_tensors
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.convert.text_part import text_part
from yarn_gguf.convert.tokenizer import TokenizerFiles, add_vocabulary, check_vocabulary, has_tokenizer
from yarn_gguf.convert.types import TYPES
from yarn_gguf.errors import ConversionError, ModelLoadError
from yarn_gguf.gguf.header import DEFAULT_ALIGNMENT, TensorInfo, align
from yarn_gguf.rope.scaling import RopeScaling

_log = logging.getLogger(__name__)
_F32 = gguf.GGMLQuantizationType.F32
_SUFFIXES = (".weight", ".bias")
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class PlannedFile:
    """A file to write: its header (the bytes before the tensor data), and its tensors in order."""

    header: bytes
    tensors: list[Target]

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.header) + sum(align(each.size, DEFAULT_ALIGNMENT) for each in self.tensors)


@dataclass(frozen=True)
class ConversionPlan:
    """The files that a conversion of the checkpoint in `folder` writes.

    inputs: files that it reads, or may belong to the checkpoint. None of them may be replaced.
    is_adapter: whether it is a LoRA adapter, and no model.
    """

    folder: Path
    inputs: list[Path]
    files: list[PlannedFile]
    is_adapter: bool = False

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def paths(self, output: Path) -> list[Path]:
        """Return the paths of the files: `output`, or upstream's names for the parts of a split model."""
        count = len(self.files)
        if count == 1:
            return [output]
        return [output.with_name(f"{output.stem}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]


def plan_conversion(
    folder: str | Path,
    *,
    type: str,
    scaling: RopeScaling | None = None,
    dynamic: str | None = None,
    imatrix: str | Path | None = None,
    lora: str | Path | None = None,
    split_max_size: int = 0,
    tokenizer: bool = True,
    check_tokenizer: bool = True,
    like: Mapping[str, TensorInfo] | None = None,
) -> ConversionPlan:
    """Return what convert would write, before a weight is converted. Arguments and errors are convert's.

    like: the tensors of another file, from which each tensor takes its type; `type` is not looked at then.
    Logs a warning where llama.cpp computes long texts differently from transformers.
    """
    if type not in TYPES:
        raise ConversionError(f"type {type!r} is not one of {', '.join(TYPES)}")
    folder = Path(folder)
    checkpoint, notes = text_part(read_checkpoint(folder))
    checkpoint = replace(checkpoint, tensors=dequantized(checkpoint.tensors, checkpoint.config))
    tokenizer_folder = folder
    if lora is not None:
        own_tokenizer = has_tokenizer(Path(lora))
        tokenizer_folder = Path(lora) if own_tokenizer else folder
        checkpoint = merged(checkpoint, read_adapter(lora), own_tokenizer)
    arch = architecture(checkpoint.config)
    if lora is not None and scaling is None and (asks := other_rope(Path(lora), arch.rope)):
        raise ConversionError(f"{asks}: say which with --method, --factor and --original-context")
    for note in notes + arch.notes + _notes_of_adapter(folder, lora):
        _log.warning(note)
    named = ggml_tensors(arch, arch.rearrange(checkpoint.tensors))
    tensors = in_order(named | rope_tensors(arch, scaling))
    importances = read_imatrix(imatrix) if imatrix else None
    rows = ((name, each.shape, _F32, 4 * prod(each.shape)) for name, each in tensors.items())
    writer = new_writer(arch.name, rows)
    _add_keys(writer, folder, arch, type, importances)
    add_rope_keys(writer, arch, scaling, dynamic)
    (header,) = headers(writer)  # the vocabulary, which is slow to pack, has no influence on the types
    if tokenizer:
        files = TokenizerFiles(tokenizer_folder)
        add_vocabulary(writer, files, arch.config)
        if check_tokenizer:
            _check_vocabulary(writer, files)
    else:
        writer.add_tokenizer_model("no_vocab")
    try:
        if like is None:
            wanted = targets(tensors, header, file_type(type), importances)
        else:
            wanted = targets_like(tensors, like)
    except ModelLoadError as error:
        raise ConversionError(f"{folder}: llama.cpp does not know this model: {error}") from error
    inputs = inputs_of(folder, lora, imatrix)
    return ConversionPlan(folder, inputs, _files(writer, wanted, split_max_size))


def inputs_of(*paths: str | Path | None) -> list[Path]:
    """Return the files that a conversion may read: those given, and all in a given folder but GGUF files."""
    given = [Path(each) for each in paths if each is not None]
    inside = (each for folder in given if folder.is_dir() for each in folder.rglob("*"))
    return [*(each for each in given if each.is_file()), *(each for each in inside if each.suffix != ".gguf")]


def ggml_tensors(arch: Architecture, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by ggml's names."""
    names = gguf.get_tensor_name_map(arch.model_arch, arch.layers)
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ggml_name = names.get_name(name, try_suffixes=_SUFFIXES)
        path = arch.config.path.parent
        if ggml_name is None:
            raise ConversionError(f"{path}: tensor {name} has no place in a {arch.name} model")
        if ggml_name in named:
            raise ConversionError(f"{path}: tensor {name} and another one are both {ggml_name} in GGUF")
        named[ggml_name] = tensor
    return named


def in_order(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in the order of llama.cpp's own files: by layer, then by name."""
    return dict(sorted(tensors.items(), key=lambda item: (_layer(item[0]), item[0])))


# ----------------------------------------------------------------------------------------------


def _notes_of_adapter(folder: Path, lora: str | Path | None) -> list[str]:
    """Return a warning of an adapter beside the weights: transformers would apply it, if it has PEFT."""
    if lora is not None or not holds_adapter(folder):
        return []
    return [
        f"{folder}: an adapter lies beside the weights and is left out; if the weights do not have its "
        f"changes yet, merge it with --lora {folder}"
    ]


def _layer(name: str) -> int:
    """Return the layer of a tensor; -1 for one that belongs to no layer."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def _add_keys(
    writer: gguf.GGUFWriter, folder: Path, arch: Architecture, type: str, imatrix: ImportanceMatrix | None
) -> None:
    """Write the metadata, the hyperparameters, and how the weights are quantized."""
    add_metadata(writer, folder)
    arch.add_keys(writer)
    add_pooling(writer, folder)
    writer.add_file_type(file_type(type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if imatrix:
        imatrix.add_keys(writer)


def _check_vocabulary(writer: gguf.GGUFWriter, files: TokenizerFiles) -> None:
    """Check the vocabulary in a temporary file that has the writer's keys and no tensors."""
    keys = new_writer(writer.arch, ())
    keys.kv_data = writer.kv_data
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "vocabulary.gguf")
        path.write_bytes(headers(keys)[0])
        check_vocabulary(path, files)


def _files(writer: gguf.GGUFWriter, wanted: Sequence[Target], split_max_size: int) -> list[PlannedFile]:
    """Return the files with the writer's keys and the wanted tensors."""
    rows = ((each.name, each.tensor.shape, each.type, each.size) for each in wanted)
    final = new_writer(writer.arch, rows, split_max_size)
    final.kv_data = [dict(writer.kv_data[0])]
    remaining = iter(wanted)
    return [
        PlannedFile(header, list(islice(remaining, len(tensors))))
        for header, tensors in zip(headers(final), final.tensors, strict=True)
    ]
