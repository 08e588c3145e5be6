"""Granite 3: Llama with multipliers on embeddings, attention, residuals and logits."""

from __future__ import annotations

import gguf

from yarn_gguf.convert.arch.llama import Llama


class Granite(Llama):
    model_arch = gguf.MODEL_ARCH.GRANITE

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        super().add_attention_keys(writer)
        number = self.config.number
        writer.add_embedding_scale(number("embedding_multiplier", 1.0))
        writer.add_attention_scale(number("attention_multiplier", 1.0))
        writer.add_residual_scale(number("residual_multiplier", 1.0))
        writer.add_logit_scale(number("logits_scaling", 1.0))
