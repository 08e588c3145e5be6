"""Small random checkpoints that transformers saves, and upstream's quantizer: witnesses for the converter."""

from __future__ import annotations

import ctypes
import json
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from yarn_gguf.convert import convert
from yarn_gguf.native.library import load

_COUNT = 8  # inputs that an importance matrix was measured on

convert_weights = partial(convert, tokenizer=False)  # for checkpoints without a tokenizer

# rows of 256, the block of the K types; enough layers for a mix to give them different types
BASE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# DeepSeek's attention (MLA) and experts, with rows of 256
COMPRESSED_ATTENTION = {
    "num_key_value_heads": 8,
    "q_lora_rank": 256,
    "kv_lora_rank": 256,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 256,
}


def save_checkpoint(folder: Path, model_type: str = "llama", dtype: str = "float32", **config: Any) -> Path:
    """Save a checkpoint with seeded random weights. config: values that override BASE."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    values = transformers.AutoConfig.for_model(model_type, **(BASE | config))
    model = transformers.AutoModelForCausalLM.from_config(values).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder


def save_in_shards(folder: Path) -> Path:
    """Save the checkpoint in `folder` again in shards of 2 MB, and return the path of their index."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="2MB")
    return folder / "model.safetensors.index.json"


def save_smollm2(source: Path, folder: Path, dtype: str = "float32") -> Path:
    """Save the weights and the tokenizer of the GGUF file that examples/smollm2.py downloads."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    transformers.AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=getattr(torch, dtype),
        quantization_config=transformers.GgufConfig(dequantize=True),
    ).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    # transformers 5.23 loses the splitting of digits when it reads a GGUF file
    digits = {"type": "Digits", "individual_digits": True}
    steps = [digits, tokenizer["pre_tokenizer"]]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"add_bos_token": False, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def upstream_quantize(
    source: Path, target: Path, type_: str, importances: dict[str, np.ndarray] | None = None
) -> Path:
    """Quantize a file by llama_model_quantize. importances: float32 (matrices, inputs) by tensor name."""
    llama_cpp = load()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = gguf.LlamaFileType["ALL_F32" if type_ == "f32" else f"MOSTLY_{type_.upper()}"]
    if importances:
        params.imatrix = _imatrix(llama_cpp, importances)
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert not failed
    return target


def write_imatrix(path: Path, importances: dict[str, np.ndarray], counts: list[int] | None = None) -> Path:
    """Write a file in the format of llama.cpp's imatrix tool. counts: one for each matrix; 8 by default."""
    writer = gguf.GGUFWriter(path, "none")
    writer.kv_data = [{}]
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["prose.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, weights in importances.items():
        writer.add_tensor(f"{name}.in_sum2", weights * np.float32(_COUNT))
        writer.add_tensor(f"{name}.counts", np.array(counts or [_COUNT] * len(weights), np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _imatrix(llama_cpp: Any, importances: dict[str, np.ndarray]) -> Any:
    """Return the array of llama_model_imatrix_data, which an empty entry ends."""
    entries = (llama_cpp.llama_model_imatrix_data * (len(importances) + 1))()
    for entry, (name, weights) in zip(entries, importances.items(), strict=False):
        entry.name, entry.size = name.encode(), weights.size
        entry.data = weights.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries
