"""Give a GGUF file another rope scaling, and with it another context."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.model_file.extensible import check_mscale, read_extensible
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.factor_tensors import tensors_to_change
from yarn_gguf.rope.gguf_keys import owned_keys
from yarn_gguf.rope.gguf_write import scaling_keys
from yarn_gguf.rope.hf_rope import HFRope, read_hf_rope
from yarn_gguf.rope.read import RopeModel, read_model
from yarn_gguf.rope.requested import replaced_scaling
from yarn_gguf.rope.scaling import RopeScaling


@dataclass(frozen=True)
class Extension:
    """The outcome of extend.

    how: "unchanged" (the file asked for this scaling already), "in place" (written within one page of the
    file) or "copied" (written beside the old file and renamed to it).
    bytes_written: bytes.
    scaling, dynamic, context_length (tokens): read again from the file at `path`. dynamic: None for a static
    scaling.
    replaced: the scaling that the model was trained with, if the new one takes its place; else None.
    """

    path: Path
    how: str
    bytes_written: int
    scaling: RopeScaling
    context_length: int
    dynamic: DynamicScaling | None
    replaced: RopeScaling | None


def extend(
    path: str | Path,
    scaling: RopeScaling,
    *,
    output: str | Path | None = None,
    original_context: int | None = None,
    context_length: int | None = None,
    dynamic: DynamicScaling | str | None = None,
    finetuned: bool = False,
    force: bool = False,
) -> Extension:
    """Make the GGUF file at `path` ask for `scaling`, in place or in a new file `output`.

    The scaling replaces the file's own, in keys or in a tensor of rope factors. It starts from the file's
    original context and base, not from those of an earlier extension. Only the header changes, and such
    tensors. Another process that reads the file at any moment finds the old file or the new one.

    original_context: tokens that the model was trained with, if neither `scaling` nor the file says it.
    context_length: tokens that the file is made for. Used for llama3 only, whose factor is no ratio of
        contexts. Default: what the file states.
    dynamic: the policy ("growth", "request" or "exact") by which the factor follows the length of the text,
        or the whole dynamic scaling. An unpatched llama.cpp uses the whole factor for every text.
    finetuned: the model was trained further under this scaling.
    force: replace an `output` that exists.

    Raises GGUFError or RopeScalingError, and then writes nothing.
    """
    model = read_extensible(path, output, force)
    check_mscale(model, scaling)
    scaling = scaling.with_original_context(original_context_of(model, scaling, original_context))
    length = _context_length(model, scaling, context_length)
    tensors = tensors_to_change(model, scaling)
    keys = scaling_keys(model, scaling, dynamic, length, finetuned)
    target = None if output is None else Path(output)
    written = change_keys(model.header, keys, owned_keys(model), target, tensors)
    new = read_model(written.path)
    return Extension(
        written.path,
        written.how,
        written.size,
        new.scaling,
        new.context_length,
        new.dynamic,
        replaced_scaling(model, new.scaling),
    )


def original_context_of(model: RopeModel, scaling: RopeScaling, given: int | None = None) -> int:
    """Return the original context, in tokens, that extend starts from. Raises RopeScalingError.

    The order is: the scaling's own, `given`, the file's. The first two must not differ.
    """
    own = scaling.original_max_position_embeddings
    if own is not None and given is not None and given != own:
        raise RopeScalingError(
            f"original_context {given} contradicts the scaling's own {own}: give one of them"
        )
    stated = given if own is None else own
    if stated is not None:
        return stated
    key = model.key("rope.scaling.original_context_length")
    if key not in model.header.entries and _is_linear(model):
        raise RopeScalingError(
            f"{model.path}: the file is scaled by {model.scaling.factor:g} and does not say from what "
            f"({key} is missing): give --original-context (original_context)"
        )
    return model.original_context


def rope_from_hf(path: str | Path, folder: str | Path) -> HFRope:
    """Return the rotary embedding of the Hugging Face checkpoint that the GGUF file at `path` was made from.

    Raises RopeScalingError if base or rotary dimensions differ, since the checkpoint is then another one.
    """
    model, rope = read_model(path), read_hf_rope(folder)
    for name, ours, theirs in (
        ("rope.freq_base", model.rope_theta, rope.rope_theta),
        ("rope.dimension_count", model.dim, rope.dim),
    ):
        if not math.isclose(ours, theirs, rel_tol=1e-6):
            raise RopeScalingError(
                f"{rope.path} is of another model than {model.path}: {theirs:g} against "
                f"{model.key(name)} = {ours:g}"
            )
    return rope


# ----------------------------------------------------------------------------------------------


def _context_length(model: RopeModel, scaling: RopeScaling, given: int | None) -> int | None:
    """Return the context to write, in tokens. None: the factor times the original context.

    Llama 3's factor is no ratio of contexts: Llama 3.1 goes from 8192 to 131072 by a factor of 8, and
    Llama 3.2 by 32. So a file that states more than the original context keeps that.
    """
    if scaling.method != "llama3":
        return None
    is_stated = model.context_length > scaling.original_context
    return given or (model.context_length if is_stated else None)


def _is_linear(model: RopeModel) -> bool:
    """Return whether the file asks for linear scaling. An unsound scaling counts as none: it is replaced."""
    try:
        return model.scaling.method == "linear" and model.scaling.factor > 1
    except RopeScalingError:
        return False
