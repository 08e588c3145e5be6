"""Random LoRA adapters as PEFT saves them, and PEFT's formula in float64: a witness for the converter."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from conformance import ROWS, make_model, use_ggml_gelu, witness
from safetensors.torch import load_file, save_file

from yarn_gguf import Llama, RopeScaling

RANK, ALPHA = 4, 8
TOKENS = np.random.default_rng(1).integers(3, 250, 40).tolist()
NO_SCALING = RopeScaling()
NORM, EMBEDDINGS, HEAD = "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"
# llama.cpp ignores an adapter for DeepSeek's other projections of the attention
MODULES = {"deepseek-v2": r".*(o_proj|mlp.*)", "deepseek-v3": r".*(o_proj|mlp.*)"}
ALL_BUT_TIED = r".*(?<!lm_head)(?<!embed_tokens)(?<!embed_in)(?<!embed_out)"
_PREFIX = "base_model.model."
_EMBEDDINGS = re.compile(r".*embed.*")


def save_adapter(
    folder: Path,
    base: Path,
    modules: str = r".*(?<!lm_head)",
    *,
    rank: Callable[[str], int] = lambda module: RANK,
    more: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> dict[str, torch.Tensor]:
    """Save an adapter of a checkpoint, and return its tensors.

    modules: a regular expression of the linear layers and embeddings that it changes. rank: of a module.
    more: other tensors of it, by PEFT's names without "base_model.model.".
    config: values of adapter_config.json.
    """
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module == name or weight.ndim != 2 or not re.fullmatch(modules, module):
            continue
        (outputs, inputs), r = weight.shape, rank(module)
        ends = ("lora_A.weight", "lora_B.weight")
        if _EMBEDDINGS.fullmatch(module):
            outputs, inputs, ends = inputs, outputs, ("lora_embedding_A", "lora_embedding_B")
        pair = (torch.randn(r, inputs, generator=generator), torch.randn(outputs, r, generator=generator))
        tensors |= {f"{module}.{end}": (each * 0.1).to(dtype) for end, each in zip(ends, pair, strict=True)}
    tensors |= more or {}
    folder.mkdir()
    save_file({_PREFIX + name: each for name, each in tensors.items()}, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(values | config))
    return tensors


def merge(
    weights: dict[str, torch.Tensor],
    adapter: dict[str, torch.Tensor],
    scale: Callable[[str, int], float] = lambda module, rank: ALPHA / rank,
) -> dict[str, torch.Tensor]:
    """Return the weights with the adapter's changes: W + scale B A, in float64; float32."""
    merged = dict(weights)
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in adapter:
            a, b = (adapter[f"{module}.lora_{each}.weight"].double() for each in "AB")
            change = b @ a
        elif f"{module}.lora_embedding_A" in adapter:
            a, b = (adapter[f"{module}.lora_embedding_{each}"].double() for each in "AB")
            change = (b @ a).T
        else:
            continue
        merged[name] = (weight.double() + scale(module, len(a)) * change).float()
    return merged


def stabilized(module: str, rank: int) -> float:
    """Return the scale of rsLoRA."""
    return ALPHA / math.sqrt(rank)


# ---- models -----------------------------------------------------------------------------------


def save_base(folder: Path, name: str = "llama", **config: object) -> transformers.PreTrainedModel:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = make_model(replace(ROWS[name], config=ROWS[name].config | config), NO_SCALING)
    model.save_pretrained(folder)
    return model


def with_weights(base: Path, weights: dict[str, torch.Tensor], **config: object) -> np.ndarray:
    """Return transformers' logits of the base model with other weights."""
    folder = base.with_name("other")
    shutil.copytree(base, folder)
    save_file({name: each.contiguous() for name, each in weights.items()}, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    use_ggml_gelu(model)
    return witness(model, ROWS["llama"], NO_SCALING, TOKENS)


def logits(file: Path, adapter: Path | None = None) -> np.ndarray:
    """Return the library's logits of a file with an adapter."""
    settings = {"type_k": 0, "type_v": 0, "flash_attn": False, "verbose": False}
    lora_path = None if adapter is None else str(adapter)
    with closing(Llama(str(file), n_ctx=64, logits_all=True, lora_path=lora_path, **settings)) as model:
        model.eval(TOKENS)
        return np.array(model.scores[: len(TOKENS)])


def tensors_of(file: Path) -> dict[str, np.ndarray]:
    return {each.name: np.array(each.data) for each in gguf.GGUFReader(file).tensors}
