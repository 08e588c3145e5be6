"""Where an adapter, its base model, its tokenizer and its rope scaling are looked for; the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from hf_checkpoints import convert_weights
from lora_adapters import save_adapter
from safetensors.torch import load_file, save_file
from tiny_gguf import contents

from yarn_gguf import RopeScaling
from yarn_gguf.cli import main
from yarn_gguf.convert import convert
from yarn_gguf.convert.plan import plan_conversion
from yarn_gguf.errors import ConversionError


def test_the_base_models_config_is_enough(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*_proj")
    convert(adapter, tmp_path / "with.gguf", type="f16")
    (base / "model.safetensors").unlink()
    convert(adapter, tmp_path / "without.gguf", type="f16", base=base)
    assert contents(tmp_path / "without.gguf") == contents(tmp_path / "with.gguf")


def test_a_base_model_that_is_quantized_is_not_compared(base: Path, tmp_path: Path) -> None:
    """QLoRA's base models have packed weights of other shapes."""
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*_proj")
    convert(adapter, tmp_path / "plain.gguf", type="f16")
    save_file({"x.weight": torch.zeros(8, 1, dtype=torch.uint8)}, base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (base / "config.json").write_text(json.dumps(config | quantized))
    convert(adapter, tmp_path / "quantized.gguf", type="f16")
    assert contents(tmp_path / "quantized.gguf") == contents(tmp_path / "plain.gguf")


def test_a_pytorch_file_gives_the_same_adapter(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*_proj", dtype=torch.bfloat16)
    convert(adapter, tmp_path / "safetensors.gguf", type="f16")
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    convert(adapter, tmp_path / "bin.gguf", type="f16")
    assert contents(tmp_path / "bin.gguf") == contents(tmp_path / "safetensors.gguf")


@pytest.mark.parametrize("name", ["meta-llama/Llama-2-7b-hf", "", None])
def test_a_base_model_that_is_not_here_is_asked_for(base: Path, tmp_path: Path, name: str | None) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*v_proj", base_model_name_or_path=name)
    with pytest.raises(ConversionError, match=r"no such folder has a config.json: give the .* with --base"):
        convert(adapter, tmp_path / "out.gguf", type="f32")


def test_an_adapter_beside_full_weights_is_left_out_with_a_warning(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers applies it if PEFT is installed, and loads the weights alone if not."""
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*v_proj")
    convert_weights(base, tmp_path / "plain.gguf", type="f32")
    convert(adapter, tmp_path / "adapter.gguf", type="f32", base=base)
    assert not caplog.records
    for file in adapter.iterdir():
        shutil.copy(file, base)
    convert_weights(base, tmp_path / "beside.gguf", type="f32")
    assert contents(tmp_path / "beside.gguf")[1] == contents(tmp_path / "plain.gguf")[1]
    (said,) = [each.getMessage() for each in caplog.records]
    assert f"{base}: an adapter lies beside the weights and is left out" in said
    assert f"merge it with --lora {base}" in said
    convert_weights(base, tmp_path / "merged.gguf", type="f32", lora=base)
    assert contents(tmp_path / "merged.gguf")[1] != contents(tmp_path / "plain.gguf")[1]
    convert(base, tmp_path / "asked.gguf", type="f32", base=base)
    assert contents(tmp_path / "asked.gguf")[1] == contents(tmp_path / "adapter.gguf")[1]


def test_a_rope_scaling_beside_an_adapter_is_not_forgotten(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Trainers save the config.json of the training there."""
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*v_proj")
    shutil.copy(base / "config.json", adapter)
    convert_weights(base, tmp_path / "same.gguf", type="f16", lora=adapter)
    convert(adapter, tmp_path / "same-adapter.gguf", type="f16")
    assert not caplog.records
    config = json.loads((base / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 1e4}
    (adapter / "config.json").write_text(json.dumps(config | {"rope_parameters": yarn}))
    with pytest.raises(ConversionError, match=r"rope scaling yarn:4, .* and the base model has .* none"):
        convert_weights(base, tmp_path / "out.gguf", type="f16", lora=adapter)
    convert_weights(base, tmp_path / "out.gguf", type="f16", lora=adapter, scaling=RopeScaling("yarn", 4.0))
    convert(adapter, tmp_path / "adapter.gguf", type="f16")
    assert "an adapter has no scaling: give the base model's file this one" in caplog.text


def test_an_adapter_of_a_scaled_model_has_no_tensor_of_rope_factors(base: Path, tmp_path: Path) -> None:
    """The base model's file has one."""
    adapter, llama3 = tmp_path / "adapter", {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}
    llama3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rope_parameters": llama3}))
    save_adapter(adapter, base, r".*v_proj")
    convert_weights(base, tmp_path / "merged.gguf", type="f16", lora=adapter)
    convert(adapter, tmp_path / "adapter.gguf", type="f16")
    assert "rope_freqs.weight" in contents(tmp_path / "merged.gguf")[1]
    names = contents(tmp_path / "adapter.gguf")[1]
    assert {name.split(".", 2)[2] for name in names} == {
        "attn_v.weight.lora_a",
        "attn_v.weight.lora_b",
    }


def test_no_file_of_adapter_or_base_model_is_replaced(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*v_proj")
    for folder, name in ((adapter, "adapter_model.safetensors"), (base, "model.safetensors")):
        before = (folder / name).read_bytes()
        for source, options in ((adapter, {"base": base}), (base, {"lora": adapter, "tokenizer": False})):
            with pytest.raises(ConversionError, match=name):
                convert(source, folder / name, type="f16", force=True, **options)
        assert (folder / name).read_bytes() == before


def test_the_adapters_own_tokenizer_is_the_merged_models(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*v_proj")
    with pytest.raises(ConversionError, match=r"no tokenizer.json and no tokenizer.model") as caught:
        plan_conversion(base, type="f32", lora=adapter)
    assert str(base) in str(caught.value)
    (adapter / "tokenizer.json").write_text("{")
    with pytest.raises(ConversionError, match="not JSON") as caught:
        plan_conversion(base, type="f32", lora=adapter)
    assert str(adapter / "tokenizer.json") in str(caught.value)


def test_an_adapter_given_as_a_model_is_called_an_adapter(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter(tmp_path / "adapter", base, r".*v_proj")
    convert(tmp_path / "adapter", tmp_path / "adapter.gguf", type="f16")
    assert main(["inspect", str(tmp_path / "adapter.gguf")]) == 1
    assert "adapter.gguf is a LoRA adapter: give the file of its model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--type", "q4_k_m"], "an adapter can be f32, f16, bf16, q8_0"),
        (["--type", "f16", "--factor", "4"], "a rope scaling does not apply to an adapter"),
        (["--type", "f16", "--lora", "x"], "--lora does not apply to an adapter"),
        (["--type", "f16", "--split-max-size", "1M"], "--split-max-size does not apply to an adapter"),
    ],
)
def test_options_of_a_model_are_refused_for_an_adapter(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    save_adapter(tmp_path / "adapter", base, r".*v_proj")
    assert main(["convert", str(tmp_path / "adapter"), "-o", str(tmp_path / "out.gguf"), *options]) == 1
    assert message in capsys.readouterr().err


def test_the_command_writes_an_adapter_and_a_merged_model(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, output = tmp_path / "adapter", tmp_path / "out.gguf"
    save_adapter(adapter, base, r".*v_proj", base_model_name_or_path="somewhere/else")
    command = ["convert", str(adapter), "-o", str(output), "--type", "f16", "--base", str(base)]
    assert main([*command, "--dry-run"]) == 0
    assert "blk.0.attn_v.weight.lora_a" in capsys.readouterr().out
    assert not output.exists()
    assert main(command) == 0
    assert gguf.GGUFReader(output).fields["general.type"].contents() == "adapter"
    command = ["convert", str(base), "-o", str(output), "--type", "f16", "--no-tokenizer", "--force"]
    assert main([*command, "--lora", str(adapter)]) == 0
    assert gguf.GGUFReader(output).fields["general.type"].contents() == "model"
    assert main([*command, "--base", str(base)]) == 1
    assert "has no LoRA adapter: leave out --base" in capsys.readouterr().err
