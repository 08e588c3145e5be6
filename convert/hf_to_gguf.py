"""From a Hugging Face checkpoint to a GGUF file, in one pass over the weights."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path

import gguf

from yarn_gguf.convert.arch import architecture
from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.convert.checkpoint import read_checkpoint
from yarn_gguf.convert.gguf_header import headers, new_writer
from yarn_gguf.convert.imatrix import ImportanceMatrix, read_imatrix
from yarn_gguf.convert.metadata import add_metadata
from yarn_gguf.convert.quantize import GGMLType, Target, file_type, quantized, targets
from yarn_gguf.convert.rope_keys import add_rope_keys
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.convert.tokenizer import TokenizerFiles, add_vocabulary, check_vocabulary
from yarn_gguf.convert.types import TYPES
from yarn_gguf.disk.replace import replacing
from yarn_gguf.errors import ConversionError, GGUFError, ModelLoadError
from yarn_gguf.gguf.header import DEFAULT_ALIGNMENT, align
from yarn_gguf.native.weights import check_loadable
from yarn_gguf.rope.scaling import RopeScaling

_log = logging.getLogger(__name__)
_SUFFIXES = (".weight", ".bias")
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class PlannedFile:
    """A file that will be written: its bytes before the tensor data, and its tensors in order."""

    header: bytes
    tensors: list[Target]

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.header) + sum(align(each.size, DEFAULT_ALIGNMENT) for each in self.tensors)


@dataclass(frozen=True)
class Plan:
    """What a conversion will write, from the checkpoint in `folder`. Made by plan()."""

    folder: Path
    files: list[PlannedFile]

    @property
    def size(self) -> int:
        """Bytes, of all files."""
        return sum(file.size for file in self.files)

    def paths(self, output: Path) -> list[Path]:
        """Where the files go: `output` itself, or upstream's names for the parts of a split model."""
        count = len(self.files)
        if count == 1:
            return [output]
        return [output.with_name(f"{output.stem}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]


def plan(
    folder: str | Path,
    *,
    type: str,
    scaling: RopeScaling | None = None,
    dynamic: str | None = None,
    imatrix: str | Path | None = None,
    split_max_size: int = 0,
    tokenizer: bool = True,
    check_tokenizer: bool = True,
) -> Plan:
    """What convert would write, without reading a weight. Arguments and errors are convert's.

    Logs a warning of what llama.cpp will compute otherwise on long texts.
    """
    if type not in TYPES:
        raise ConversionError(f"type {type!r} is none of {', '.join(TYPES)}")
    folder = Path(folder)
    checkpoint = read_checkpoint(folder)
    arch = architecture(checkpoint.config)
    for note in arch.notes:
        _log.warning(note)
    tensors = _ggml_tensors(arch, arch.rearrange(checkpoint.tensors))
    importances = read_imatrix(imatrix) if imatrix else None
    rows = ((name, each.shape, GGMLType.F32, 4 * prod(each.shape)) for name, each in tensors.items())
    writer = new_writer(arch.name, rows)
    _add_keys(writer, folder, arch, type, importances)
    add_rope_keys(writer, arch, scaling, dynamic)
    (header,) = headers(writer)  # without the vocabulary, which takes long to pack and chooses no type
    if tokenizer:
        files = TokenizerFiles(folder)
        add_vocabulary(writer, files, arch.config)
        if check_tokenizer:
            _check_vocabulary(writer, files)
    else:
        writer.add_tokenizer_model("no_vocab")
    try:
        wanted = targets(tensors, header, file_type(type), importances)
    except ModelLoadError as error:
        raise ConversionError(f"{folder}: llama.cpp does not take such a model: {error}") from error
    return Plan(folder, _files(writer, wanted, split_max_size))


def convert(
    folder: str | Path,
    output: str | Path,
    *,
    type: str,
    scaling: RopeScaling | None = None,
    dynamic: str | None = None,
    imatrix: str | Path | None = None,
    split_max_size: int = 0,
    tokenizer: bool = True,
    check_tokenizer: bool = True,
    threads: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write the Hugging Face checkpoint in `folder` to the GGUF file `output`, as `type` (of TYPES).

    scaling: in the place of the checkpoint's own; dynamic: the policy by which its factor is to follow the
    length of the text. imatrix: an importance matrix of llama.cpp's. split_max_size: bytes of weights a
    file; beyond it, files named NAME-00001-of-0000N.gguf. tokenizer: False for a file without a vocabulary.
    check_tokenizer: the file's vocabulary has to give the token ids of the checkpoint's own tokenizer, on a
    probe text. threads: None for all cores. force: files that are there are replaced. progress(done, total):
    bytes of weights.

    Returns the files' paths. The weights are read once, a few rows at a time. No file has its name before
    it is whole and on the disk, the first, by which the others are found, last. Raises ConversionError,
    RopeScalingError, GGUFError or OSError, with nothing left behind.
    """
    planned = plan(
        folder,
        type=type,
        scaling=scaling,
        dynamic=dynamic,
        imatrix=imatrix,
        split_max_size=split_max_size,
        tokenizer=tokenizer,
        check_tokenizer=check_tokenizer,
    )
    paths = planned.paths(Path(output))
    for path in paths:
        if path.exists() and not force:
            raise ConversionError(f"{path} exists: use --force to replace it, or choose another name")
    _write(planned, paths, threads, progress)
    return paths


# ----------------------------------------------------------------------------------------------


def _ggml_tensors(arch: Architecture, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under ggml's names, in the order of llama.cpp's own files: by layer, then by name."""
    names = gguf.get_tensor_name_map(arch.model_arch, arch.layers)
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ggml_name = names.get_name(name, try_suffixes=_SUFFIXES)
        path = arch.config.path.parent
        if ggml_name is None:
            raise ConversionError(f"{path}: tensor {name} has no place in a {arch.name} model")
        if ggml_name in named:
            raise ConversionError(f"{path}: tensor {name} is there under two names, both {ggml_name} in GGUF")
        named[ggml_name] = tensor
    return dict(sorted(named.items(), key=lambda item: (_layer(item[0]), item[0])))


def _layer(name: str) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def _add_keys(
    writer: gguf.GGUFWriter, folder: Path, arch: Architecture, type: str, imatrix: ImportanceMatrix | None
) -> None:
    """The keys that say what the file is, and the hyperparameters."""
    add_metadata(writer, folder)
    arch.add_keys(writer)
    writer.add_file_type(file_type(type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if imatrix:
        imatrix.add_keys(writer)


def _check_vocabulary(writer: gguf.GGUFWriter, files: TokenizerFiles) -> None:
    """Before a weight is read, on a file that has the keys alone."""
    keys = new_writer(writer.arch, ())
    keys.kv_data = writer.kv_data
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "vocabulary.gguf")
        path.write_bytes(headers(keys)[0])
        check_vocabulary(path, files)


def _files(writer: gguf.GGUFWriter, wanted: Sequence[Target], split_max_size: int) -> list[PlannedFile]:
    rows = ((each.name, each.tensor.shape, each.type, each.size) for each in wanted)
    final = new_writer(writer.arch, rows, split_max_size)
    final.kv_data = [dict(writer.kv_data[0])]
    remaining = iter(wanted)
    return [
        PlannedFile(header, list(islice(remaining, len(tensors))))
        for header, tensors in zip(headers(final), final.tensors, strict=True)
    ]


def _write(
    planned: Plan,
    paths: Sequence[Path],
    threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """All headers first, so that the library can refuse the model before a weight is read."""
    done = 0
    _require_room(paths[0].parent, planned.size)
    with ExitStack() as stack:
        # left last file first: the one with the keys, by which the others are found, gets its name last
        files = [
            stack.enter_context(replacing(path, file.size))
            for path, file in zip(paths, planned.files, strict=True)
        ]
        for file, each in zip(files, planned.files, strict=True):
            file.write(each.header)
            file.flush()
            file.truncate(each.size)  # takes no room yet
        _check_model(planned.folder, [Path(file.name) for file in files])
        homes = {each.name: i for i, part in enumerate(planned.files) for each in part.tensors}
        wanted = [each for part in planned.files for each in part.tensors]
        total = sum(each.size for each in wanted)
        previous = None
        for target, piece in quantized(wanted, threads):
            file = files[homes[target.name]]
            if target is not previous:
                file.seek(align(file.tell(), DEFAULT_ALIGNMENT))
            done += file.write(piece)
            previous = target
            if progress is not None:
                progress(done, total)


def _require_room(folder: Path, size: int) -> None:
    """A disk that will be full at the end is refused at the beginning."""
    if folder.is_dir() and (free := shutil.disk_usage(folder).free) < size:
        raise GGUFError(
            f"{folder}: {size:,} bytes needed, {free:,} free: make room, or write elsewhere with -o"
        )


def _check_model(folder: Path, paths: Sequence[Path]) -> None:
    try:
        check_loadable(paths)
    except ModelLoadError as error:
        raise ConversionError(
            f"{folder}: its tensors do not make the model of its config.json: {error}"
        ) from error
