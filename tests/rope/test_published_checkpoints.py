"""Convert checkpoints with the configs of published ones, and compare their logits with transformers."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conformance import COLUMNS, LIMIT, ROWS, Row, make_model, use_ggml_gelu
from hf_checkpoints import convert_weights
from libraries import LibraryProcess, patched, relative_error
from published import PUBLISHED, Published
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from yarn_gguf import RopeScaling, extend
from yarn_gguf.cli import main
from yarn_gguf.convert.arch import architecture
from yarn_gguf.convert.quantized import dequantized
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import ConversionError
from yarn_gguf.gguf.header import read_header
from yarn_gguf.rope.hf_config import Config

MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}


@pytest.fixture(scope="module")
def ours() -> Iterator[LibraryProcess]:
    with LibraryProcess(patched()) as process:
        yield process


def save_checkpoint(folder: Path, published: Published) -> transformers.PreTrainedModel:
    """Save random weights beside config.json as published. transformers itself would save another shape."""
    text = json.dumps(published.config)
    (folder / "config.json").write_text(text)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    use_ggml_gelu(model)
    vary_vectors(model)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(text)
    weights = folder / "model.safetensors"
    save_file(load_file(weights) | {name: torch.ones(4) for name in published.surplus}, weights)
    return model


def vary_vectors(model: torch.nn.Module) -> None:
    """Randomize norms and biases. Their initial ones and zeros would hide a mistake."""
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.data += 0.1 * torch.randn_like(parameter)


def logit_error(model: transformers.PreTrainedModel, file: Path, ours: LibraryProcess) -> float:
    """Return the relative L2 error of the file's logits for 300 tokens, against the model's."""
    tokens = np.random.default_rng(1).integers(3, 128, 300).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    got = ours.logits(file, tokens, n_ctx=len(tokens), type_k=0, type_v=0, flash_attn_type=0)
    return relative_error(got, expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoint_is_converted(name: str, tmp_path: Path, ours: LibraryProcess) -> None:
    published = PUBLISHED[name]
    model = save_checkpoint(tmp_path, published)
    file = tmp_path / "model.gguf"
    convert_weights(tmp_path, file, type="f32")
    header = read_header(file)
    arch = header.entries["general.architecture"].value
    found = {key: header.entries.get(f"{arch}.{key}") for key in published.keys}
    assert {key: entry and entry.value for key, entry in found.items()} == published.keys
    assert logit_error(model, file, ours) <= LIMIT


@pytest.mark.parametrize("name", PUBLISHED)
def test_extend_from_hf_asks_for_what_the_converter_wrote(name: str, tmp_path: Path, capsys) -> None:
    """Also after the file's own scaling was replaced, which extend refuses for DeepSeek-V3."""
    save_checkpoint(tmp_path, PUBLISHED[name])
    file = tmp_path / "model.gguf"
    convert_weights(tmp_path, file, type="f32")
    from_hf = ["extend", str(file), "--in-place", "--from-hf", str(tmp_path)]
    if name == "DeepSeek-V3":
        assert main(from_hf) == 1
        assert "yarn_log_multiplier ties this model's attention" in capsys.readouterr().err
        return
    converted = read_header(file).entries
    assert main(from_hf) == 0
    assert "nothing was written" in capsys.readouterr().out
    extend(file, RopeScaling("yarn", 2.0))
    assert main(from_hf) == 0
    found = read_header(file).entries
    assert {key: found[key].value for key in converted} == {key: e.value for key, e in converted.items()}


VARIANTS = {
    "llama with biases": (ROWS["llama"], {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": (ROWS["llama"], {"tie_word_embeddings": True}),
    "granite with biases, tied": (ROWS["granite"], {"attention_bias": True, "tie_word_embeddings": True}),
    "gpt-neox, not parallel": (ROWS["gpt-neox, 1/2 rotary"], {"use_parallel_residual": False}),
    # DeepSeek-V2-Lite, which llama.cpp recognizes by its 27 layers
    "deepseek-v2, no compressed query": (
        ROWS["deepseek-v2"],
        {"q_lora_rank": None, "num_hidden_layers": 27},
    ),
    "deepseek-v3, groups of experts": (ROWS["deepseek-v3"], {"n_group": 2, "topk_group": 1}),
}


@pytest.mark.parametrize(
    ("row", "config"), [*((row, {}) for row in ROWS.values()), *VARIANTS.values()], ids=[*ROWS, *VARIANTS]
)
def test_norms_biases_and_variants_are_converted(
    row: Row, config: dict, tmp_path: Path, ours: LibraryProcess
) -> None:
    model = make_model(replace(row, config=row.config | config), COLUMNS["none"].scaling(row.dim))
    vary_vectors(model)
    model.save_pretrained(tmp_path)
    convert_weights(tmp_path, tmp_path / "model.gguf", type="f32")
    assert logit_error(model, tmp_path / "model.gguf", ours) <= LIMIT


def test_experts_in_mxfp4_are_those_that_transformers_unpacks(tmp_path: Path, ours: LibraryProcess) -> None:
    config = PUBLISHED["gpt-oss-20b"].config | {"intermediate_size": 32}
    model = save_checkpoint(tmp_path, Published(config, {}))
    weights, generator = load_file(tmp_path / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in weights if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = weights.pop(name).shape
        shape = (experts, outputs, inputs // 32, 16)
        blocks = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        scales = torch.randint(121, 125, shape[:-1], generator=generator, dtype=torch.uint8)
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        unpacked = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        model.get_parameter(name).data.copy_(unpacked)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | MXFP4))
    convert_weights(tmp_path, tmp_path / "model.gguf", type="f32")
    assert logit_error(model, tmp_path / "model.gguf", ours) <= LIMIT


def test_an_expert_of_gpt_oss_is_read_without_the_others() -> None:
    read = set()

    def stored(*shape: int) -> Tensor:
        def rows(start: int, stop: int) -> np.ndarray:
            read.update(range(start, stop))
            return np.zeros((stop - start, *shape[1:]), np.uint8)

        return Tensor(shape, rows, dtype="U8")

    name = "model.layers.0.mlp.experts.gate_up_proj"
    packed = {f"{name}_blocks": stored(4, 8, 1, 16), f"{name}_scales": stored(4, 8, 1)}
    config = Config(Path("config.json"), "", PUBLISHED["gpt-oss-20b"].config | MXFP4)
    arranged = architecture(config).arrange(dequantized(packed, config))
    assert [each.shape for each in arranged.values()] == [(4, 4, 32)] * 2
    for tensor in arranged.values():
        tensor.read(2, 3)
    assert read == {2}


def test_a_scaling_that_the_caller_names_is_not_called_fine_tuned(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, PUBLISHED["Yarn-Llama-2-7b-64k"])
    convert_weights(tmp_path, tmp_path / "model.gguf", type="f32", scaling=RopeScaling("yarn", 32.0, 4096))
    assert "llama.rope.scaling.finetuned" not in read_header(tmp_path / "model.gguf").entries


def test_an_unknown_architecture_is_told_the_known_ones_and_the_way_around() -> None:
    config = Config(Path("config.json"), "", {"model_type": "mamba"})
    with pytest.raises(ConversionError, match=r"'mamba' is not one of llama, .*gpt_oss: .*extend --from-hf"):
        architecture(config)
