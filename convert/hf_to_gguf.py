"""From a Hugging Face checkpoint to a GGUF file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from yarn_gguf.convert.arch import architecture
from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.convert.checkpoint import Tensor, read_checkpoint
from yarn_gguf.convert.tokenizer import add_vocabulary, has_tokenizer
from yarn_gguf.errors import ConversionError
from yarn_gguf.gguf_rope import RotaryEmbedding
from yarn_gguf.gguf_scaling import scaling_keys
from yarn_gguf.rope import RopeScaling

_SUFFIXES = (".weight", ".bias")


def write_model(folder: str | Path, output: str | Path, scaling: RopeScaling | None = None) -> None:
    """Write the checkpoint in `folder` to `output`, weights in float32, with its tokenizer if it has one.

    scaling: in the place of the checkpoint's own. Raises ConversionError, RopeScalingError, OSError.
    """
    checkpoint = read_checkpoint(folder)
    arch = architecture(checkpoint.config)
    tensors = _ggml_names(arch, arch.rearrange(checkpoint.tensors))
    writer = gguf.GGUFWriter(output, arch.name)
    arch.add_keys(writer)
    _add_rope_keys(writer, arch, scaling or arch.rope.scaling)
    if scaling is None and arch.is_fine_tuned:
        writer.add_rope_scaling_finetuned(True)
    if has_tokenizer(Path(folder)):
        add_vocabulary(writer, folder, arch.config)
    else:
        writer.add_tokenizer_model("no_vocab")
    for name, tensor in tensors.items():
        size = 4 * int(np.prod(tensor.shape))
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors.values():
        writer.write_tensor_data(np.ascontiguousarray(tensor.load()))
    writer.close()


# ----------------------------------------------------------------------------------------------


def _add_rope_keys(writer: gguf.GGUFWriter, arch: Architecture, scaling: RopeScaling) -> None:
    rope = arch.rope
    writer.add_rope_freq_base(rope.rope_theta)
    scaling = scaling.with_original_context(rope.max_position_embeddings)
    # Llama 3's factor is no ratio of contexts: 8 takes Llama 3.1 from 8192 tokens to 131072
    context_length = rope.max_position_embeddings if scaling.method == "llama3" else None
    model = RotaryEmbedding(arch.name, rope.dim, rope.rope_theta)
    for entry in scaling_keys(model, scaling, context_length=context_length):
        type_ = gguf.GGUFValueType(entry.type)
        sub_type = gguf.GGUFValueType.FLOAT64 if type_ == gguf.GGUFValueType.ARRAY else None
        writer.kv_data[0][entry.key] = gguf.GGUFValue(entry.value, type_, sub_type)


def _ggml_names(arch: Architecture, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = gguf.get_tensor_name_map(arch.model_arch, arch.layers)
    named = {}
    for name, tensor in tensors.items():
        ggml_name = names.get_name(name, try_suffixes=_SUFFIXES)
        if ggml_name is None:
            path = arch.config.path.parent
            raise ConversionError(f"{path}: tensor {name} has no place in a {arch.name} model")
        named[ggml_name] = tensor
    return named
