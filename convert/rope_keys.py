"""The rope keys of a converted checkpoint: for its own scaling, or for another."""

from __future__ import annotations

import gguf

from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope.gguf_write import scaling_keys
from yarn_gguf.rope.model import RotaryEmbedding
from yarn_gguf.rope.scaling import RopeScaling


def add_rope_keys(
    writer: gguf.GGUFWriter, arch: Architecture, scaling: RopeScaling | None, dynamic: str | None
) -> None:
    """Write the keys of `scaling`; None stands for the checkpoint's own. Raises RopeScalingError.

    dynamic: the policy by which its factor follows the length of the text, or None.
    """
    rope = arch.rope
    if scaling is not None and rope.scaling.mscale_all_dim:
        raise RopeScalingError(
            f"{rope.path}: mscale_all_dim {rope.scaling.mscale_all_dim:g} ties this model's attention to the "
            "scaling that it was trained with: it cannot have another"
        )
    wanted = (scaling or rope.scaling).with_original_context(rope.original_context)
    keys = scaling_keys(
        RotaryEmbedding(arch.name, rope.dim, rope.rope_theta),
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
