"""The rope keys of a converted checkpoint: its own scaling, or the one asked for."""

from __future__ import annotations

import gguf

from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.errors import RopeScalingError
from yarn_gguf.gguf_rope import RotaryEmbedding
from yarn_gguf.gguf_scaling import scaling_keys
from yarn_gguf.hf_config import HFRope
from yarn_gguf.rope import RopeScaling


def add_rope_keys(
    writer: gguf.GGUFWriter, arch: Architecture, scaling: RopeScaling | None, dynamic: str | None
) -> None:
    """The keys of `scaling`, or of the checkpoint's own where that is None. Raises RopeScalingError."""
    rope = arch.rope
    if scaling is not None and rope.scaling.mscale_all_dim:
        raise RopeScalingError(
            f"{rope.path}: mscale_all_dim {rope.scaling.mscale_all_dim:g} ties this model's attention to the "
            "scaling that it was trained with: it cannot have another"
        )
    asked = (scaling or rope.scaling).with_original_context(_original_context(rope))
    for entry in scaling_keys(RotaryEmbedding(arch.name, rope.dim, rope.rope_theta), asked, dynamic):
        type_ = gguf.GGUFValueType(entry.type)
        sub_type = gguf.GGUFValueType.FLOAT64 if type_ == gguf.GGUFValueType.ARRAY else None
        writer.kv_data[0][entry.key] = gguf.GGUFValue(entry.value, type_, sub_type)
    if scaling is None and rope.scaling.method not in ("by-parts", "yarn"):
        key = gguf.Keys.LLM.CONTEXT_LENGTH.format(arch=arch.name)
        length = rope.max_position_embeddings
        writer.kv_data[0][key] = gguf.GGUFValue(length, gguf.GGUFValueType.UINT32)


# ----------------------------------------------------------------------------------------------


def _original_context(rope: HFRope) -> int:
    """Tokens. Published checkpoints with linear scaling state the extended context and no original one."""
    if rope.scaling.original_max_position_embeddings is not None:
        return rope.scaling.original_max_position_embeddings
    if rope.scaling.method == "linear":
        return round(rope.max_position_embeddings / rope.scaling.factor)
    return rope.max_position_embeddings
