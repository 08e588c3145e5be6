"""Granite 3: Llama with multipliers on embeddings, attention, residuals and logits."""

from __future__ import annotations

import gguf

from yarn_gguf.convert.arch.llama import Llama

_MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")


class Granite(Llama):
    model_arch = gguf.MODEL_ARCH.GRANITE
    model_classes = ("GraniteForCausalLM",)
    converted = Llama.converted | set(_MULTIPLIERS)

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        super().add_attention_keys(writer)
        embedding, attention, residual, logits = map(self._multiplier, _MULTIPLIERS)
        writer.add_embedding_scale(embedding)
        writer.add_attention_scale(attention)
        writer.add_residual_scale(residual)
        writer.add_logit_scale(logits)

    def _multiplier(self, name: str) -> float:
        """Return a multiplier. Raises RopeScalingError for 0, which means "none given" to llama.cpp."""
        value = self.config.number(name, 1.0)
        if not value:
            self.config.refuse(name, "a number other than 0")
        return value
