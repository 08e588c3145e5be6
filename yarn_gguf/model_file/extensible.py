"""Check, before anything is written, that a model can be extended and that the output may be written."""

from __future__ import annotations

from pathlib import Path

from yarn_gguf.disk.replace import require_replaceable
from yarn_gguf.errors import GGUFError, RopeScalingError
from yarn_gguf.gguf.header import Header, ValueType, read_header
from yarn_gguf.rope.architectures import architecture
from yarn_gguf.rope.gguf_read import log_multiplier
from yarn_gguf.rope.read import RopeModel, model_of
from yarn_gguf.rope.scaling import RopeScaling


def read_extensible(path: str | Path, output: str | Path | None = None, force: bool = False) -> RopeModel:
    """Read the model in the file at `path`.

    Raises GGUFError or RopeScalingError if extend would refuse this model or this output whatever the
    scaling, and OSError.
    """
    header = read_header(path)
    if output is not None:
        check_output(header, Path(output), force)
    model = model_of(header)
    check_extensible(model)
    return model


def check_output(header: Header, output: Path, force: bool) -> None:
    """Raise GGUFError if the extended copy of a file must not be written to `output`."""
    if output.exists() and output.samefile(header.path):
        raise GGUFError(f"{output}: output and input are the same file: use --in-place (output=None)")
    require_replaceable(output, error=GGUFError)
    if output.exists() and not force:
        raise GGUFError(f"{output} exists: use --force to replace it, or choose another name")
    count = header.get("split.count", ValueType.UINT16, 0)
    if count > 1:
        raise GGUFError(
            f"{header.path}: part 1 of {count} of a split model, which finds the others by its own name: "
            "use --in-place, or merge the parts first (llama-gguf-split --merge)"
        )


def check_extensible(model: RopeModel) -> None:
    """Raise RopeScalingError if the file scales the model by anything that extend does not replace.

    Such a scaling would stay and apply on top of the new one, which is not defined.
    """
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


def check_mscale(model: RopeModel, scaling: RopeScaling) -> None:
    """Raise RopeScalingError if `scaling` would change the model's attention outside the rope."""
    if scaling.mscale_all_dim and architecture(model.arch).log_multiplier_scale:
        raise RopeScalingError(
            f"{model.path}: mscale_all_dim = {scaling.mscale_all_dim:g} changes the attention of a "
            f"{model.arch} model as well, for which the file lacks what a converter writes: "
            "convert the checkpoint again"
        )
