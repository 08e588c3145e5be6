"""The rotary embedding of the model in a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.dynamic import DynamicScaling, dynamic_from
from yarn_gguf.errors import GGUFError, RopeScalingError
from yarn_gguf.gguf_file import AGAIN, Header, ValueType, read_floats, read_header
from yarn_gguf.gguf_scaling import FREQ_FACTORS, ORIGINAL_FREQ_BASE, extended_context, read_scaling
from yarn_gguf.rope import RopeScaling

MAX_DIMENSIONS = 1 << 16  # of a head; more is damage

# llama_model_rope_type in llama.cpp says "none", or positions are learned embeddings (bert, starcoder)
_WITHOUT_ROPE = frozenset(
    (
        *("bert", "bloom", "clip", "gpt2", "gptj", "jais", "jina-bert-v2", "mpt", "refact", "starcoder"),
        *("t5", "t5encoder", "wavtokenizer-dec"),
        *("arwkv7", "jamba", "kimi-linear", "mamba", "mamba2", "nemotron_h", "nemotron_h_moe"),
        *("rwkv6", "rwkv6qwen2", "rwkv7"),
    )
)


@dataclass(frozen=True)
class RotaryEmbedding:
    """A model's rotary embedding before any scaling.

    arch: what its keys begin with. dim: rotary dimensions of a head. rope_theta: the base that the model
    was trained with.
    """

    arch: str
    dim: int
    rope_theta: float

    def key(self, suffix: str) -> str:
        """The full name of a key of this architecture."""
        return f"{self.arch}.{suffix}"


@dataclass(frozen=True)
class RopeModel(RotaryEmbedding):
    """The rotary embedding in a file, and the file's header. Made by read_model.

    context_length, original_context: tokens; what the file claims, and what it says that the model was
    trained with (the same, where it says nothing of it).
    """

    path: Path
    context_length: int
    original_context: int
    header: Header = field(repr=False)

    @cached_property
    def scaling(self) -> RopeScaling:
        """The scaling that the file asks for. Raises RopeScalingError or GGUFError if it makes no sense."""
        try:
            return read_scaling(self)
        except RopeScalingError as error:
            keys, remedy = self.key("rope.scaling"), "yarn-gguf extend writes a sound set"
            raise RopeScalingError(f"{self.path}: {error} (keys {keys}.*); {remedy}") from error

    @cached_property
    def dynamic(self) -> DynamicScaling | None:
        """The dynamic scaling that the file asks for, if any. Raises as `scaling` does."""
        policy = self.get("rope.scaling.dynamic", ValueType.STRING)
        if policy is None:
            return None
        is_fine_tuned = self.get("rope.scaling.finetuned", ValueType.BOOL, False)
        ntk_factor = self.get("rope.scaling.dynamic_ntk_factor", ValueType.FLOAT32, 1.0)
        return dynamic_from(self.scaling, policy, self.scaling.factor if is_fine_tuned else 1.0, ntk_factor)

    @cached_property
    def freq_factors(self) -> tuple[float, ...] | None:
        """What divides each frequency before any scaling: Llama 3.1's tensor rope_freqs.weight."""
        return read_floats(self.header, FREQ_FACTORS)

    @property
    def usable_context(self) -> int:
        """Tokens that the file is made for: factor times original context. Raises as `scaling` does."""
        scaling, original = self.scaling, self.scaling.original_max_position_embeddings
        is_ratio = scaling.method not in ("longrope", "llama3")  # the factor, of two contexts
        if original is None or not is_ratio:
            return self.context_length
        return extended_context(scaling.factor, original)

    def get(self, suffix: str, type_: ValueType, default: Any = None) -> Any:
        """The value of a key of this architecture; see Header.get."""
        return self.header.get(self.key(suffix), type_, default)


def read_model(path: str | Path) -> RopeModel:
    """The rotary embedding of the model in the GGUF file at `path`.

    Raises GGUFError for a damaged file or a missing key, RopeScalingError for a model without rotary
    embedding, OSError.
    """
    return model_of(read_header(path))


def dynamic_in(header: Header) -> DynamicScaling | None:
    """The dynamic scaling that a file asks for, if any. Raises as RopeModel.scaling does."""
    arch = header.get("general.architecture", ValueType.STRING)
    asks = f"{arch}.rope.scaling.dynamic" in header.entries
    return model_of(header).dynamic if asks else None


def model_of(header: Header) -> RopeModel:
    """As read_model, for a header that has been read."""
    arch = _architecture(header)
    theta = header.get(f"{arch}.rope.freq_base", ValueType.FLOAT32, 10000.0)
    theta = header.get(ORIGINAL_FREQ_BASE, ValueType.FLOAT32, theta)
    if not (np.isfinite(theta) and theta > 1):
        raise RopeScalingError(f"{header.path}: {arch}.rope.freq_base = {theta}: a number > 1 is needed")
    context = header.get(f"{arch}.context_length", ValueType.UINT32, 0)
    if context == 0:
        raise GGUFError(f"{header.path}: {arch}.context_length is missing or 0: convert the model again")
    original = header.get(f"{arch}.rope.scaling.original_context_length", ValueType.UINT32) or context
    return RopeModel(arch, _rotary_dimensions(header, arch), theta, header.path, context, original, header)


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
    if arch is None:
        raise GGUFError(f"{header.path}: general.architecture is missing: convert the model again")
    if arch in _WITHOUT_ROPE:
        raise RopeScalingError(f"{header.path}: {arch} models have no rotary embedding to scale")
    return arch


def _rotary_dimensions(header: Header, arch: str) -> int:
    """As llama.cpp finds them (load_hparams in llama-model.cpp)."""
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
    """One number, or one a layer, of which some may be 0."""
    entry = header.entries.get(key)
    if entry is None or entry.type != ValueType.ARRAY:
        return header.get(key, ValueType.UINT32, 0)
    counts = [count for count in entry.value if isinstance(count, int)]
    return max(0, *counts) if counts else 0
