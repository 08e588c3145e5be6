"""The rope keys and rope tensors of a converted checkpoint: for its own scaling, or for another."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope.factor_tensors import factor_tensors
from yarn_gguf.rope.gguf_write import scaling_keys
from yarn_gguf.rope.hf_rope import HFRope, read_hf_rope
from yarn_gguf.rope.model import RotaryEmbedding
from yarn_gguf.rope.names import name_of
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


def other_rope(adapter: Path, base: HFRope) -> str:
    """Return what the config.json beside an adapter asks for, if it is another rope than the base model's.

    A trainer saves it there with the scaling of the training. "": it asks for the same, or is not there.
    """
    if adapter == base.path.parent or not (adapter / "config.json").is_file():
        return ""
    own = read_hf_rope(adapter)
    if (own.scaling, own.dynamic, own.rope_theta) == (base.scaling, base.dynamic, base.rope_theta):
        return ""
    return f"{own.path}: {_described(own)}, and the base model has {_described(base)}"


# ----------------------------------------------------------------------------------------------


def _described(rope: HFRope) -> str:
    return f"rope scaling {name_of(rope.dynamic or rope.scaling)}, rope_theta {rope.rope_theta:g}"


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
