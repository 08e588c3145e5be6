"""Give a GGUF file another rope scaling, and with it another context."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from yarn_gguf.errors import GGUFError, RopeScalingError
from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.gguf.header import Header, ValueType, read_header
from yarn_gguf.rope.architectures import architecture
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.gguf_keys import owned_keys
from yarn_gguf.rope.gguf_read import log_multiplier
from yarn_gguf.rope.gguf_write import scaling_keys
from yarn_gguf.rope.hf_rope import HFRope, read_hf_rope
from yarn_gguf.rope.model import FREQ_FACTORS, LONG_FACTORS
from yarn_gguf.rope.read import RopeModel, model_of, read_model
from yarn_gguf.rope.scaling import RopeScaling


@dataclass(frozen=True)
class Extension:
    """What extend did.

    how: "unchanged" (the file said so already), "in place" (within one page of it) or "copied" (made
    beside the old file and renamed to it). bytes_written: bytes. scaling, context_length (tokens): as
    they can be read from the file at `path` now.
    """

    path: Path
    how: str
    bytes_written: int
    scaling: RopeScaling
    context_length: int


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

    The scaling replaces the file's own and starts from its original context and base, not from those
    of an earlier extension. original_context (tokens): what the model was trained with, where neither
    `scaling` nor the file says it. context_length (tokens): what the file is made for, if by llama3, whose
    factor is no ratio of contexts; else what the file says. dynamic: the policy ("growth", "request" or
    "exact") by which the factor is to follow the length of the text, or all of the dynamic scaling; an
    unpatched llama.cpp takes the factor as it is. finetuned: the model was trained further under this
    scaling. force: `output` may exist, and is replaced.

    Only the header changes, and whoever looks at any moment finds the old file or the new one. Raises
    GGUFError or RopeScalingError, with nothing written.
    """
    output = None if output is None else Path(output)
    model = require_extensible(path, output, force)
    _refuse_mscale_of_attention(model, scaling)
    scaling = scaling.with_original_context(original_context_of(model, scaling, original_context))
    length = _context_length(model, scaling, context_length)
    keys = scaling_keys(model, scaling, dynamic, length, finetuned)
    written = change_keys(model.header, keys, owned_keys(model), output)
    new = read_model(written.path)
    return Extension(written.path, written.how, written.size, new.scaling, new.context_length)


def require_extensible(path: str | Path, output: str | Path | None = None, force: bool = False) -> RopeModel:
    """The model in the file at `path`. Raises as extend does for any scaling, if it cannot be extended."""
    header = read_header(path)
    _check_output(header, None if output is None else Path(output), force)
    model = model_of(header)
    refuse_other_scaling(model)
    return model


def original_context_of(model: RopeModel, scaling: RopeScaling, given: int | None = None) -> int:
    """The original context, in tokens, that extend starts from. Raises RopeScalingError."""
    own = scaling.original_max_position_embeddings
    if own is not None and given not in (None, own):
        raise RopeScalingError(
            f"original_context {given} contradicts the scaling's own {own}: give one of them"
        )
    if own is not None or given is not None:
        return given if own is None else own
    key = model.key("rope.scaling.original_context_length")
    if key not in model.header.entries and _is_linear(model):
        raise RopeScalingError(
            f"{model.path}: the file is scaled by {model.scaling.factor:g} and does not say from what "
            f"({key} is missing): give --original-context (original_context)"
        )
    return model.original_context


def rope_from_hf(path: str | Path, folder: str | Path) -> HFRope:
    """The rotary embedding of the Hugging Face checkpoint from which the GGUF file at `path` was made.

    Raises RopeScalingError if base or rotary dimensions differ: then it was made from another.
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


def refuse_other_scaling(model: RopeModel) -> None:
    """Scaling that lies outside the keys which we write would come on top of ours, undefined.

    Raises RopeScalingError for a model that has such.
    """
    for name in (FREQ_FACTORS, LONG_FACTORS):
        if name in model.header.tensors:
            raise RopeScalingError(
                f"{model.path}: the tensor {name} already scales this model's frequencies, and more on top "
                "of it is not defined: extend a file that was converted without it"
            )
    alpha = model.get("rope.scaling.alpha", ValueType.FLOAT32, 0.0)
    if alpha:
        key = model.key("rope.scaling.alpha")
        raise RopeScalingError(
            f"{model.path}: {key} = {alpha} already scales this model: it cannot be extended"
        )
    if log_multiplier(model):
        key = model.key("rope.scaling.yarn_log_multiplier")
        raise RopeScalingError(
            f"{model.path}: {key} ties this model's attention to the scaling that it was trained with: "
            "it cannot be extended"
        )


# ----------------------------------------------------------------------------------------------


def _check_output(header: Header, output: Path | None, force: bool) -> None:
    if output is None:
        return
    if output.exists() and output.samefile(header.path):
        raise GGUFError(f"{output}: output and input are the same file: use --in-place (output=None)")
    if output.exists() and not force:
        raise GGUFError(f"{output} exists: use --force to replace it, or choose another name")
    count = header.get("split.count", ValueType.UINT16, 0)
    if count > 1:
        raise GGUFError(
            f"{header.path}: part 1 of {count} of a split model, which finds the others by its own name: "
            "use --in-place, or merge the parts first (llama-gguf-split --merge)"
        )


def _refuse_mscale_of_attention(model: RopeModel, scaling: RopeScaling) -> None:
    if scaling.mscale_all_dim and architecture(model.arch).log_multiplier_scale:
        raise RopeScalingError(
            f"{model.path}: mscale_all_dim = {scaling.mscale_all_dim:g} changes the attention of a "
            f"{model.arch} model as well, for which the file lacks what a converter writes: "
            "convert the checkpoint again"
        )


def _context_length(model: RopeModel, scaling: RopeScaling, given: int | None) -> int | None:
    """Llama 3's factor is no ratio of contexts: 8 takes Llama 3.1 from 8192 to 131072, 32 Llama 3.2 as well.
    So a file that states more than the original context keeps what it states."""
    if scaling.method != "llama3":
        return None
    is_stated = model.context_length > scaling.original_max_position_embeddings
    return given or (model.context_length if is_stated else None)


def _is_linear(model: RopeModel) -> bool:
    try:
        return model.scaling.method == "linear" and model.scaling.factor > 1
    except RopeScalingError:
        return False  # what the file asks for makes no sense, and is replaced
