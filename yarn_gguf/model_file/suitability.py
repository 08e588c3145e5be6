"""Whether the rope scaling of a file suits a context, and what mends it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.gguf.header import Header
from yarn_gguf.model_file.extend import refuse_other_scaling
from yarn_gguf.model_file.extend_options import options_of
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.read import RopeModel, model_of
from yarn_gguf.rope.scaling import RopeScaling

_MUCH = 2  # times the factor that a context needs: more than it should bear


@dataclass(frozen=True)
class Suitability:
    """verdict: "suits", "too small", "needlessly large", "better dynamic", "unsound" or "no rope".

    command: of yarn-gguf extend, that mends it; None where nothing has to be mended, or nothing can be.
    """

    verdict: str
    reason: str
    command: str | None = None


def suitability(
    header: Header, context: int, can_be_dynamic: Callable[[DynamicScaling], bool]
) -> Suitability:
    """How the rope scaling of a file suits texts of `context` tokens.

    can_be_dynamic: whether the library can scale the model so. Raises GGUFError.
    """
    try:
        model = model_of(header)
    except RopeScalingError as error:
        return Suitability("no rope", str(error))
    needed = _factor(context / model.original_context)
    try:
        scaling, usable, dynamic = model.scaling, model.usable_context, model.dynamic
    except RopeScalingError as error:
        return _mend(model, "unsound", str(error), RopeScaling("yarn", needed))
    made_for = f"the file is made for {usable:,} tokens"
    is_idle = scaling.factor == 1 or dynamic is not None  # on texts that need no factor
    if context <= usable and (not scaling.is_extension or is_idle or model.is_finetuned):
        return Suitability("suits", made_for)
    if scaling.is_trained_in:
        return Suitability(
            "too small", f"{made_for}, trained with {scaling.method} scaling: nothing extends it"
        )
    wanted = replace(scaling, factor=needed) if scaling.is_extension else RopeScaling("yarn", needed)
    policy = dynamic.policy if dynamic else "growth"
    if not _can_be_dynamic(model, wanted, policy, can_be_dynamic):
        policy = None
    if context > usable:
        return _mend(model, "too small", made_for, wanted, policy)
    if scaling.factor >= _MUCH * needed:
        taxes = f"every text pays for a factor of {scaling.factor:g}, and {context:,} tokens need {needed:g}"
        return _mend(model, "needlessly large", taxes, scaling if policy else wanted, policy)
    if policy is None:
        return Suitability("suits", made_for)
    alone = f"texts of up to {model.original_context:,} would run unscaled"
    return _mend(model, "better dynamic", f"{made_for}; {alone}", scaling, policy)


# ----------------------------------------------------------------------------------------------


def _factor(ratio: float) -> float:
    """The next quarter, which float32 holds."""
    return max(1.0, math.ceil(4 * ratio) / 4)


def _can_be_dynamic(
    model: RopeModel, scaling: RopeScaling, policy: str, library_can: Callable[[DynamicScaling], bool]
) -> bool:
    try:
        static = replace(scaling, factor=1.0, attention_factor=None, mscale=None)
        dynamic = DynamicScaling(static, policy)
    except RopeScalingError:
        return False
    return library_can(dynamic.with_original_context(model.original_context))


def _mend(
    model: RopeModel, verdict: str, reason: str, scaling: RopeScaling, policy: str | None = None
) -> Suitability:
    """With the command that gives the file `scaling`, if extend would do that."""
    try:
        refuse_other_scaling(model)
    except RopeScalingError as error:
        return Suitability(verdict, f"{reason}; {error}")
    if scaling.factor == 1:
        options = options_of(RopeScaling("none"))
    else:
        options = options_of(replace(scaling, attention_factor=None), policy)  # the method has its own
    command = ["yarn-gguf", "extend", str(model.path), "--in-place", *options]
    return Suitability(verdict, reason, shlex.join(command))
