"""Read the rotary embedding, the scaling and the dynamic scaling of the model in a GGUF file."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from yarn_gguf.errors import GGUFError, RopeScalingError
from yarn_gguf.gguf.header import AGAIN, Header, ValueType, read_header
from yarn_gguf.rope.architectures import architecture
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.factor_tensors import LONG_FACTORS, read_freq_factors
from yarn_gguf.rope.gguf_keys import ORIGINAL_FREQ_BASE
from yarn_gguf.rope.gguf_read import read_scaling
from yarn_gguf.rope.model import MAX_DIMENSIONS, StoredRope
from yarn_gguf.rope.scaling import RopeScaling

DEFAULT_FREQ_BASE = 10000.0  # llama.cpp's, for a file without the key


@dataclass(frozen=True)
class RopeModel(StoredRope):
    """The rotary embedding in a file, and the scalings that the file asks for. Made by read_model."""

    @cached_property
    def scaling(self) -> RopeScaling:
        """The scaling that the file asks for.

        Raises RopeScalingError, or GGUFError for a key of the wrong type, if it makes no sense for the model.
        """
        try:
            scaling = read_scaling(self)
            scaling.check(self.dim, self.rope_theta)
            return scaling
        except RopeScalingError as error:
            keys, remedy = self.key("rope.scaling"), "yarn-gguf extend writes a sound set"
            raise RopeScalingError(f"{self.path}: {error} (keys {keys}.*); {remedy}") from error

    @cached_property
    def dynamic(self) -> DynamicScaling | None:
        """The dynamic scaling that the file asks for, else None. Raises as `scaling` does."""
        policy = self.get("rope.scaling.dynamic", ValueType.STRING)
        if policy is None:
            return None
        ntk_factor = self.get("rope.scaling.dynamic_ntk_factor", ValueType.FLOAT32, 1.0)
        smallest = self.scaling.factor if self.is_finetuned else 1.0
        return DynamicScaling(replace(self.scaling, factor=smallest), policy, ntk_factor)

    @property
    def usable_context(self) -> int:
        """Tokens that the file is made for: factor times original context.

        If the factor is no ratio of contexts, the file's context_length. Raises as `scaling` does.
        """
        return self.scaling.extended_context or self.context_length


def read_model(path: str | Path) -> RopeModel:
    """Return the rotary embedding of the model in the GGUF file at `path`.

    Raises GGUFError for a damaged file or a missing key, RopeScalingError for a model without a rotary
    embedding, and OSError.
    """
    return model_of(read_header(path))


def scaling_from_gguf(path: str | Path) -> RopeScaling:
    """Return the static scaling that the GGUF file at `path` asks for. Raises as read_model does."""
    return read_model(path).scaling


def dynamic_in(header: Header) -> DynamicScaling | None:
    """Return the dynamic scaling that a file asks for, else None. Raises as RopeModel.scaling does."""
    arch = header.get("general.architecture", ValueType.STRING)
    asks = f"{arch}.rope.scaling.dynamic" in header.entries
    return model_of(header).dynamic if asks else None


def longrope_in(header: Header) -> RopeModel | None:
    """Return the rotary embedding of a model that has LongRoPE, else None. Raises as model_of."""
    arch = header.get("general.architecture", ValueType.STRING)
    is_longrope = LONG_FACTORS in header.tensors or f"{arch}.rope.scaling.long_factor" in header.entries
    model = model_of(header) if is_longrope else None
    return model if model is not None and model.scaling.method == "longrope" else None


def model_of(header: Header) -> RopeModel:
    """Return the rotary embedding in a header. Raises as read_model does."""
    arch = _architecture(header)
    theta = header.get(f"{arch}.rope.freq_base", ValueType.FLOAT32, DEFAULT_FREQ_BASE)
    theta = header.get(ORIGINAL_FREQ_BASE, ValueType.FLOAT32, theta)
    if not (np.isfinite(theta) and theta > 1):
        raise RopeScalingError(f"{header.path}: {arch}.rope.freq_base = {theta}: a number > 1 is needed")
    context = header.get(f"{arch}.context_length", ValueType.UINT32, 0)
    if context == 0:
        raise GGUFError(f"{header.path}: {arch}.context_length is missing or 0: convert the model again")
    original = header.get(f"{arch}.rope.scaling.original_context_length", ValueType.UINT32)
    dim = _rotary_dimensions(header, arch)
    model = RopeModel(arch, dim, theta, header.path, context, original or context, header)
    return model if original else replace(model, original_context=_unstated_context(model))


# ----------------------------------------------------------------------------------------------


def _architecture(header: Header) -> str:
    arch = header.get("general.architecture", ValueType.STRING)
    shard = header.get("split.no", ValueType.UINT16, 0)
    if shard > 0:
        count = header.get("split.count", ValueType.UINT16, 0)
        raise GGUFError(
            f"{header.path}: part {shard + 1} of {count} of a split model: the keys are in part 1, "
            f"the file named ...-00001-of-{count:05}.gguf"
        )
    if header.get("general.type", ValueType.STRING) == "adapter":
        raise GGUFError(f"{header.path} is a LoRA adapter: give the file of its model (general.type)")
    if arch is None:
        raise GGUFError(f"{header.path}: general.architecture is missing: convert the model again")
    if not architecture(arch).has_rope:
        raise RopeScalingError(f"{header.path}: {arch} models have no rotary embedding to scale")
    return arch


def _unstated_context(model: RopeModel) -> int:
    """Return the original context of a file without the key, which a tensor of rope factors may tell."""
    with suppress(RopeScalingError):  # reported by `scaling`
        if read_freq_factors(model) is not None:
            return model.scaling.original_max_position_embeddings or model.context_length
    return model.context_length


def _rotary_dimensions(header: Header, arch: str) -> int:
    """Return the rotary dimensions of a head, as llama.cpp finds them (load_hparams in llama-model.cpp)."""
    n_head = _head_count(header, f"{arch}.attention.head_count")
    if n_head == 0:
        raise RopeScalingError(f"{header.path}: no {arch}.attention.head_count, hence no rotary embedding")
    width = header.get(f"{arch}.embedding_length", ValueType.UINT32, 0) // n_head
    width = header.get(f"{arch}.attention.key_length", ValueType.UINT32, width)
    dim = header.get(f"{arch}.rope.dimension_count", ValueType.UINT32, width)
    if dim == 0:
        raise RopeScalingError(f"{header.path}: {arch}.rope.dimension_count = 0: no rotary embedding")
    if dim % 2 or dim > MAX_DIMENSIONS:
        expected = f"an even number up to {MAX_DIMENSIONS}"
        raise GGUFError(f"{header.path}: {arch}.rope.dimension_count = {dim}, not {expected}: {AGAIN}")
    return dim


def _head_count(header: Header, key: str) -> int:
    """Return the number of heads; the largest, if each layer has its own number. Some of these may be 0."""
    entry = header.entries.get(key)
    if entry is None or entry.type != ValueType.ARRAY:
        return header.get(key, ValueType.UINT32, 0)
    counts = [count for count in entry.value if isinstance(count, int)]
    return max(0, *counts) if counts else 0
