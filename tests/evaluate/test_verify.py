"""verify: its verdict on files and checkpoints whose difference is known."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hf_checkpoints import convert_weights, save_checkpoint, write_imatrix
from libraries import PROSE
from multimodal_checkpoints import save_multimodal
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from yarn_gguf.cli import main
from yarn_gguf.convert import convert
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.evaluate.logit_errors import PositionErrors
from yarn_gguf.evaluate.verdict import judge
from yarn_gguf.evaluate.verify import Verification, verify
from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.gguf.header import KeyValue, ValueType, key_value, read_header
from yarn_gguf.model_file.extend import extend
from yarn_gguf.rope.scaling import RopeScaling

TOKENS = np.random.default_rng(0).integers(3, 320, 640).tolist()  # 2.5 times the original context
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
TRAINED = {"initializer_range": 0.08}  # attention that depends on positions


def checkpoint(folder: Path, **config: Any) -> Path:
    return save_checkpoint(folder, **(TRAINED | {"num_hidden_layers": 2} | config))


def converted(folder: Path, type_: str = "q4_k_m", **options: Any) -> Path:
    """Convert beside the checkpoint, and return the file."""
    output = folder.parent / f"{folder.name}-{type_}.gguf"
    (path,) = convert_weights(folder, output, type=type_, force=True, **options)
    return path


def set_keys(path: Path, *keys: KeyValue) -> Path:
    change_keys(read_header(path), list(keys), {each.key for each in keys})
    return path


def changed(source: Path, folder: Path, change: Any) -> Path:
    """Save the checkpoint again after change(name, parameter) of each matrix in place."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                change(name, parameter)
    model.save_pretrained(folder)
    return folder


def add_noise(share: float) -> Any:
    """Return a change that adds noise of a share of each matrix's own deviation."""
    return lambda _, weights: weights.add_(share * weights.std() * torch.randn_like(weights))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("plain") / "hf")


@pytest.fixture(scope="module")
def yarn_folder(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("yarn") / "hf", rope_parameters=YARN)


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return converted(folder)


# ---- the same model --------------------------------------------------------------------------


def test_a_file_in_float32_agrees_with_its_checkpoint(folder: Path) -> None:
    found = verify(converted(folder, "f32"), folder, TOKENS[:300])
    assert found.passed and found.verdict.startswith("as expected of F32: ")
    assert [(each.start, each.stop) for each in found.positions] == [
        (0, 64),
        (64, 128),
        (128, 192),
        (192, 256),
        (256, 300),
    ]
    for each in found.positions:
        assert each.logit_error < 2e-3  # a cache of float16
        assert each.kl_divergence < 1e-6
        assert each.top1_agreement > 0.9


@pytest.mark.parametrize("type_", ["bf16", "q8_0", "q6_k", "q4_0", "q4_k_m", "q2_k"])
def test_a_converted_file_is_as_expected_of_its_type(folder: Path, type_: str) -> None:
    found = verify(converted(folder, type_), folder, TOKENS[:128])
    assert found.passed
    assert found.verdict.startswith(f"as expected of {type_.upper()}: ")
    for each in found.positions:
        assert each.kl_divergence == each.expected_kl  # the control has the same bytes


@pytest.mark.parametrize("type_", ["q4_k_m", "iq2_xxs"])
def test_a_file_that_was_quantized_by_importances_is_as_expected(folder: Path, type_: str) -> None:
    """The control has none."""
    generator = np.random.default_rng(0)
    widths = {"ffn_down": 512} | dict.fromkeys(
        ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"), 256
    )
    importances = {
        f"blk.{layer}.{name}.weight": generator.uniform(0.1, 4, (1, width)).astype(np.float32)
        for layer in range(2)
        for name, width in widths.items()
    }
    importances["output.weight"] = generator.uniform(0.1, 4, (1, 256)).astype(np.float32)
    imatrix = write_imatrix(folder.parent / "imatrix.gguf", importances)
    (path,) = convert_weights(folder, folder.parent / f"{type_}-i.gguf", type=type_, imatrix=imatrix)
    found = verify(path, folder, TOKENS[:256])
    assert found.passed
    assert all(each.kl_divergence != each.expected_kl for each in found.positions)


def test_the_parts_of_a_split_model_are_one_model(folder: Path) -> None:
    parts = convert_weights(folder, folder.parent / "split.gguf", type="q8_0", split_max_size=400_000)
    assert len(parts) > 2
    assert verify(parts[0], folder, TOKENS[:64]).passed


@pytest.mark.parametrize("method", ["none", "yarn", "ntk", "linear"])
@pytest.mark.parametrize("own", [{}, {"rope_type": "linear", "factor": 2.0}])
def test_a_file_that_was_extended_on_purpose_is_compared_under_its_own_scaling(
    tmp_path: Path, method: str, own: dict
) -> None:
    rope_parameters = {"rope_type": "default", "rope_theta": 10000.0} | own
    folder = checkpoint(tmp_path / "hf", rope_parameters=rope_parameters)
    scaling = RopeScaling(method, 4.0 if method != "none" else 1.0)
    path = converted(folder, "f32", scaling=scaling)
    found = verify(path, folder, TOKENS, file_scaling=True)
    assert found.passed
    assert max(each.logit_error for each in found.positions) < 2e-3


@pytest.mark.parametrize("method", ["none", "yarn"])
def test_a_multimodal_checkpoint_is_asked_for_its_text_model(tmp_path: Path, method: str) -> None:
    folder = tmp_path / "hf"
    save_multimodal(folder, "Llava", "llama")
    scaling = RopeScaling(method, 4.0 if method != "none" else 1.0)
    path = converted(folder, "f32", scaling=scaling)
    tokens = [each % 250 for each in TOKENS[:300]]  # none of them is an image
    found = verify(path, folder, tokens, file_scaling=method != "none")
    assert found.passed
    assert max(each.logit_error for each in found.positions) < 2e-3


def positions(*parts: tuple[int, float, float]) -> list[PositionErrors]:
    """Return errors of consecutive positions. parts: (count, KL divergence, that of the control)."""
    found: list[PositionErrors] = []
    for count, kl, expected in parts:
        start = found[-1].stop if found else 0
        found.append(PositionErrors(start, start + count, 0.1, kl, expected, 0.9))
    return found


@pytest.mark.parametrize(
    ("parts", "passed", "where"),
    [
        ([(64, 1.4, 1.0), (64, 0.5, 1.0)], True, "0 - 64"),
        ([(64, 1.6, 1.0), (64, 0.5, 1.0)], False, "0 - 64"),
        ([(512, 1.0, 1.0), (1, 9.0, 1.0)], True, "0 - 513"),  # one position says nothing
        ([(512, 1.0, 1.0), (64, 9.0, 1.0)], False, "512 - 576"),
        ([(32, 1.0, 1.0), (32, 1.4, 1.0), (32, 1.0, 1.0), (32, 1.8, 1.0)], True, "64 - 128"),
        ([(8, 2.0, 1.0)], False, "0 - 8"),
    ],
)
def test_every_stretch_of_64_positions_is_judged(parts: list, passed: bool, where: str) -> None:
    found, verdict = judge(positions(*parts), "Q4_K_M", None)
    assert found == passed
    assert f" at {where}, " in verdict


# ---- another model ---------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["q8_0", "q4_k_m"])
def test_another_fine_tune_is_not_the_same_model(folder: Path, type_: str) -> None:
    other = changed(folder, folder.parent / "tuned", add_noise(0.1))
    found = verify(converted(other, type_), folder, TOKENS[:128])
    assert not found.passed
    assert found.verdict.startswith("not the same model: KL ")
    assert f"where {type_.upper()} explains" in found.verdict


def test_a_permuted_head_is_not_the_same_model(folder: Path) -> None:
    def swap_heads(name: str, weights: torch.Tensor) -> None:
        if name.endswith("0.self_attn.q_proj.weight"):
            weights[:64] = weights[:64].roll(32, dims=0)

    other = changed(folder, folder.parent / "permuted", swap_heads)
    found = verify(converted(other), folder, TOKENS[:128])
    assert not found.passed
    assert found.verdict.startswith("not the same model: KL ")


def test_a_wrong_epsilon_in_the_file_is_not_the_same_model(folder: Path) -> None:
    """The control has the keys of config.json, not those of the file."""
    path = converted(folder, "q8_0")
    set_keys(path, key_value("llama.attention.layer_norm_rms_epsilon", ValueType.FLOAT32, 0.1))
    assert not verify(path, folder, TOKENS[:128]).passed


@pytest.mark.parametrize(
    ("config", "verdict"),
    [
        ({"vocab_size": 352}, "output.weight is 352 x 256, and 320 x 256 in the checkpoint"),
        ({"num_hidden_layers": 1}, "it has no tensor blk.1.attn_k.weight, and the checkpoint has one"),
        ({"model_type": "qwen2"}, "it is a qwen2 model, and the checkpoint makes a llama model"),
    ],
)
def test_a_file_with_other_tensors_is_not_the_same_model(
    folder: Path, tmp_path: Path, config: dict, verdict: str
) -> None:
    other = save_checkpoint(tmp_path / "hf", **({"num_hidden_layers": 2} | config))
    found = verify(converted(other, "f32"), folder, TOKENS[:16])
    assert (found.passed, found.verdict) == (False, f"not the same model: {verdict}")


@pytest.mark.parametrize("size", [310, 1000])
def test_another_tokenizer_is_not_the_same_tokenizer(folder: Path, tmp_path: Path, size: int) -> None:
    """One has tokens that the file lacks."""
    ours, theirs = (shutil.copytree(folder, tmp_path / name) for name in ("ours", "theirs"))
    save_tokenizer(ours, 290)
    save_tokenizer(theirs, size)
    (path,) = convert(ours, tmp_path / "ours.gguf", type="q8_0")
    assert verify(path, ours, TOKENS[:32]).passed
    found = verify(path, theirs, TOKENS[:32])
    assert not found.passed
    assert found.verdict.startswith("not the same tokenizer: token ")


def save_tokenizer(folder: Path, size: int) -> None:
    """Train a tokenizer of `size` tokens, bytes and merges, and save it as tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PROSE.read_text(encoding="utf-8")[:20_000]], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


# ---- another scaling -------------------------------------------------------------------------

BASE = key_value("llama.rope.freq_base", ValueType.FLOAT32, 10001.0)
SLOW = key_value("llama.rope.scaling.yarn_beta_slow", ValueType.FLOAT32, 2.0)
HOT = key_value("llama.rope.scaling.yarn_attn_factor", ValueType.FLOAT32, 1.2)


def without_yarn(path: Path) -> None:
    extend(path, RopeScaling("none"), original_context=64)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (without_yarn, "wavelength"),
        (lambda path: extend(path, RopeScaling("yarn", 2.0, 64)), "wavelength"),
        (lambda path: extend(path, RopeScaling("yarn", 4.0, 128)), "wavelength"),
        (lambda path: extend(path, RopeScaling("linear", 4.0, 64)), "wavelength"),
        (lambda path: extend(path, RopeScaling("yarn", 4.0, 64), dynamic="growth"), "wavelength"),
        (lambda path: extend(path, RopeScaling("by-parts", 4.0, 64)), "temperature"),
        (lambda path: set_keys(path, SLOW), "wavelength"),
        (lambda path: set_keys(path, HOT), "temperature"),
    ],
    ids=["lost", "factor", "original context", "method", "dynamic", "no temperature", "beta", "temperature"],
)
def test_another_scaling_is_mended_by_the_command_of_the_verdict(
    yarn_folder: Path, tmp_path: Path, spoil: Any, what: str, capsys
) -> None:
    path = Path(shutil.copy(converted(yarn_folder), tmp_path / "a b.gguf"))
    spoil(path)
    found = verify(path, yarn_folder, TOKENS[:16])
    assert (found.passed, found.positions) == (False, ())
    assert any(each.what.startswith(what) for each in found.differences)
    start = "scaling differs: mend with yarn-gguf "
    assert found.verdict.startswith(start + "extend ")
    assert main(shlex.split(found.verdict.removeprefix(start))) == 0
    assert verify(path, yarn_folder, TOKENS[:16]).passed


def test_a_wrong_base_of_windows_is_mended_by_converting_again(tmp_path: Path) -> None:
    """No key of the scaling has that base."""
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    folder = checkpoint(
        tmp_path / "hf",
        model_type="gemma3_text",
        rope_parameters={"full_attention": plain | {"rope_theta": 1e6}, "sliding_attention": plain},
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=64,
        query_pre_attn_scalar=32,
    )
    path = converted(folder, "q8_0")
    assert verify(path, folder, TOKENS[:64]).passed
    set_keys(path, key_value("gemma3.rope.freq_base_swa", ValueType.FLOAT32, 20000.0))
    found = verify(path, folder, TOKENS[:16])
    assert [(each.what, each.file) for each in found.differences][1:] == [
        ("base of sliding windows", "20000")
    ]
    assert found.verdict.startswith("scaling differs: mend with yarn-gguf convert ")


def test_a_wrong_base_is_mended_by_converting_again(folder: Path, tmp_path: Path) -> None:
    path = set_keys(Path(shutil.copy(converted(folder), tmp_path / "base.gguf")), BASE)
    found = verify(path, folder, TOKENS[:16])
    expected = f"scaling differs: mend with yarn-gguf convert {folder} -o {path} --type q4_k_m --force"
    assert (found.passed, found.verdict) == (False, expected)
    assert found.differences[0].file == "none; base 10001"


def test_keys_of_other_names_for_the_same_frequencies_are_no_difference(
    yarn_folder: Path, tmp_path: Path
) -> None:
    """The table of an "explicit" scaling by transformers, in place of YaRN's keys."""
    rotary = transformers.AutoModelForCausalLM.from_pretrained(yarn_folder).model.rotary_emb
    path = Path(shutil.copy(converted(yarn_folder, "q8_0"), tmp_path / "table.gguf"))
    table = tuple(rotary.inv_freq.double().tolist())
    scaling = RopeScaling("explicit", 4.0, 64, inv_freq=table, attention_factor=rotary.attention_scaling)
    extend(path, scaling)
    assert verify(path, yarn_folder, TOKENS[:128]).passed


# ---- the command -----------------------------------------------------------------------------


def run(capsys, *arguments: str | Path) -> tuple[int, str, str]:
    status = main(["verify", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_reads_beyond_the_original_context_and_prints_json(
    folder: Path, path: Path, capsys
) -> None:
    status, out, _ = run(capsys, path, "--reference", folder, "--json")
    found = json.loads(out)
    assert (status, found["passed"], found["type"]) == (0, True, "Q4_K_M")
    assert [each["stop"] for each in found["positions"]] == [64, 128, 192, 256, 320]
    assert all(0 < each["logit_error"] < 0.5 for each in found["positions"])


def test_the_command_prints_one_line_of_verdict_below_80_columns(folder: Path, path: Path, capsys) -> None:
    status, out, _ = run(capsys, path, "--reference", folder, "-n", "32")
    *table, verdict = out.splitlines()
    assert status == 0
    assert "0 - 32" in table[-1]
    assert verdict.startswith("as expected of Q4_K_M: KL ")
    assert max(map(len, out.splitlines())) < 80


@pytest.mark.parametrize(("limit", "status"), [("10", 0), ("1e-9", 1)])
def test_a_limit_decides_and_no_control_is_made(
    folder: Path, path: Path, limit: str, status: int, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("yarn_gguf.evaluate.verify.write_control", None)
    found, out, _ = run(capsys, path, "--reference", folder, "-n", "32", "--max-kl", limit)
    assert found == status
    assert f"where --max-kl is {float(limit):g}" in out.splitlines()[-1]


def test_a_difference_is_exit_status_1_with_both_sides(yarn_folder: Path, tmp_path: Path, capsys) -> None:
    path = Path(shutil.copy(converted(yarn_folder), tmp_path / "lost.gguf"))
    without_yarn(path)
    status, out, _ = run(capsys, path, "--reference", yarn_folder)
    assert status == 1
    assert "checkpoint  yarn, factor 4, original_max_position_embeddings 64; base 10000" in out
    assert "file        none; base 10000" in out
    assert out.splitlines()[-1].startswith("scaling differs: mend with yarn-gguf extend ")
    assert run(capsys, path, "--reference", yarn_folder, "--file-scaling", "-n", "16")[0] == 0


@pytest.mark.parametrize("text", [False, True])
def test_missing_packages_are_named_with_the_command_that_installs_them(
    folder: Path, path: Path, tmp_path: Path, text: bool, capsys, monkeypatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name)
    )
    book = tmp_path / "book.txt"
    book.write_text("Once upon a time.", encoding="utf-8")
    status, _, error = run(capsys, path, "--reference", folder, "-n", "16", *(["-f", book] if text else []))
    assert status == 1
    assert "pip install torch" in error


def test_an_architecture_that_is_not_converted_needs_a_limit(
    folder: Path, path: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(folder, tmp_path / "hf")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "helium"}))
    with pytest.raises(YarnGGUFError, match=r"'helium' is not one of .* give a limit with --max-kl"):
        verify(path, other, TOKENS[:16])
    assert isinstance(verify(path, other, TOKENS[:16], max_kl=1e9), Verification)
