"""Convert a checkpoint to the tensor types of a GGUF file: a control for a file that may be made from it."""

from __future__ import annotations

from pathlib import Path

from yarn_gguf.convert.arch import architecture
from yarn_gguf.convert.hf_to_gguf import write
from yarn_gguf.convert.plan import ConversionPlan, plan_conversion
from yarn_gguf.disk.fingerprint import model_files
from yarn_gguf.errors import OtherModelError
from yarn_gguf.gguf.header import ValueType, read_header
from yarn_gguf.rope.hf_config import read_config
from yarn_gguf.rope.scaling import RopeScaling


def plan_control(model: str | Path, folder: str | Path, scaling: RopeScaling | None = None) -> ConversionPlan:
    """Return the plan of a file without a vocabulary that has the tensor types of the GGUF file `model`.

    scaling: replaces the checkpoint's own. Raises OtherModelError if the checkpoint in `folder` makes another
    model, and what convert raises.
    """
    headers = [read_header(part) for part in model_files(model)]
    arch = headers[0].get("general.architecture", ValueType.STRING)
    own = architecture(read_config(folder)).name
    if arch != own:
        raise OtherModelError(f"it is a {arch} model, and the checkpoint makes a {own} model")
    stored = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    return plan_conversion(folder, type="f32", scaling=scaling, tokenizer=False, like=stored)


def write_control(plan: ConversionPlan, output: str | Path) -> None:
    """Write the file that was planned. Raises as convert does."""
    write(plan, plan.paths(Path(output)))
