"""Convert a Hugging Face checkpoint to a GGUF file, in one pass over the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from yarn_gguf.convert.lora.adapter import holds_adapter, is_adapter
from yarn_gguf.convert.plan import ConversionPlan, plan_conversion
from yarn_gguf.convert.plan_adapter import plan_adapter
from yarn_gguf.convert.quantize import quantized
from yarn_gguf.disk.replace import replacing, require_replaceable
from yarn_gguf.errors import ConversionError, GGUFError, ModelLoadError
from yarn_gguf.gguf.header import DEFAULT_ALIGNMENT, align
from yarn_gguf.native.weights import check_loadable
from yarn_gguf.rope.scaling import RopeScaling

# options of a model that an adapter does not have
_OF_A_MODEL = {
    "scaling": "a rope scaling",
    "dynamic": "--dynamic",
    "imatrix": "--imatrix",
    "lora": "--lora",
    "split_max_size": "--split-max-size",
}


def convert(
    folder: str | Path,
    output: str | Path,
    *,
    type: str,
    scaling: RopeScaling | None = None,
    dynamic: str | None = None,
    imatrix: str | Path | None = None,
    lora: str | Path | None = None,
    base: str | Path | None = None,
    split_max_size: int = 0,
    tokenizer: bool = True,
    check_tokenizer: bool = True,
    threads: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write the Hugging Face checkpoint in `folder` to the GGUF file `output`, and return the files' paths.

    type: one of TYPES. scaling: replaces the checkpoint's own. dynamic: the policy by which its factor
    follows the length of the text. imatrix: an importance matrix of llama.cpp's. lora: the folder of a LoRA
    adapter that is merged into the weights. split_max_size: bytes of weights in one file; a larger model
    becomes files named NAME-00001-of-0000N.gguf. tokenizer: False for a file without a vocabulary.
    check_tokenizer: compare the file's token ids with those of the checkpoint's own tokenizer on a probe
    text. threads: None for all cores. force: replace plain files that exist, but none that is read.
    progress(done, total): bytes of weights.

    A `folder` with a LoRA adapter and no full weights becomes a GGUF adapter. Then only type, base, threads,
    force and progress may be given. base: the folder of the adapter's base model, of which config.json is
    enough; None for the one that adapter_config.json names.

    The weights are read once, a few rows at a time. A file gets its name when it is whole and on the disk.
    The first part of a split model, by which a reader finds the others, gets its name last.

    Raises ConversionError, RopeScalingError, GGUFError or OSError; then nothing is left behind.
    """
    plan = plan_files(
        folder,
        type=type,
        scaling=scaling,
        dynamic=dynamic,
        imatrix=imatrix,
        lora=lora,
        base=base,
        split_max_size=split_max_size,
        tokenizer=tokenizer,
        check_tokenizer=check_tokenizer,
    )
    paths = plan.paths(Path(output))
    for path in paths:
        require_replaceable(path, plan.inputs, error=ConversionError)
        if path.exists() and not force:
            raise ConversionError(f"{path} exists: use --force to replace it, or choose another name")
    write(plan, paths, threads, progress)
    return paths


def plan_files(
    folder: str | Path, *, type: str, base: str | Path | None = None, **options: Any
) -> ConversionPlan:
    """Return what convert would write, of a model or of an adapter. Arguments and errors are convert's."""
    folder = Path(folder)
    if base is not None and not holds_adapter(folder):
        raise ConversionError(f"{folder} has no LoRA adapter: leave out --base")
    if base is None and not is_adapter(folder):
        return plan_conversion(folder, type=type, **options)
    for name, option in _OF_A_MODEL.items():
        if options.get(name):
            raise ConversionError(
                f"{folder}: {option} does not apply to an adapter: give it where the base model is converted"
            )
    return plan_adapter(folder, type=type, base=base)


def write(
    plan: ConversionPlan,
    paths: Sequence[Path],
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write all headers, let the library check the model, then write the weights. Raises as convert does."""
    done = 0
    _require_room(paths[0].parent, plan.size)
    with ExitStack() as stack:
        # the stack closes the last file first, so that the first part gets its name last
        files = [
            stack.enter_context(replacing(path, file.size))
            for path, file in zip(paths, plan.files, strict=True)
        ]
        for file, each in zip(files, plan.files, strict=True):
            file.write(each.header)
            file.flush()
            file.truncate(each.size)  # a sparse file: the disk gives no room yet
        if not plan.is_adapter:
            _check_model(plan.folder, [Path(file.name) for file in files])
        wanted = [target for part in plan.files for target in part.tensors]
        file_of = {
            target.name: file for file, part in zip(files, plan.files, strict=True) for target in part.tensors
        }
        total = sum(each.size for each in wanted)
        previous = None
        for target, piece in quantized(wanted, threads):
            file = file_of[target.name]
            if target is not previous:
                file.seek(align(file.tell(), DEFAULT_ALIGNMENT))
            done += file.write(piece.data)
            previous = target
            if progress is not None:
                progress(done, total)


# ----------------------------------------------------------------------------------------------


def _require_room(folder: Path, size: int) -> None:
    """Raise GGUFError if `folder` has less than `size` bytes of room."""
    if folder.is_dir() and (free := shutil.disk_usage(folder).free) < size:
        raise GGUFError(
            f"{folder}: {size:,} bytes needed, {free:,} free: make room, or write elsewhere with -o"
        )


def _check_model(folder: Path, paths: Sequence[Path]) -> None:
    """Raise ConversionError if the library would not load the files."""
    try:
        check_loadable(paths)
    except ModelLoadError as error:
        raise ConversionError(
            f"{folder}: its tensors do not make the model of its config.json: {error}"
        ) from error
