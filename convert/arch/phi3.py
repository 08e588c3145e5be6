"""Phi-3 and Phi-4-mini: fused projections, and a rotary embedding on a part of each head."""

from __future__ import annotations

import gguf

from yarn_gguf.convert.arch.base import Architecture


class Phi3(Architecture):
    model_arch = gguf.MODEL_ARCH.PHI3
