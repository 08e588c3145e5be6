"""Phi-3 and Phi-4-mini: fused projections, and a rotary embedding on a part of each head."""

from __future__ import annotations

import gguf

from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.convert.arch.config_keys import SILU, Assumptions


class Phi3(Architecture):
    model_arch = gguf.MODEL_ARCH.PHI3
    model_classes = ("Phi3ForCausalLM",)
    converted = Architecture.converted | {"original_max_position_embeddings"}

    @property
    def assumed(self) -> Assumptions:
        return super().assumed | {"hidden_act": SILU}
