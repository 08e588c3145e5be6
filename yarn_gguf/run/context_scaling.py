"""The scaling of a Llama's contexts: chosen when the model is loaded, or changed later."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from yarn_gguf.errors import LongFactorsWarning, ReplacedScalingWarning, RopeScalingError
from yarn_gguf.gguf.header import Header
from yarn_gguf.native.cache_types import CACHE_TYPES
from yarn_gguf.native.scaling import set_dynamic_scaling, set_rope_frequencies
from yarn_gguf.rope.dynamic import DynamicScaling, Scaling
from yarn_gguf.rope.llama_cpp import FrequencyTable, context_arguments, frequency_table
from yarn_gguf.rope.read import RopeModel, dynamic_in, longrope_in, model_of
from yarn_gguf.rope.requested import (
    RequestedScaling,
    by_length,
    replaced_scaling,
    requested_scaling,
    require_own_base,
    static_part,
)
from yarn_gguf.rope.scaling import rope_op_has
from yarn_gguf.run.arguments import ROPE_ARGUMENTS


@dataclass(frozen=True)
class ContextScaling:
    """A scaling, and the table of frequencies that a context needs for it.

    scaling: None where the file, or llama_cpp.Llama's own arguments, decide. table: None where the context's
    parameters express the scaling, and for dynamic scaling. is_optional: nobody asked for it by name, so a
    context that cannot have it does without.
    """

    scaling: Scaling | None = None
    table: FrequencyTable | None = None
    is_optional: bool = False

    @property
    def is_for_request(self) -> bool:
        """Whether s is set for prompt and answer before the prompt is read (policy "request")."""
        return isinstance(self.scaling, DynamicScaling) and self.scaling.reserves_for_request

    def apply(self, context: int) -> None:
        """Give an empty context the part that its parameters do not express. Raises RopeScalingError."""
        if isinstance(self.scaling, DynamicScaling):
            set_dynamic_scaling(context, self.scaling)
        elif self.table is not None:
            set_rope_frequencies(context, *self.table)

    def applied(self, context: int) -> ContextScaling:
        """Apply this scaling to an empty context; return it. If it is optional and refused, the file decides.

        Raises RopeScalingError.
        """
        try:
            self.apply(context)
        except RopeScalingError as error:
            if not self.is_optional:
                raise
            warnings.warn(
                f"short texts are computed with LongRoPE's factors for long ones: {error}",
                LongFactorsWarning,
                stacklevel=3,
            )
            return ContextScaling()
        return self

    def for_length(self, model: RopeModel, n_ctx: int) -> ContextScaling:
        """Return this scaling for a further context of `n_ctx` tokens: LongRoPE's table depends on that."""
        if self.scaling is None or self.table is None:
            return self
        return ContextScaling(self.scaling, frequency_table(static_part(self.scaling), model, n_ctx))


def scaling_of_longrope(model: RopeModel, n_ctx: int) -> ContextScaling:
    """Return the scaling of a model that has LongRoPE: its factors are those of the text's length.

    n_ctx: tokens; 0 for the model's context. Where no text is beyond the original one, the file decides.
    """
    is_longer = (n_ctx or model.context_length) > model.original_context
    return ContextScaling(by_length(model.scaling), is_optional=True) if is_longer else ContextScaling()


def scaling_at_load(
    asked: RequestedScaling | None, header: Header, given: dict[str, Any]
) -> tuple[ContextScaling, dict[str, Any]]:
    """Return the scaling of a Llama that is about to be loaded, and arguments of llama_cpp.Llama for it.

    asked: None for that of the file. given: the caller's other arguments. Raises RopeScalingError.
    """
    arguments = sorted(given.keys() & set(ROPE_ARGUMENTS))
    if asked is None and (asked := dynamic_in(header)) is not None and arguments:
        asked = None
        warnings.warn(
            f"{header.path}: {', '.join(arguments)} replaces the dynamic scaling that the file asks for "
            "(rope.scaling.dynamic): leave it out to keep that",
            stacklevel=3,
        )
    if asked is not None:
        model = model_of(header)
        scaling, chosen = scaling_to_load(asked, model, given)
        warn_of_replaced(model, scaling.scaling, stacklevel=4)
        return scaling, chosen
    longrope = None if arguments else longrope_in(header)
    return ContextScaling() if longrope is None else scaling_of_longrope(longrope, given["n_ctx"]), {}


def scaling_to_load(
    asked: RequestedScaling, model: RopeModel, given: dict[str, Any]
) -> tuple[ContextScaling, dict[str, Any]]:
    """Return the scaling that is asked for, and the arguments of llama_cpp.Llama for it.

    given: the caller's other arguments. Raises RopeScalingError.
    """
    if others := [name for name in ROPE_ARGUMENTS if name in given]:
        raise RopeScalingError(f"give rope_scaling or {', '.join(others)}, not both")
    scaling = requested_scaling(asked, model, given["n_ctx"])
    static = static_part(scaling)
    chosen, table = context_arguments(static, model), None
    if not rope_op_has(static):
        table = frequency_table(static, model, given["n_ctx"] or model.context_length)
    is_exact = isinstance(scaling, DynamicScaling) and scaling.needs_float32_keys
    if is_exact and "type_k" not in given:
        chosen["type_k"] = CACHE_TYPES["f32"]  # other types lose small rotations in rounding
    return ContextScaling(scaling, table), chosen


def warn_of_replaced(model: RopeModel, scaling: Scaling | None, stacklevel: int = 3) -> None:
    """Warn the caller of Llama if `scaling` takes the place of the one that the model was trained with."""
    own = None if scaling is None else replaced_scaling(model, scaling)
    if own is not None:
        text = f"{model.path}: the model was trained with {own.method} scaling, which rope_scaling replaces"
        warnings.warn(text, ReplacedScalingWarning, stacklevel=stacklevel)


def scaling_to_change(
    asked: RequestedScaling | None, model: RopeModel, n_ctx: int, rope_freq_base: float
) -> ContextScaling:
    """Return a scaling for a context that was made with another one.

    asked: None for the scaling of the file. rope_freq_base: the base of the context; 0 for the file's. Raises
    RopeScalingError.
    """
    if asked is None:
        asked = model.dynamic or by_length(model.scaling)
    scaling = requested_scaling(asked, model, n_ctx)
    require_own_base(scaling, model, rope_freq_base)
    return ContextScaling(scaling, frequency_table(static_part(scaling), model, n_ctx))
