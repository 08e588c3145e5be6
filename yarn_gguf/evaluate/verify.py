"""Compare a GGUF file with the checkpoint from which it was made: the scaling, the tokens, the logits.

Each verdict "as expected of Q4_K_M" is measured, not looked up. The checkpoint is converted once more, with
the types of the file's own tensors, and the same library reads this control. A file that was made from the
checkpoint is about as far from it as the control is. Another model is farther.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from yarn_gguf.convert.control import plan_control, write_control
from yarn_gguf.convert.plan import ConversionPlan
from yarn_gguf.convert.tokenizer import TokenizerFiles, vocabulary_difference
from yarn_gguf.convert.types import TYPES
from yarn_gguf.disk.fingerprint import model_files
from yarn_gguf.errors import ConversionError, OtherModelError, RopeScalingError, YarnGGUFError
from yarn_gguf.evaluate.logit_errors import PositionErrors, read_errors
from yarn_gguf.evaluate.reference import require_transformers
from yarn_gguf.evaluate.verdict import judge
from yarn_gguf.gguf.header import ValueType, read_header
from yarn_gguf.model_file.extend import rope_from_hf
from yarn_gguf.model_file.extensible import check_extensible, check_mscale
from yarn_gguf.model_file.facts import type_name
from yarn_gguf.progress import Progress
from yarn_gguf.rope.compare import RopeDifference, rope_differences
from yarn_gguf.rope.hf_rope import read_hf_rope
from yarn_gguf.rope.read import RopeModel, read_model
from yarn_gguf.rope.scaling import RopeScaling


@dataclass(frozen=True)
class Verification:
    """The outcome of verify.

    passed: whether the file is the checkpoint, as far as its types allow. verdict: one line that says so.
    type: llama.cpp's name for the types of the file's tensors.
    differences: in the rotary embedding. positions: errors of the logits; empty if they were not compared.
    """

    passed: bool
    verdict: str
    type: str
    differences: tuple[RopeDifference, ...] = ()
    positions: tuple[PositionErrors, ...] = ()


def verify(
    path: str | Path,
    folder: str | Path,
    tokens: Sequence[int],
    *,
    max_kl: float | None = None,
    file_scaling: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Compare a GGUF file with a checkpoint, by what both ask for and by what both compute.

    First the rotary embeddings are compared, then the tokenizers, then the logits of `tokens`, where
    transformers computes those of the checkpoint. The first difference ends it.

    path: the GGUF file. folder: the checkpoint's. max_kl: the largest KL divergence in nats that passes, in
    place of what the types explain; then no control is made. file_scaling: the file was extended on purpose,
    and the checkpoint gets its scaling. If the file is dynamic, both use its static factor.
    Memory: the checkpoint in float32, the file twice, and three times the logits of 512 tokens. The control
    is a temporary file of the same size. Raises YarnGGUFError, including the errors of Reference and Llama.
    """
    model = read_model(path)
    type_ = type_name([read_header(part) for part in model_files(path)]) or "no type"
    differences = () if file_scaling else tuple(rope_differences(read_hf_rope(folder), model))
    if differences:
        return Verification(
            False, f"scaling differs: {_remedy(model, folder, type_, differences)}", type_, differences
        )
    if difference := _tokenizer_difference(model, Path(folder)):
        return Verification(False, f"not the same tokenizer: {difference}", type_)
    require_transformers()
    try:
        plan = _plan(path, folder, model.scaling if file_scaling else None, is_needed=max_kl is None)
        with _written(plan if max_kl is None else None) as control:
            positions = tuple(read_errors(model, folder, control, tokens, file_scaling, progress))
    except OtherModelError as error:
        return Verification(False, f"not the same model: {error}", type_)
    passed, verdict = judge(positions, type_, max_kl)
    return Verification(passed, verdict, type_, positions=positions)


# ----------------------------------------------------------------------------------------------


def _remedy(model: RopeModel, folder: str | Path, type_: str, differences: Sequence[RopeDifference]) -> str:
    """Return the command that gives the file the checkpoint's scaling: extend, or else convert."""
    if not _is_extensible(model, folder, differences):
        name = type_.lower() if type_.lower() in TYPES else "TYPE"
        command = ["convert", str(folder), "-o", str(model.path), "--type", name, "--force"]
    else:
        command = ["extend", str(model.path), "--in-place", "--from-hf", str(folder)]
    return "mend with " + shlex.join(["yarn-gguf", *command])


def _is_extensible(model: RopeModel, folder: str | Path, differences: Sequence[RopeDifference]) -> bool:
    """Return whether yarn-gguf extend can mend the differences."""
    try:
        check_extensible(model)
        check_mscale(model, rope_from_hf(model.path, folder).scaling)
    except RopeScalingError:
        return False
    return all(each.is_scaling for each in differences)


def _tokenizer_difference(model: RopeModel, folder: Path) -> str | None:
    """Return the first difference of the tokenizers; None if one of the two has none."""
    kind = model.header.get("tokenizer.ggml.model", ValueType.STRING)
    try:
        files = TokenizerFiles(folder)
    except ConversionError:
        return None
    return None if kind in (None, "none", "no_vocab") else vocabulary_difference(model.path, files)


def _plan(
    path: str | Path, folder: str | Path, scaling: RopeScaling | None, is_needed: bool
) -> ConversionPlan | None:
    """Return the plan of the control, which also compares architecture and shapes.

    None if the checkpoint cannot be converted, and the control is not needed. Raises as plan_control does.
    """
    try:
        return plan_control(path, folder, scaling)
    except OtherModelError:
        raise
    except ConversionError as error:
        if not is_needed:
            return None
        raise YarnGGUFError(
            f"{error} (verify converts it, to see how far {path} may be from it: give a limit with --max-kl)"
        ) from error


@contextmanager
def _written(plan: ConversionPlan | None) -> Iterator[Path | None]:
    """Write the file that was planned into a temporary folder."""
    if plan is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="yarn-gguf-") as scratch:
        path = Path(scratch, "control.gguf")
        write_control(plan, path)
        yield path
