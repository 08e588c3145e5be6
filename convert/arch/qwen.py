"""Qwen2 and Qwen3."""

from __future__ import annotations

import gguf

from yarn_gguf.convert.arch.base import Architecture


class Qwen2(Architecture):
    model_arch = gguf.MODEL_ARCH.QWEN2


class Qwen3(Architecture):
    model_arch = gguf.MODEL_ARCH.QWEN3
