"""Compare the rotary embedding of a GGUF file with that of the checkpoint that it was made from.

The comparison is of numbers: the frequencies and the temperature that each results in. Names and keys may
differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from yarn_gguf.rope.architectures import architecture
from yarn_gguf.rope.formulas import yarn_mscale
from yarn_gguf.rope.hf_rope import HFRope
from yarn_gguf.rope.layers import window_base
from yarn_gguf.rope.names import describe
from yarn_gguf.rope.read import RopeModel
from yarn_gguf.rope.scaling import RopeFrequencies

# Relative. Files hold float32; a base that is off by one in 10,000 changes a frequency by 1e-4.
_SAME = 1e-5


@dataclass(frozen=True)
class RopeDifference:
    """Something in which a file and its checkpoint differ: `what`, and what each of them has.

    is_scaling: whether the keys of the scaling decide it, which yarn-gguf extend can replace.
    """

    what: str
    checkpoint: str
    file: str
    is_scaling: bool = True


def rope_differences(rope: HFRope, model: RopeModel) -> list[RopeDifference]:
    """Return how the rotary embedding of the file `model` differs from that of the checkpoint, `rope`.

    They are compared at every length of text at which one of them may change. Raises RopeScalingError if the
    file's scaling is unsound.
    """
    if rope.dim != model.dim:
        return [RopeDifference("rotary dimensions", str(rope.dim), str(model.dim), is_scaling=False)]
    found = _window_differences(rope, model)
    for length in _lengths(rope, model):
        if differences := _differences(rope, model, length):
            found = differences + found
            break
    if found:
        found.insert(0, RopeDifference("asks for", _asked(rope), _asked(model)))
    return found


def table_at(rope: HFRope | RopeModel, length: int) -> RopeFrequencies:
    """Return the frequencies and the temperature for a text of `length` tokens.

    Raises RopeScalingError if the scaling is unsound.
    """
    scaling = rope.scaling
    if rope.dynamic is not None:
        scaling = rope.dynamic.with_original_context(rope.original_context).at(length)
    scaling = scaling.with_original_context(rope.original_context)
    return scaling.frequencies(rope.dim, rope.rope_theta, seq_len=length)


# ----------------------------------------------------------------------------------------------


def _lengths(rope: HFRope, model: RopeModel) -> list[int]:
    """Return lengths in tokens: where LongRoPE's lists change, and within and beyond a dynamic growth."""
    originals = {rope.original_context, model.original_context}
    longest = max(rope.max_position_embeddings, model.usable_context)
    return sorted({1, *originals, *(length + 1 for length in originals), longest})


def _differences(rope: HFRope, model: RopeModel, length: int) -> list[RopeDifference]:
    """Return how the two differ for a text of `length` tokens."""
    theirs, ours = table_at(rope, length), table_at(model, length)
    of = f", in a text of {length:,} tokens" if _varies(rope) or _varies(model) else ""
    found = []
    ratios = np.abs(ours.inv_freq / theirs.inv_freq - 1)
    if ratios.max() > _SAME:
        worst = int(ratios.argmax())
        their_wave, our_wave = (
            f"{2 * math.pi / each.inv_freq[worst]:,.6g} tokens" for each in (theirs, ours)
        )
        found.append(RopeDifference(f"wavelength {worst} of {len(ratios)}{of}", their_wave, our_wave))
    scales = _logit_scale(rope, model.arch), _logit_scale(model, model.arch)
    for what, one, other in (
        (f"temperature{of}", theirs.attention_factor, ours.attention_factor),
        ("scale of attention logits", *scales),
    ):
        if not math.isclose(one, other, rel_tol=_SAME):
            found.append(RopeDifference(what, f"{one:.6g}", f"{other:.6g}"))
    return found


def _varies(rope: HFRope | RopeModel) -> bool:
    """Return whether the frequencies depend on the length of the text."""
    return rope.dynamic is not None or rope.scaling.method == "longrope"


def _window_differences(rope: HFRope, model: RopeModel) -> list[RopeDifference]:
    """Return the difference in the base of layers with a sliding window, if the checkpoint states one."""
    theirs, ours = rope.sliding_rope_theta, window_base(model)
    if theirs is None or ours is None or math.isclose(theirs, ours, rel_tol=_SAME):
        return []
    return [RopeDifference("base of sliding windows", f"{theirs:g}", f"{ours:g}", is_scaling=False)]


def _logit_scale(rope: HFRope | RopeModel, arch: str) -> float:
    """Return what DeepSeek's attention is multiplied by beside the rotary embedding; 1 elsewhere."""
    if not architecture(arch).scales_logits or not rope.scaling.mscale_all_dim:
        return 1.0
    return yarn_mscale(rope.scaling.factor, rope.scaling.mscale_all_dim) ** 2


def _asked(rope: HFRope | RopeModel) -> str:
    return f"{describe(rope.dynamic or rope.scaling)}; base {rope.rope_theta:g}"
