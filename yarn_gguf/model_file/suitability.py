"""Judge whether the rope scaling of a file suits a context, and propose the command that mends it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.gguf.header import Header
from yarn_gguf.model_file.extend_options import options_of
from yarn_gguf.model_file.extensible import check_extensible
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.read import RopeModel, model_of
from yarn_gguf.rope.scaling import RopeScaling

Verdict = Literal["suits", "too small", "needlessly large", "better dynamic", "unsound", "no rope"]

_TOO_LARGE = 2  # a static factor that is this many times the needed one costs short texts too much


@dataclass(frozen=True)
class Suitability:
    """The verdict on a file's rope scaling, and its reason.

    command: the yarn-gguf extend command that mends it. None if there is nothing to mend, or no way to.
    """

    verdict: Verdict
    reason: str
    command: str | None = None


def suitability(
    header: Header, context: int, can_be_dynamic: Callable[[DynamicScaling], bool]
) -> Suitability:
    """Judge the rope scaling of a file for texts of `context` tokens.

    can_be_dynamic: return whether the library supports this dynamic scaling for the model.
    Raises GGUFError.
    """
    try:
        model = model_of(header)
    except RopeScalingError as error:
        return Suitability("no rope", str(error))
    needed = _rounded_factor(context / model.original_context)
    try:
        scaling, usable, dynamic = model.scaling, model.usable_context, model.dynamic
    except RopeScalingError as error:
        return _mend(model, "unsound", str(error), RopeScaling("yarn", needed))
    made_for = f"the file is made for {usable:,} tokens"
    spares_short_texts = scaling.factor == 1 or dynamic is not None
    if context <= usable and (not scaling.is_extension or spares_short_texts or model.is_finetuned):
        return Suitability("suits", made_for)
    if scaling.is_trained_in:
        trained = f"trained with {scaling.method} scaling, which an extension would replace"
        return Suitability("too small", f"{made_for}, {trained}")
    wanted = replace(scaling, factor=needed) if scaling.is_extension else RopeScaling("yarn", needed)
    policy = _supported_policy(model, wanted, can_be_dynamic)
    if context > usable:
        return _mend(model, "too small", made_for, wanted, policy)
    if scaling.factor >= _TOO_LARGE * needed:
        taxes = f"every text pays for a factor of {scaling.factor:g}, and {context:,} tokens need {needed:g}"
        return _mend(model, "needlessly large", taxes, scaling if policy else wanted, policy)
    if policy is None:
        return Suitability("suits", made_for)
    alone = f"texts of up to {model.original_context:,} would run unscaled"
    return _mend(model, "better dynamic", f"{made_for}; {alone}", scaling, policy)


# ----------------------------------------------------------------------------------------------


def _rounded_factor(ratio: float) -> float:
    """Return `ratio` rounded up to a quarter, which float32 represents exactly; at least 1."""
    return max(1.0, math.ceil(4 * ratio) / 4)


def _supported_policy(
    model: RopeModel, scaling: RopeScaling, can_be_dynamic: Callable[[DynamicScaling], bool]
) -> str | None:
    """Return the policy to make `scaling` dynamic by: the file's own, else "growth". None: unsupported."""
    policy = model.dynamic.policy if model.dynamic else "growth"
    try:
        static = replace(scaling, factor=1.0, attention_factor=None, mscale=None)
        dynamic = DynamicScaling(static, policy)
    except RopeScalingError:
        return None
    is_supported = can_be_dynamic(dynamic.with_original_context(model.original_context))
    return policy if is_supported else None


def _mend(
    model: RopeModel, verdict: Verdict, reason: str, scaling: RopeScaling, policy: str | None = None
) -> Suitability:
    """Return the verdict with the command that gives the file `scaling`, unless extend would refuse it."""
    try:
        check_extensible(model)
    except RopeScalingError as error:
        return Suitability(verdict, f"{reason}; {error}")
    if scaling.factor == 1:
        options = options_of(RopeScaling("none"))
    else:
        options = options_of(replace(scaling, attention_factor=None), policy)  # the method has its own
    command = ["yarn-gguf", "extend", str(model.path), "--in-place", *options]
    return Suitability(verdict, reason, shlex.join(command))
