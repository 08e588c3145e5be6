"""Config shapes of published checkpoints, converted from end to end, against transformers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from libraries import LibraryProcess, patched, relative_error
from published import PUBLISHED, Published
from safetensors.torch import load_file, save_file

from yarn_gguf import RopeScaling
from yarn_gguf.convert.arch import architecture
from yarn_gguf.convert.hf_to_gguf import write_model
from yarn_gguf.errors import ConversionError
from yarn_gguf.gguf_file import read_header
from yarn_gguf.hf_config import Config

LIMIT = 1e-4  # relative L2 error of all logits, as in conformance.py


@pytest.fixture(scope="module")
def ours() -> Iterator[LibraryProcess]:
    with LibraryProcess(patched()) as process:
        yield process


def save_checkpoint(folder: Path, published: Published) -> transformers.PreTrainedModel:
    """Random weights, and config.json as published, which transformers would save in its own shape."""
    text = json.dumps(published.config)
    (folder / "config.json").write_text(text)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(folder)
    (folder / "config.json").write_text(text)
    weights = folder / "model.safetensors"
    save_file(load_file(weights) | {name: torch.ones(4) for name in published.surplus}, weights)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoint_is_converted(name: str, tmp_path: Path, ours: LibraryProcess) -> None:
    published = PUBLISHED[name]
    model = save_checkpoint(tmp_path, published)
    file = tmp_path / "model.gguf"
    write_model(tmp_path, file)
    header = read_header(file)
    arch = header.entries["general.architecture"].value
    found = {key: header.entries.get(f"{arch}.{key}") for key in published.keys}
    assert {key: entry and entry.value for key, entry in found.items()} == published.keys
    tokens = np.random.default_rng(1).integers(3, 128, 300).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    got = ours.logits(file, tokens, n_ctx=len(tokens), type_k=0, type_v=0, flash_attn_type=0)
    assert relative_error(got, expected) <= LIMIT


def test_a_scaling_of_ones_own_is_not_called_fine_tuned(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, PUBLISHED["Yarn-Llama-2-7b-64k"])
    write_model(tmp_path, tmp_path / "model.gguf", RopeScaling("yarn", 32.0, 4096))
    assert "llama.rope.scaling.finetuned" not in read_header(tmp_path / "model.gguf").entries


@pytest.mark.parametrize(
    ("model_type", "name", "value"),
    [
        ("smollm3", "no_rope_layers", [1, 0]),
        ("smollm3", "use_sliding_window", True),
        ("qwen3_moe", "norm_topk_prob", False),
        ("qwen3_moe", "mlp_only_layers", [0]),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(model_type: str, name: str, value: object) -> None:
    values = PUBLISHED["Qwen3-8B with YaRN"].config | {"model_type": model_type, name: value}
    config = Config(Path("config.json"), "", values)
    with pytest.raises(ConversionError, match=re.escape(f"config.json: {name} is {value!r}")):
        architecture(config)


def test_an_unknown_architecture_is_told_the_known_ones_and_the_way_around() -> None:
    config = Config(Path("config.json"), "", {"model_type": "mamba"})
    with pytest.raises(ConversionError, match=r"'mamba' is none of llama, .*gpt_oss: .*extend --from-hf"):
        architecture(config)
