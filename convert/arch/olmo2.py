"""OLMo 2 and OLMo 3. OLMo 3 has layers with a sliding window."""

from __future__ import annotations

import gguf

from yarn_gguf.convert.arch.base import Architecture


class Olmo2(Architecture):
    model_arch = gguf.MODEL_ARCH.OLMO2
    needs_output = True
    has_windows = True

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        super().add_attention_keys(writer)
        if self.config.values.get("sliding_window"):
            self.add_sliding_window(writer)
