"""The rope keys and rope tensors of a converted checkpoint: for its own scaling, or for another."""

from __future__ import annotations

import gguf
import numpy as np

from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope.factor_tensors import factor_tensors, has_tensors
from yarn_gguf.rope.gguf_write import scaling_keys
from yarn_gguf.rope.model import RotaryEmbedding
from yarn_gguf.rope.scaling import RopeScaling


def add_rope_keys(
    writer: gguf.GGUFWriter, arch: Architecture, scaling: RopeScaling | None, dynamic: str | None
) -> None:
    """Write the keys of `scaling`; None stands for the checkpoint's own. Raises RopeScalingError.

    dynamic: the policy by which its factor follows the length of the text, or None.
    """
    rope, wanted, embedding = arch.rope, _wanted(arch, scaling), _embedding(arch)
    keys = scaling_keys(
        embedding,
        wanted,
        rope.dynamic_by(dynamic) if scaling is None else dynamic,
        # Llama 3's factor is no ratio of contexts: 8 extends Llama 3.1 from 8192 tokens to 131072
        context_length=rope.max_position_embeddings if wanted.method == "llama3" else None,
        finetuned=scaling is None and rope.finetuned,
        has_tensors=has_tensors(embedding, wanted),
    )
    for entry in keys:
        type_ = gguf.GGUFValueType(entry.type)
        sub_type = gguf.GGUFValueType.FLOAT64 if type_ == gguf.GGUFValueType.ARRAY else None
        writer.kv_data[0][entry.key] = gguf.GGUFValue(entry.value, type_, sub_type)


def rope_tensors(arch: Architecture, scaling: RopeScaling | None) -> dict[str, Tensor]:
    """Return the tensors of rope factors by which every llama.cpp scales as add_rope_keys asks.

    Raises RopeScalingError.
    """
    found = factor_tensors(_embedding(arch), _wanted(arch, scaling))
    return {name: _of_array(values) for name, values in found.items()}


def _of_array(values: np.ndarray) -> Tensor:
    return Tensor(values.shape, lambda start, stop: values[start:stop])


def _embedding(arch: Architecture) -> RotaryEmbedding:
    return RotaryEmbedding(arch.name, arch.rope.dim, arch.rope.rope_theta)


def _wanted(arch: Architecture, scaling: RopeScaling | None) -> RopeScaling:
    rope = arch.rope
    if scaling is not None and rope.scaling.mscale_all_dim:
        raise RopeScalingError(
            f"{rope.path}: mscale_all_dim {rope.scaling.mscale_all_dim:g} ties this model's attention to the "
            "scaling that it was trained with: it cannot have another"
        )
    return (scaling or rope.scaling).with_original_context(rope.original_context)
