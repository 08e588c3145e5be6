"""Converted weights have the types and bytes that llama_model_quantize gives them from float32."""

from __future__ import annotations

import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hf_checkpoints import (
    COMPRESSED_ATTENTION,
    convert_weights,
    save_checkpoint,
    upstream_quantize,
    write_imatrix,
)
from tiny_gguf import contents

from yarn_gguf.convert import TYPES, quantize
from yarn_gguf.convert.imatrix import read_imatrix
from yarn_gguf.convert.quantize import GGMLType
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import ConversionError

NEEDS_IMATRIX = ("iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")
EXPERTS = {
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
}
# the last three: rows that are no multiple of a block of 256; 8 experts; as many layers as a 70B model
MODELS = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {"num_key_value_heads": 8}),
    "phi3": ("phi3", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 32}),
    "deepseek_v3": ("deepseek_v3", COMPRESSED_ATTENTION),
    "narrow": ("llama", {"hidden_size": 288, "intermediate_size": 544, "num_attention_heads": 9,
                         "num_key_value_heads": 3}),
    "gpt_oss": ("gpt_oss", EXPERTS),
    "70b": ("qwen2", {"num_hidden_layers": 80, "intermediate_size": 256, "num_key_value_heads": 2}),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a function: a name of MODELS -> (its checkpoint, its file in float32)."""
    made = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in made:
            model_type, config = MODELS[name]
            folder = save_checkpoint(tmp_path_factory.mktemp(name), model_type, **config)
            made[name] = folder, convert_weights(folder, folder / "f32.gguf", type="f32")[0]
        return made[name]

    return make


@pytest.mark.parametrize("type_", [each for each in TYPES if each not in NEEDS_IMATRIX])
def test_a_file_is_what_upstream_makes_of_the_one_in_float32(model, tmp_path: Path, type_: str) -> None:
    folder, f32 = model("llama")
    ours = contents(convert_weights(folder, tmp_path / "ours.gguf", type=type_)[0])
    theirs = contents(upstream_quantize(f32, tmp_path / "theirs.gguf", type_))
    assert ours == theirs
    assert [*ours[1]] == [*theirs[1]]  # in the same order


@pytest.mark.parametrize("type_", ["q2_k", "q3_k_m", "q4_k_m"])
@pytest.mark.parametrize("name", [each for each in MODELS if each not in ("llama", "70b")])
def test_a_mix_is_upstreams_on_every_architecture(model, tmp_path: Path, name: str, type_: str) -> None:
    folder, f32 = model(name)
    ours = contents(convert_weights(folder, tmp_path / "ours.gguf", type=type_)[0])
    assert ours == contents(upstream_quantize(f32, tmp_path / "theirs.gguf", type_))


def test_a_mix_knows_a_model_of_70_billion_by_its_layers(model, tmp_path: Path) -> None:
    folder, f32 = model("70b")
    _, ours = contents(convert_weights(folder, tmp_path / "ours.gguf", type="q4_k_m")[0])
    assert ours == contents(upstream_quantize(f32, tmp_path / "theirs.gguf", "q4_k_m"))[1]
    assert {ours[f"blk.{i}.attn_v.weight"][0] for i in range(80)} == {GGMLType.Q5_K, GGMLType.Q6_K}


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        *(("llama", each) for each in ("q4_0", "q4_k_m", "iq4_nl", *NEEDS_IMATRIX)),
        ("gpt_oss", "q4_k_m"),
        ("gpt_oss", "iq3_xxs"),
    ],
)
def test_an_importance_matrix_is_heeded_as_upstream_does(
    model, tmp_path: Path, name: str, type_: str
) -> None:
    folder, f32 = model(name)
    importances = _importances(f32)
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", importances)
    keys, ours = contents(convert_weights(folder, tmp_path / "ours.gguf", type=type_, imatrix=imatrix)[0])
    _, theirs = contents(upstream_quantize(f32, tmp_path / "theirs.gguf", type_, importances))
    _, without = contents(upstream_quantize(f32, tmp_path / "without.gguf", "q4_k_m"))
    assert ours == theirs
    assert ours != without
    assert keys["quantize.imatrix.file"] == "imatrix.gguf"
    assert keys["quantize.imatrix.dataset"] == "prose.txt"
    assert keys["quantize.imatrix.entries_count"] == len(importances)
    assert keys["quantize.imatrix.chunks_count"] == 3


@pytest.mark.parametrize("type_", NEEDS_IMATRIX)
def test_a_type_that_needs_an_importance_matrix_says_so(model, tmp_path: Path, type_: str) -> None:
    folder, _ = model("llama")
    with pytest.raises(ConversionError, match="needs an importance matrix: give --imatrix"):
        convert_weights(folder, tmp_path / "out.gguf", type=type_)
    assert list(tmp_path.iterdir()) == []


def test_an_importance_matrix_of_another_model_is_refused(model, tmp_path: Path) -> None:
    folder, _ = model("llama")
    imatrix = write_imatrix(tmp_path / "i.gguf", {"blk.0.attn_q.weight": np.ones((1, 64), np.float32)})
    with pytest.raises(ConversionError, match="of another model"):
        convert_weights(folder, tmp_path / "out.gguf", type="q4_k_m", imatrix=imatrix)
    with pytest.raises(ConversionError, match=r"general\.type is not 'imatrix'"):
        convert_weights(folder, tmp_path / "out.gguf", type="q4_k_m", imatrix=model("llama")[1])


def test_an_expert_that_was_never_used_has_equal_importances(tmp_path: Path) -> None:
    sums = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    path = write_imatrix(tmp_path / "i.gguf", {"x": sums}, counts=[8, 0])
    np.testing.assert_array_equal(read_imatrix(path).of("x", (2, 5, 3)), [[1, 2, 3], [1, 1, 1]])


@pytest.mark.parametrize(
    ("value", "counts", "message"),
    [(np.nan, [8, 8], "x holds NaN or infinity"), (1, [8, 8, 8], "counts does not fit x.in_sum2")],
)
def test_a_damaged_importance_matrix_is_refused(
    tmp_path: Path, value: float, counts: list[int], message: str
) -> None:
    path = write_imatrix(tmp_path / "i.gguf", {"x": np.full((2, 2), value, np.float32)}, counts=counts)
    with pytest.raises(ConversionError, match=message):
        read_imatrix(path)


def test_every_type_is_one_of_llama_cpps() -> None:
    assert len(set(TYPES)) == len(TYPES)
    assert set(NEEDS_IMATRIX) < set(TYPES)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("type_", ["f32", "q4_k_m"])
def test_weights_of_16_and_64_bits_become_float32_exactly(tmp_path: Path, dtype: str, type_: str) -> None:
    """The witness is transformers' conversion of the same weights to float32."""
    import transformers

    narrow, wide = tmp_path / "narrow", tmp_path / "wide"
    save_checkpoint(narrow, dtype=dtype)
    transformers.AutoModelForCausalLM.from_pretrained(narrow, dtype="float32").save_pretrained(wide)
    (of_narrow,), (of_wide,) = (
        convert_weights(each, each / "out.gguf", type=type_) for each in (narrow, wide)
    )
    assert contents(of_narrow)[1] == contents(of_wide)[1]


def test_pieces_however_small_have_their_own_importances(model, tmp_path: Path, monkeypatch) -> None:
    """A piece is one expert, or a few rows of a matrix."""
    monkeypatch.setattr(quantize, "_CHUNK", 1024)
    folder, f32 = model("deepseek_v3")
    importances = _importances(f32)
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", importances)
    _, ours = contents(convert_weights(folder, tmp_path / "ours.gguf", type="q4_k_m", imatrix=imatrix)[0])
    assert ours == contents(upstream_quantize(f32, tmp_path / "theirs.gguf", "q4_k_m", importances))[1]


def test_reading_does_not_run_ahead_of_writing(monkeypatch) -> None:
    monkeypatch.setattr(quantize, "_CHUNK", 1024)
    read = []

    def rows(start: int, stop: int) -> np.ndarray:
        read.append((start, stop))
        return np.zeros((stop - start, 256), np.float32)

    pieces = quantize.quantized(
        [quantize.Target("x.weight", Tensor((1000, 256), rows), GGMLType.Q8_0)], threads=2
    )
    next(pieces)
    time.sleep(0.2)  # the work under way ends
    assert len(read) <= 2 * 2 + 1
    assert sum(len(piece) for _, piece in pieces) == 1000 - 4
    assert sorted(read) == [(start, start + 4) for start in range(0, 1000, 4)]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_bytes_do_not_depend_on_the_threads(model, tmp_path: Path, threads: int) -> None:
    folder, _ = model("gpt_oss")
    one, other = (
        convert_weights(folder, tmp_path / f"{t}.gguf", type="q4_k_m", threads=t)[0] for t in (threads, 3)
    )
    assert one.read_bytes() == other.read_bytes()


def test_a_weight_that_is_no_number_is_refused_with_its_tensor(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = save_checkpoint(tmp_path / "hf")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"][5, 7] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConversionError, match=r"blk\.3\.ffn_up\.weight .* holds NaN"):
        convert_weights(folder, tmp_path / "out.gguf", type="q8_0")
    assert [each.name for each in tmp_path.iterdir()] == ["hf"]


def _importances(f32: Path) -> dict[str, np.ndarray]:
    """Return random importances for every matrix: float32 (experts, inputs)."""
    generator = np.random.default_rng(0)
    return {
        each.name: generator.random(
            (len(each.data) if each.data.ndim == 3 else 1, each.data.shape[-1]), np.float32
        )
        + 0.5
        for each in gguf.GGUFReader(f32).tensors
        if each.data.ndim > 1 and each.tensor_type == GGMLType.F32 and each.name.endswith(".weight")
    }
