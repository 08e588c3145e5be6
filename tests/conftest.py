"""Fixtures of all tests: a real model in several forms, and a real text."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from libraries import PROSE, ROOT
from real_tokenizers import HAS_NPM, NPM, NPM_LARGE

pytest_plugins = ["rpc_devices"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# threads that spin while they wait slow the suite down many times beside other programs
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_report_header() -> list[str]:
    if HAS_NPM:
        return []
    names = ", ".join([*NPM, *NPM_LARGE])
    return [f"npm is missing: the tokenizers of {names} are not tested, only those from pip"]


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The published SmolLM2-135M-Instruct: Q4_1, trained on 8192 tokens. Never written to."""
    path = ROOT / "build" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        subprocess.run([sys.executable, ROOT / "examples" / "smollm2.py", path], check=True)
    return path


@pytest.fixture(scope="session")
def smollm2_q8(smollm2_path, tmp_path_factory) -> Path:
    """SmolLM2 in Q8_0, which has a fast kernel. Never written to."""
    return _requantize(
        smollm2_path, tmp_path_factory.mktemp("models") / "smollm2-q8_0.gguf", "LLAMA_FTYPE_MOSTLY_Q8_0"
    )


@pytest.fixture(scope="session")
def smollm2_f32(smollm2_path, tmp_path_factory) -> Path:
    """SmolLM2 in float32, for comparisons with torch. Never written to."""
    return _requantize(
        smollm2_path, tmp_path_factory.mktemp("models") / "smollm2-f32.gguf", "LLAMA_FTYPE_ALL_F32"
    )


@pytest.fixture(scope="session")
def smollm2_folder(smollm2_path, tmp_path_factory) -> Path:
    """SmolLM2 in float32 with its tokenizer, as a folder of Hugging Face's format. Never written to."""
    from hf_checkpoints import save_smollm2

    return save_smollm2(smollm2_path, tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="session")
def smollm2_torch(smollm2_folder):
    """Callable: (tokens, **rope_parameters) -> logits, float32 (len(tokens), n_vocab), by transformers.

    inv_freq and attention_scaling replace those of the rotary embedding.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    trained = dict(model.config.rope_parameters)

    def logits(tokens: list[int], inv_freq=None, attention_scaling=1.0, **rope_parameters) -> np.ndarray:
        original = {"original_max_position_embeddings": 8192} if rope_parameters else {}
        model.config.rope_parameters = trained | original | rope_parameters
        model.model.rotary_emb = LlamaRotaryEmbedding(model.config)
        if inv_freq is not None:
            model.model.rotary_emb.inv_freq = inv_freq.to(torch.float32)
            model.model.rotary_emb.attention_scaling = attention_scaling
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0].numpy()

    return logits


@pytest.fixture(scope="session")
def prose_tokens(smollm2_path) -> list[int]:
    """Chapters of Mansfield Park as tokens of SmolLM2: about 17,000."""
    from yarn_gguf.run.prompt import text_tokens

    return text_tokens(smollm2_path, PROSE.read_text(encoding="utf-8"))


def _requantize(source: Path, target: Path, file_type: str) -> Path:
    """Write `source` in another type to `target`. file_type: a name of enum llama_ftype."""
    from yarn_gguf.native.library import load

    llama_cpp = load()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, file_type)
    params.allow_requantize = True
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert not failed
    return target
