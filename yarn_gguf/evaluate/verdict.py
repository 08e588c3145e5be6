"""Judge whether the logits of a GGUF file are as near to its checkpoint as the types of its weights allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from yarn_gguf.evaluate.logit_errors import PositionErrors

MOST = 1.5  # times the KL divergence of the control; docs/convert.md has the measurement
ROUNDING = 1e-6  # nats; with weights in float32, a cache in float16 makes 6e-7 (docs/rope-op.md)
_ENOUGH = 64  # positions; the mean of fewer says too little


class _Stretch(NamedTuple):
    """Positions [start, stop), with the mean KL divergence of the file, and the largest that passes."""

    start: int
    stop: int
    kl: float
    expected: float | None
    allowed: float


def judge(positions: Sequence[PositionErrors], type_: str, max_kl: float | None) -> tuple[bool, str]:
    """Return whether the logits are near enough everywhere, and the verdict on where they are farthest.

    type_: llama.cpp's name for the types of the file. max_kl: nats, in place of the control.
    """
    worst = max(_stretches(positions, max_kl), key=lambda each: each.kl / each.allowed)
    passed, kl = worst.kl <= worst.allowed, f"KL {worst.kl:.2g} at {worst.start:,} - {worst.stop:,}"
    if max_kl is not None:
        return passed, f"{'' if passed else 'not the same model: '}{kl}, where --max-kl is {max_kl:g}"
    if passed:
        return True, f"as expected of {type_}: {kl}, and {worst.expected:.2g} when converted again"
    return False, f"not the same model: {kl}, where {type_} explains {worst.expected:.2g}"


# ----------------------------------------------------------------------------------------------


def _stretches(positions: Sequence[PositionErrors], max_kl: float | None) -> Iterator[_Stretch]:
    """Yield the positions in stretches of _ENOUGH or more. The last takes what remains."""
    waiting: list[PositionErrors] = []
    left = sum(each.stop - each.start for each in positions)
    for each in positions:
        waiting.append(each)
        left -= each.stop - each.start
        if left == 0 or (each.stop - waiting[0].start >= _ENOUGH and left >= _ENOUGH):
            yield _stretch(waiting, max_kl)
            waiting = []


def _stretch(parts: Sequence[PositionErrors], max_kl: float | None) -> _Stretch:
    start, stop = parts[0].start, parts[-1].stop
    kl = sum(each.kl_divergence * (each.stop - each.start) for each in parts) / (stop - start)
    if max_kl is not None:
        return _Stretch(start, stop, kl, None, max_kl)
    expected = sum((each.expected_kl or 0.0) * (each.stop - each.start) for each in parts) / (stop - start)
    return _Stretch(start, stop, kl, expected, MOST * expected + ROUNDING)
