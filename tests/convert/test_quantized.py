"""Quantized checkpoints: the weights are those of upstream's converter, or of the formats' formulas."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_checkpoints import convert_weights
from libraries import HELPERS
from quantized_checkpoints import (
    GROUP,
    fp8,
    fp8_blocks,
    fp8_rows,
    gptq,
    int8_rows,
    pack,
    packed,
    save_quantized,
)
from safetensors.torch import load_file, save_file
from tiny_gguf import contents
from upstream_tree import unpack_converter

from yarn_gguf.convert.checkpoint import read_checkpoint
from yarn_gguf.convert.dtypes import values
from yarn_gguf.convert.quantized import METHODS, dequantized
from yarn_gguf.errors import ConversionError, RopeScalingError


def compressed(format_: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"symmetric": True, "type": "int", "num_bits": 8} | weights}
    return {"quant_method": "compressed-tensors", "format": format_, "config_groups": {"group_0": group}}


GROUPED = {"strategy": "group", "group_size": GROUP}
BY_UPSTREAM = {
    "fp8 in blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, fp8(128, 128)),
    "fp8 in odd blocks": ({"quant_method": "fp8", "weight_block_size": [96, 100]}, fp8(96, 100)),
    "fp8 whole": ({"quant_method": "fp8"}, fp8()),
    "float-quantized": (compressed("float-quantized", type="float", strategy="channel"), fp8_rows),
    "float-quantized in blocks": (
        compressed("float-quantized", type="float", strategy="block", block_structure=[128, 128]),
        fp8_blocks,
    ),
    "int-quantized": (compressed("int-quantized", strategy="channel"), int8_rows),
    "naive-quantized": (compressed("naive-quantized", strategy="channel"), int8_rows),
    "pack-quantized": (compressed("pack-quantized", num_bits=4, **GROUPED), packed(4, zero_point=False)),
    "pack-quantized with zeros": (
        compressed("pack-quantized", num_bits=8, **GROUPED),
        packed(8, zero_point=True),
    ),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP}, gptq(4, act_order=True)),
    "gptq, 8 bits": ({"quant_method": "gptq", "bits": 8, "group_size": GROUP}, gptq(8)),
    "gptq_v2, 2 bits": (
        {"quant_method": "gptq", "bits": 2, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
        gptq(2),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def by_upstream(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return checkpoints with upstream's values in dequantized.safetensors, all by one process."""
    tree = unpack_converter(tmp_path_factory.mktemp("upstream"))
    folders = {
        name: save_quantized(tmp_path_factory.mktemp("hf"), *each) for name, each in BY_UPSTREAM.items()
    }
    command = [sys.executable, HELPERS / "upstream_dequantizer.py", tree, *folders.values()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folders


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = read_checkpoint(folder)
    return {name: each.load() for name, each in dequantized(checkpoint.tensors, checkpoint.config).items()}


@pytest.mark.parametrize("name", BY_UPSTREAM)
def test_the_values_are_those_of_upstreams_converter(by_upstream: dict[str, Path], name: str) -> None:
    folder = by_upstream[name]
    expected, ours = load_file(folder / "dequantized.safetensors"), weights_of(folder)
    assert ours.keys() == expected.keys()
    for tensor in ours:
        np.testing.assert_array_equal(ours[tensor], expected[tensor].float().numpy(), tensor)


@pytest.mark.parametrize("name", ["fp8 in odd blocks", "pack-quantized with zeros", "gptq"])
def test_the_file_is_that_of_the_dequantized_checkpoint(
    by_upstream: dict[str, Path], tmp_path: Path, name: str
) -> None:
    (ours,) = convert_weights(by_upstream[name], tmp_path / "ours.gguf", type="q4_k_m")
    plain = tmp_path / "plain"
    plain.mkdir()
    save_file(load_file(by_upstream[name] / "dequantized.safetensors"), plain / "model.safetensors")
    config = json.loads((by_upstream[name] / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    (theirs,) = convert_weights(plain, tmp_path / "theirs.gguf", type="q4_k_m")
    assert contents(ours)[1] == contents(theirs)[1]


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_every_byte_of_8_bit_floating_point_is_pytorchs(code: str) -> None:
    dtypes = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes).view(getattr(torch, dtypes[code])).float().numpy()
    np.testing.assert_array_equal(values(codes, code), expected)


# ---- formats that upstream's converter does not read: the formulas in float64 ------------------

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ's: the output that each nibble of a word holds


def awq(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """AWQ's "gemm" layout, as AutoAWQ packs it: nibble i of a word holds output AWQ_ORDER[i]."""
    groups = columns // GROUP

    def pack_outputs(numbers: torch.Tensor) -> torch.Tensor:
        return pack(numbers.reshape(len(numbers), -1, 8)[..., AWQ_ORDER].reshape(len(numbers), -1), 4)

    numbers, zeros = torch.randint(0, 16, (columns, rows)), torch.randint(0, 16, (groups, rows))
    scales = (torch.rand(groups, rows) * 0.01).half()
    expected = (numbers - zeros.repeat_interleave(GROUP, 0)) * scales.double().repeat_interleave(GROUP, 0)
    return {
        "qweight": pack_outputs(numbers),
        "qzeros": pack_outputs(zeros),
        "scales": scales,
        "expected": expected.T,
    }


def gptq_3_bits(rows: int, columns: int) -> dict[str, torch.Tensor]:
    parts = {name: each for name, each in gptq(3)(rows, columns).items() if name in ("scales", "g_idx")}
    numbers, zeros = torch.randint(0, 8, (columns, rows)), torch.randint(0, 8, (columns // GROUP, rows))
    middle, scales = (each.repeat_interleave(GROUP, 0) for each in (zeros + 1, parts["scales"].double()))
    expected = ((numbers - middle) * scales).T
    return parts | {"qweight": pack(numbers.T, 3).T, "qzeros": pack(zeros, 3), "expected": expected}


def int8_with_zeros(rows: int, columns: int) -> dict[str, torch.Tensor]:
    parts = int8_rows(rows, columns)
    zero = torch.randint(-128, 128, (rows, 1)).to(torch.int8)
    expected = (parts["weight"].double() - zero.double()) * parts["weight_scale"].double()
    return parts | {"weight_zero_point": zero, "expected": expected}


def int8_groups(rows: int, columns: int) -> dict[str, torch.Tensor]:
    weight = torch.randint(-128, 128, (rows, columns)).to(torch.int8)
    scales = torch.rand(rows, columns // GROUP)
    expected = weight.double() * scales.double().repeat_interleave(GROUP, 1)
    return {"weight": weight, "weight_scale": scales, "expected": expected}


def packed_in_scattered_groups(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """Five numbers of 6 bits in a word, whose last two bits are unused."""
    numbers, scales = torch.randint(0, 64, (rows, columns)), torch.rand(rows, columns // GROUP)
    index = (torch.arange(columns) // GROUP)[torch.randperm(columns)]
    padded = torch.nn.functional.pad(numbers, (0, -columns % 5)).reshape(rows, -1, 5)
    words = sum(padded[..., i] << (6 * i) for i in range(5)).int()  # as older versions of the package do
    expected = (numbers - 32) * scales.double()[:, index]
    shape = torch.tensor([rows, columns])
    parts = {"weight_packed": words, "weight_shape": shape, "weight_scale": scales}
    return parts | {"weight_g_idx": index.int(), "expected": expected}


def packed_densely(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """Numbers of 3 bits, which continue in the next word, and their zeros."""
    groups = columns // GROUP
    numbers, zeros = torch.randint(0, 8, (rows, columns)), torch.randint(0, 8, (rows, groups))
    scales = torch.rand(rows, groups)
    by_group = numbers.reshape(rows, groups, GROUP) - zeros[..., None]
    return {
        "weight_packed": pack(numbers, 3),
        "weight_zero_point": pack(zeros.T, 3).T,
        "weight_shape": torch.tensor([rows, columns]),
        "weight_scale": scales,
        "expected": (by_group * scales.double()[..., None]).reshape(rows, columns),
    }


def fp8_by_exponents(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """MXFP8: each scale is a byte, an exponent of two."""
    parts = fp8(1, 32)(rows, columns)
    exponents = torch.randint(110, 130, parts["weight_scale_inv"].shape)
    expected = parts["weight"].double() * (2.0 ** (exponents.double() - 127)).repeat_interleave(32, 1)
    return parts | {"weight_scale_inv": exponents.to(torch.uint8), "expected": expected}


def bitsandbytes_4_bits(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """NF4 with scales that are quantized themselves: the first code of a pair is in the high bits."""
    codes = torch.randint(0, 16, (rows * columns,))
    table, nested_table = torch.rand(16) * 2 - 1, torch.rand(256)
    scales = torch.randint(0, 256, (rows * columns // 64,))
    outer = torch.rand(-(-len(scales) // 256))
    of_scale = outer.double().repeat_interleave(256)[: len(scales)]
    absmax = nested_table.double()[scales] * of_scale + 0.25
    state = {"blocksize": 64, "shape": [rows, columns], "nested_blocksize": 256, "nested_offset": 0.25}
    expected = table.double()[codes] * absmax.repeat_interleave(64)
    return {
        "weight": (codes[::2] * 16 + codes[1::2]).to(torch.uint8)[:, None],
        "weight.absmax": scales.to(torch.uint8),
        "weight.quant_map": table,
        "weight.nested_absmax": outer,
        "weight.nested_quant_map": nested_table,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(
            [*json.dumps(state).encode()], dtype=torch.uint8
        ),
        "expected": expected.reshape(rows, columns),
    }


def bitsandbytes_8_bits(rows: int, columns: int) -> dict[str, torch.Tensor]:
    weight, scales = torch.randint(-127, 128, (rows, columns)).to(torch.int8), torch.rand(rows)
    expected = weight.double() * scales.double()[:, None] / 127
    row_format = torch.zeros((), dtype=torch.uint8)
    return {"weight": weight, "SCB": scales, "weight_format": row_format, "expected": expected}


def fbgemm(rows: int, columns: int) -> dict[str, torch.Tensor]:
    parts = fp8_rows(rows, columns)
    expected = parts["weight"].double() * parts["weight_scale"].double()
    return parts | {"input_scale": torch.ones(()), "expected": expected}


BY_FORMULA = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, awq),
    "gptq, 3 bits": ({"quant_method": "gptq", "bits": 3, "group_size": GROUP}, gptq_3_bits),
    "int-quantized with zeros": (compressed("int-quantized", strategy="channel"), int8_with_zeros),
    "int-quantized in groups": (compressed("int-quantized", **GROUPED), int8_groups),
    "pack-quantized, 6 bits": (
        compressed("pack-quantized", num_bits=6, **GROUPED),
        packed_in_scattered_groups,
    ),
    "pack-quantized, 3 bits": (compressed("pack-quantized", num_bits=3, **GROUPED), packed_densely),
    "mxfp8": ({"quant_method": "fp8", "weight_block_size": [1, 32]}, fp8_by_exponents),
    "bitsandbytes, 4 bits": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, bitsandbytes_4_bits),
    "bitsandbytes, 8 bits": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, bitsandbytes_8_bits),
    "fbgemm_fp8": ({"quant_method": "fbgemm_fp8"}, fbgemm),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, fbgemm),
}


@pytest.mark.parametrize("name", BY_FORMULA)
def test_the_values_are_those_of_the_formula(tmp_path: Path, name: str) -> None:
    settings, quantize = BY_FORMULA[name]
    folder = save_quantized(tmp_path, settings, quantize)
    tensors = load_file(folder / "model.safetensors")
    expected = {each: tensors.pop(each) for each in list(tensors) if each.endswith(".expected")}
    save_file(tensors, folder / "model.safetensors")
    ours = weights_of(folder)
    for tensor, values_ in expected.items():
        weight = ours[tensor.replace("expected", "weight")]
        np.testing.assert_allclose(weight, values_.numpy(), rtol=1e-6, err_msg=tensor)
    assert len(expected) == 7
    projections = {each for each in ours if "_proj" in each}
    assert projections == {each.replace("expected", "weight") for each in expected}  # no scale is left


# ---- refusals ----------------------------------------------------------------------------------


def _edit(change: Any) -> Any:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return edit


def _settings(**changes: Any) -> Any:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= changes
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def _method(name: str) -> Any:
    return _settings(quant_method=name)


def _no_settings(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function: a name of BY_UPSTREAM or BY_FORMULA -> its checkpoint, not to be changed."""

    @cache
    def save(name: str) -> Path:
        folder = save_quantized(tmp_path_factory.mktemp("hf"), *(BY_UPSTREAM | BY_FORMULA)[name])
        _edit(lambda stored: [stored.pop(each) for each in [*stored] if "expected" in each])(folder)
        return folder

    return save


Q = "model.layers.0.self_attn.q_proj"
FP8, GPTQ, INT8 = "fp8 in blocks", "gptq", "int-quantized"
PACKED, AWQ, BNB = "pack-quantized", "awq", "bitsandbytes, 4 bits"
STATE = "weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        *(
            (GPTQ, _method(method), f"quantization_config: this checkpoint is quantized with {method!r}")
            for method in ("hqq", "aqlm", "bitnet", "quark", "torchao", "vptq")
        ),
        (GPTQ, _settings(quant_method=None), "is quantized with None"),
        (GPTQ, _settings(quant_method=None, load_in_4bit=True), "g_idx is I32, whole numbers without"),
        (BNB, _edit(lambda stored: stored.pop(f"{Q}.weight.quant_map")), f"{Q}.weight.quant_map is missing"),
        (BNB, _edit(lambda stored: stored.pop(f"{Q}.weight.nested_absmax")), "nested_absmax is missing"),
        (BNB, _edit(lambda stored: stored[f"{Q}.{STATE}"].fill_(32)), f"{Q}.weight does not fit"),
        (BNB, _edit(lambda stored: stored.pop(f"{Q}.{STATE}")), "q_proj.weight is U8, whole numbers without"),
        (GPTQ, _no_settings, "down_proj.g_idx is I32, whole numbers without a meaning"),
        (INT8, _no_settings, "down_proj.weight is I8, whole numbers without a meaning"),
        (FP8, _settings(weight_block_size=[64, 64]), "do not fit the tensor"),
        (FP8, _settings(weight_block_size=128), "weight_block_size must be null or two numbers"),
        (FP8, _edit(lambda stored: stored.pop(f"{Q}.weight_scale_inv")), "its scale is missing"),
        (FP8, _edit(lambda stored: stored.pop(f"{Q}.weight")), f"the tensor {Q}.weight is missing"),
        (GPTQ, _settings(bits=5), "quantization_config.bits must be one of (2, 3, 4, 8)"),
        (GPTQ, _settings(bits=8), "does not fit its scales"),
        (GPTQ, _settings(checkpoint_format="marlin"), "checkpoint_format must be one of gptq, gptq_v2"),
        (GPTQ, _edit(lambda stored: stored.pop(f"{Q}.scales")), f"the tensor {Q}.scales is missing"),
        (GPTQ, _edit(lambda stored: stored[f"{Q}.g_idx"].fill_(9)), "a group that is none of 4"),
        (GPTQ, _edit(lambda stored: stored.update({f"{Q}.weight": torch.ones(2)})), "is there twice"),
        (PACKED, _settings(format="nvfp4-pack-quantized"), "format must be one of float-quantized"),
        (PACKED, _settings(format="marlin-24"), "format must be one of float-quantized"),
        (PACKED, _settings(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config must be left"),
        (PACKED, _settings(transform_config={"config_groups": {"u": {}}}), "transform_config must be"),
        (PACKED, _settings(config_groups={"a": {"weights": {"num_bits": 4}}, "b": {}}), "config_groups"),
        (PACKED, _edit(lambda stored: stored.pop(f"{Q}.weight_shape")), "weight_shape is missing"),
        (PACKED, _edit(lambda stored: stored[f"{Q}.weight_shape"].fill_(7)), "do not fit"),
        (AWQ, _settings(version="gemv"), "version must be 'gemm'"),
        (AWQ, _settings(bits=8), "bits must be 4"),
        (AWQ, _edit(lambda stored: stored.pop(f"{Q}.qzeros")), f"the tensor {Q}.qzeros is missing"),
        ("modelopt", _settings(quant_algo="NVFP4"), "quant_algo must be 'FP8'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_reason(
    saved: Any, tmp_path: Path, name: str, damage: Any, message: str
) -> None:
    folder = Path(shutil.copytree(saved(name), tmp_path / "hf"))
    damage(folder)
    with pytest.raises((ConversionError, RopeScalingError)) as caught:
        convert_weights(folder, tmp_path / "out.gguf", type="f16")
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_beside_config_json_names_model_optimizers_types(saved: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("modelopt"), tmp_path / "hf"))
    expected = weights_of(folder)
    _no_settings(folder)
    with pytest.raises(ConversionError, match="input_scale has no place"):
        convert_weights(folder, tmp_path / "out.gguf", type="f16")
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    ours = weights_of(folder)
    assert ours.keys() == expected.keys()
    assert all(np.array_equal(ours[name], expected[name]) for name in ours)


def test_a_quantized_pytorch_file_gives_the_same_weights(tmp_path: Path) -> None:
    folder = save_quantized(tmp_path, *BY_UPSTREAM["gptq"])
    expected = weights_of(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    ours = weights_of(folder)
    assert all(np.array_equal(ours[name], expected[name]) for name in expected)


def test_every_method_is_measured() -> None:
    """gpt-oss's mxfp4 is in tests/rope/test_published_checkpoints.py, against transformers' own code."""
    measured = {settings["quant_method"] for settings, _ in (BY_UPSTREAM | BY_FORMULA).values()}
    assert measured | {"mxfp4"} == METHODS.keys()
