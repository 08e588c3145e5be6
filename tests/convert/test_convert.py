"""The way from a checkpoint to a file: keys, parts, memory, and what is left behind when something fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hf_checkpoints import convert_weights, save_checkpoint
from libraries import run_cli_on_a_full_disk
from tiny_gguf import contents

from yarn_gguf.cli import main
from yarn_gguf.convert.gguf_header import headers, new_writer
from yarn_gguf.convert.plan import plan_conversion
from yarn_gguf.convert.tensor import Tensor, stack
from yarn_gguf.errors import ConversionError, GGUFError, RopeScalingError
from yarn_gguf.native.weights import check_loadable
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.read import read_model
from yarn_gguf.rope.scaling import RopeScaling


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A checkpoint in one safetensors file. Never written to."""
    return save_checkpoint(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "hf"))


def shard(folder: Path) -> Path:
    """Save the checkpoint again in shards; gives the index."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="2MB")
    return folder / "model.safetensors.index.json"


# ---- what is written -------------------------------------------------------------------------


def test_a_factor_that_follows_the_text_is_kept(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"] = {"type": "dynamic", "factor": 2.5}
    (folder / "config.json").write_text(json.dumps(config))
    convert_weights(folder, tmp_path / "a.gguf", type="f16")
    length = config["max_position_embeddings"]
    assert read_model(tmp_path / "a.gguf").dynamic == DynamicScaling.of(
        "ntk", policy="growth", original_max_position_embeddings=length, ntk_factor=2.5
    )
    convert_weights(folder, tmp_path / "b.gguf", type="f16", scaling=RopeScaling("yarn", 2.0))
    assert read_model(tmp_path / "b.gguf").dynamic is None


@pytest.mark.parametrize(
    ("config", "warned"),
    [
        ({"model_type": "mistral", "sliding_window": 64}, True),
        ({"model_type": "mistral", "sliding_window": 256}, False),  # as long as the context
        ({"model_type": "mistral", "sliding_window": None}, False),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True}, True),
        ({"model_type": "qwen2", "sliding_window": 64}, False),
        ({"model_type": "gemma2", "sliding_window": 64, "attn_logit_softcapping": 50.0}, False),
    ],
)
def test_a_window_that_llama_cpp_does_not_have_is_warned_of(tmp_path: Path, caplog, config, warned) -> None:
    values = json.loads((save_checkpoint(tmp_path, config["model_type"]) / "config.json").read_text())
    values.pop("use_sliding_window", None)
    (tmp_path / "config.json").write_text(json.dumps(values | config))
    plan_conversion(tmp_path, type="f16", tokenizer=False)
    found = [each.getMessage() for each in caplog.records if "sliding_window is 64" in each.getMessage()]
    assert len(found) == warned
    assert all("texts of more than 64 tokens" in each for each in found)


def test_the_file_holds_the_checkpoints_weights(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    weights = load_file(folder / "model.safetensors")
    (path,) = convert_weights(folder, tmp_path / "out.gguf", type="f32")
    stored = {each.name: each.data for each in gguf.GGUFReader(path).tensors}
    assert len(stored) == len(weights)
    np.testing.assert_array_equal(stored["token_embd.weight"], weights["model.embed_tokens.weight"])
    np.testing.assert_array_equal(
        stored["blk.5.ffn_down.weight"], weights["model.layers.5.mlp.down_proj.weight"]
    )


@pytest.mark.parametrize("save", ["shards", "pytorch"])
def test_shards_and_pytorch_files_give_the_same_file(folder: Path, tmp_path: Path, save: str) -> None:
    import torch
    from safetensors.torch import load_file

    (whole,) = convert_weights(folder, tmp_path / "whole.gguf", type="q4_k_m")
    if save == "shards":
        shard(folder)
    else:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    (other,) = convert_weights(folder, tmp_path / "other.gguf", type="q4_k_m")
    assert other.read_bytes() == whole.read_bytes()


def test_parts_are_named_and_numbered_as_upstreams_and_load(folder: Path, tmp_path: Path) -> None:
    (whole,) = convert_weights(folder, tmp_path / "whole.gguf", type="q8_0")
    paths = convert_weights(folder, tmp_path / "out.gguf", type="q8_0", split_max_size=1_000_000)
    count = len(paths)
    assert count > 2
    assert [path.name for path in paths] == [f"out-{i + 1:05}-of-{count:05}.gguf" for i in range(count)]
    keys, tensors = contents(whole)
    parts = [contents(path) for path in paths]
    for number, (own, _) in enumerate(parts):
        assert own["split.no"] == number
        assert own["split.count"] == count
        assert own["split.tensors.count"] == len(tensors)
    assert {name: each for _, part in parts for name, each in part.items()} == tensors
    assert {k: v for k, v in parts[0][0].items() if not k.startswith("split.")} == keys
    check_loadable(paths)


def test_a_header_is_packed_as_the_gguf_package_packs_it() -> None:
    ours, theirs = new_writer("llama", ()), gguf.GGUFWriter(None, "llama")
    theirs.tensors = ours.tensors
    for writer in (ours, theirs):
        writer.add_token_list(["a", "é", "世界", ""])
        writer.add_token_scores([0.5, -1e4, 1 / 3])
        writer.add_token_types([gguf.TokenType.NORMAL, gguf.TokenType.BYTE])
        writer.add_array("numbers", [1, 2, -3])
        writer.add_array("flags", [True, False])
        writer.add_array("one", ["alone"])
        writer.kv_data[0]["doubles"] = gguf.GGUFValue(
            [0.1], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.FLOAT64
        )
    assert headers(ours) == headers(theirs)


def test_a_model_that_fits_in_one_part_is_not_split(folder: Path, tmp_path: Path) -> None:
    assert convert_weights(folder, tmp_path / "o.gguf", type="q8_0", split_max_size=10**9) == [
        tmp_path / "o.gguf"
    ]


def test_the_scaling_asked_for_replaces_the_checkpoints_own(folder: Path, tmp_path: Path) -> None:
    (path,) = convert_weights(folder, tmp_path / "out.gguf", type="q8_0", scaling=RopeScaling("yarn", 4.0))
    assert read_model(path).scaling == RopeScaling("yarn", 4.0, 256)
    assert read_model(path).context_length == 1024


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("own", "context", "original"),
    [
        ({"rope_type": "linear", "factor": 8.0}, 256, 32),  # as Together's Llama-2-7B-32K
        ({"rope_type": "llama3", "factor": 8.0, **LLAMA3}, 256, 32),
        ({"rope_type": "llama3", "factor": 32.0, **LLAMA3}, 256, 32),  # as Llama 3.2
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256, 64),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
            1024,
            256,
        ),  # Qwen's recipe
    ],
)
def test_a_checkpoints_own_scaling_keeps_its_context(
    folder: Path, tmp_path: Path, own: dict, context: int, original: int
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] |= own
    (folder / "config.json").write_text(json.dumps(config))
    (path,) = convert_weights(folder, tmp_path / "out.gguf", type="q8_0")
    model = read_model(path)
    assert (model.context_length, model.original_context) == (context, original)
    assert model.scaling.factor == own["factor"]


def test_progress_ends_when_all_weights_are_written(folder: Path, tmp_path: Path) -> None:
    seen = []
    (path,) = convert_weights(
        folder, tmp_path / "out.gguf", type="q4_k_m", progress=lambda *args: seen.append(args)
    )
    assert seen[-1] == (sum(each.n_bytes for each in gguf.GGUFReader(path).tensors),) * 2
    assert seen == sorted(seen)
    assert len(seen) >= 74  # tensors


def test_a_new_file_has_the_rights_of_any_new_file(folder: Path, tmp_path: Path) -> None:
    (path,) = convert_weights(folder, tmp_path / "out.gguf", type="q8_0")
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize(("groups", "unit"), [(1, 12), (2, 6), (4, 3), (12, 1)])
def test_a_mapped_tensor_is_the_same_in_pieces_as_at_once(groups: int, unit: int) -> None:
    data = np.arange(60, dtype=np.float32).reshape(12, 5)
    tensor = Tensor(data.shape, lambda start, stop: data[start:stop])
    mapped = tensor.map(lambda rows: rows[::-1], groups=groups)
    assert mapped.unit == unit
    whole = np.concatenate([group[::-1] for group in np.split(data, groups)])
    np.testing.assert_array_equal(mapped.load(), whole)
    pieces = [mapped.read(start, start + unit) for start in range(0, 12, unit)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    again = mapped.map(lambda rows: rows[::-1], groups=groups)
    np.testing.assert_array_equal(again.load(), data)
    stacked = stack([tensor, mapped])
    np.testing.assert_array_equal(stacked.read(1, 2)[0], whole)
    assert stacked.shape == (2, 12, 5)


# ---- the command -----------------------------------------------------------------------------


def test_the_command_writes_a_scaled_file(folder: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out.gguf"
    arguments = [
        str(folder),
        "-o",
        str(output),
        "--type",
        "q4_k_m",
        "--no-tokenizer",
        "--method",
        "yarn",
        "--factor",
        "4",
    ]
    assert main(["convert", *arguments, "--beta-fast", "16", "--original-context", "128"]) == 0
    assert read_model(output).scaling == RopeScaling("yarn", 4.0, 128, beta_fast=16.0)
    assert capsys.readouterr().out == f"{output}: {output.stat().st_size:,} bytes\n"


@pytest.mark.parametrize("split", [[], ["--split-max-size", "1M"]])
def test_a_dry_run_says_what_would_be_written_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys, split: list[str]
) -> None:
    output = tmp_path / "out" / "model.gguf"
    output.parent.mkdir()
    arguments = ["convert", str(folder), "-o", str(output), "--type", "q4_k_m", "--no-tokenizer", *split]
    assert main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert list(output.parent.iterdir()) == []
    assert main(arguments) == 0
    written = list(output.parent.iterdir())
    assert f"{sum(path.stat().st_size for path in written):,} bytes in all" in said
    assert all(path.name in said for path in written)
    for path in written:
        for each in gguf.GGUFReader(path).tensors:
            (line,) = (line.split() for line in said.splitlines() if line.split()[:1] == [each.name])
            assert line[-2:] == [each.tensor_type.name, f"{each.n_bytes:,}"]


@pytest.mark.parametrize("split", [0, 1_000_000])
def test_an_output_in_a_folder_that_is_missing_is_refused(folder: Path, tmp_path: Path, split: int) -> None:
    with pytest.raises(GGUFError, match="No such file or directory"):
        convert_weights(folder, tmp_path / "missing" / "out.gguf", type="q8_0", split_max_size=split)


def test_an_option_without_its_factor_is_refused(folder: Path, tmp_path: Path, capsys) -> None:
    arguments = ["convert", str(folder), "-o", str(tmp_path / "out.gguf"), "--type", "q8_0"]
    assert main([*arguments, "--beta-fast", "16"]) == 1
    assert "needs --factor" in capsys.readouterr().err


def test_converting_loads_neither_torch_nor_transformers(folder: Path, tmp_path: Path) -> None:
    command = (
        "import sys; from yarn_gguf.cli import main; main(); "
        "assert not {'torch', 'transformers'} & set(sys.modules), sys.modules"
    )
    arguments = ["convert", folder, "-o", tmp_path / "out.gguf", "--type", "q4_k_m", "--no-tokenizer"]
    subprocess.run([sys.executable, "-c", command, *arguments], check=True)
    assert (tmp_path / "out.gguf").exists()


def test_memory_does_not_grow_with_a_tensor(folder: Path, tmp_path: Path) -> None:
    """A token embedding of 1 GB in float32, which the file system need not store."""
    weights = {"model.embed_tokens.weight": (1_000_000, 256), "model.norm.weight": (256,)}
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": 1_000_000, "num_hidden_layers": 1, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    _sparse_safetensors(folder / "model.safetensors", weights, layers=1)
    command = (
        "import pathlib, sys; from yarn_gguf.convert import convert;"
        "convert(sys.argv[1], sys.argv[2], type='q4_0', threads=2, tokenizer=False);"
        "print(pathlib.Path('/proc/self/status').read_text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, folder, tmp_path / "out.gguf"],
        check=True,
        capture_output=True,
        text=True,
    )
    (peak,) = (line.split() for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    assert int(peak[1]) < 128 * 1024  # KiB


# ---- what cannot be converted ----------------------------------------------------------------


def _break_config(**values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return edit


def _cut_short(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1)


def _claim_a_long_header(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(struct.pack("<Q", 2**60))


def _edit_header(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return edit


def _edit_index(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        index = shard(folder)
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))

    return edit


def _lose_a_shard(folder: Path) -> None:
    shard(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def _repeat_a_shard(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "model-00002.safetensors")


def _put_whole_numbers_into_weights(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.ones(3, dtype=torch.int64)}, folder / "pytorch_model.bin")


def _put_code_into_weights(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({"x": Path}, folder / "pytorch_model.bin")


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


NORM = "model.norm.weight"
CARD = "README.md"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "is it a checkpoint"),
        (_break_config(model_type="mamba"), "'mamba' is none of llama"),
        (_break_config(num_hidden_layers=9), "do not make the model of its config.json"),
        (_break_config(num_hidden_layers=7), "has no place in a llama model"),
        (_break_config(intermediate_size=1024), "wrong shape; expected"),
        (_break_config(vocab_size=1000), "wrong shape; expected"),
        (_cut_short, "needs"),
        (_claim_a_long_header, "damaged"),
        (_edit_header(lambda header: header.update(x={"dtype": "F32"})), "damaged"),
        (_edit_header(lambda header: header[NORM].update(dtype="F8_E4M3")), "is F8_E4M3: only F64"),
        (_edit_header(lambda header: header[NORM].update(shape=[257])), "needs 1028 bytes and has 1024"),
        (_edit_header(lambda header: header[NORM].update(shape=[-1, -256])), "(-1, -256) needs 1024 bytes"),
        (_edit_header(lambda header: header.update(strange=header.pop(NORM))), "strange has no place"),
        (_edit_header(lambda header: header.pop(NORM)), "output_norm.weight"),
        (_edit_index(lambda places: places.update({NORM: "../hf/model.safetensors"})), "is no file name"),
        (_edit_index(lambda places: places.update({NORM: "/etc/passwd"})), "is no file name"),
        (_edit_index(lambda places: places.update({NORM: "..\\model.safetensors"})), "is no file name"),
        (_edit_index(lambda places: places.update({NORM: ".."})), "is no file name"),
        (_edit_index(lambda places: places.update({NORM: ""})), "is no file name"),
        (_edit_index(lambda places: places.update({NORM: 7})), "is no file name"),
        (_edit_index(lambda places: places.update(ghost=places[NORM])), "ghost: its shard does not hold it"),
        (_edit_index(lambda places: places.pop(NORM)), "the index does not name it"),
        (lambda folder: shard(folder).write_text("{"), "damaged"),
        (_lose_a_shard, "is missing, which model.safetensors.index.json names"),
        (_repeat_a_shard, "is also in"),
        (_put_whole_numbers_into_weights, "x is torch.int64: only floating point can be converted"),
        (_put_code_into_weights, "not a file of weights and nothing else"),
        (_write(CARD, b"---\nname: tiny\ntags: [a\nb: c\n---\n"), "README.md: no YAML at its head (line 4: "),
        (_write(CARD, b"---\nname: \0\n---\n"), "README.md: no YAML at its head (unacceptable character"),
        (_write(CARD, b"---\nversion: 1.5\n---\n"), "README.md: general.version would be 1.5"),
        (_write(CARD, b"---\ntags: [a, 7]\n---\n"), "README.md: general.tags would be ['a', 7]"),
        (_write(CARD, b"---\nlicense: [7]\n---\n"), "README.md or generation_config.json is damaged"),
        (_write(CARD, b"\xff"), "README.md or generation_config.json is damaged"),
        (_write("generation_config.json", b'{"top_k": "a"}'), "config.json: general.sampling.top_k would be"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(folder: Path, tmp_path: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(ConversionError) as caught:
        convert_weights(folder, tmp_path / "out.gguf", type="q8_0")
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_checkpoint_that_is_cut_while_it_is_read_is_refused(folder: Path, tmp_path: Path) -> None:
    def cut(done: int, total: int) -> None:
        os.truncate(folder / "model.safetensors", 1000)

    with pytest.raises(ConversionError, match="was cut short while it was read: download"):
        convert_weights(folder, tmp_path / "out.gguf", type="q8_0", threads=1, progress=cut)
    assert list(tmp_path.iterdir()) == [folder]


def test_an_output_that_exists_is_kept_without_force(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    output.write_text("old")
    with pytest.raises(ConversionError, match="exists: use --force"):
        convert_weights(folder, output, type="q8_0")
    assert output.read_text() == "old"
    convert_weights(folder, output, type="q8_0", force=True)
    check_loadable([output])


def test_a_scaling_that_attention_is_tied_to_is_not_replaced(tmp_path: Path) -> None:
    from test_convert_types import COMPRESSED

    own = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    folder = save_checkpoint(
        tmp_path / "hf", "deepseek_v3", **COMPRESSED, rope_parameters=own | {"rope_theta": 1e4}
    )
    plan_conversion(folder, type="q8_0", tokenizer=False)
    with pytest.raises(RopeScalingError, match="mscale_all_dim 1 ties this model's attention"):
        plan_conversion(folder, type="q8_0", tokenizer=False, scaling=RopeScaling("yarn", 8.0))


# ---- what is left behind ---------------------------------------------------------------------


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("split", [0, 1_000_000])
def test_an_interruption_leaves_nothing(folder: Path, tmp_path: Path, failure, split: int) -> None:
    def fail(done: int, total: int) -> None:
        if done > total / 2:
            raise failure

    with pytest.raises((KeyboardInterrupt, GGUFError)):
        convert_weights(folder, tmp_path / "out.gguf", type="q8_0", split_max_size=split, progress=fail)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_disk_without_room_is_refused_at_the_beginning(folder: Path, tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    size = plan_conversion(folder, type="q8_0", tokenizer=False).size
    seen = []
    with pytest.raises(GGUFError, match=f"{size:,} bytes needed, 1,000 free: make room"):
        convert_weights(folder, tmp_path / "out.gguf", type="q8_0", progress=lambda *args: seen.append(args))
    assert seen == []
    assert list(tmp_path.iterdir()) == [folder]


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    done = run_cli_on_a_full_disk(
        "convert", folder, "-o", tmp_path / "out.gguf", "--type", "q8_0", "--no-tokenizer"
    )
    assert done.returncode == 1
    assert "cannot be written (File too large); nothing was changed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [folder]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB, a little more than the checkpoint in q8_0 takes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6000k", "tmpfs", disk]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a file system; a limit on files' sizes stands for it above")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_too_small_is_refused(folder: Path, small_disk: Path) -> None:
    with pytest.raises(GGUFError, match=r"bytes needed, 6,144,000 free: make room"):
        convert_weights(folder, small_disk / "out.gguf", type="f16")
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("split", [0, 1_000_000])
def test_a_disk_that_another_fills_meanwhile_keeps_the_old_file_and_no_half_of_the_new(
    folder: Path, small_disk: Path, split: int
) -> None:
    output, filler = small_disk / "out.gguf", small_disk / "filler"
    old = [] if split else [output]
    for path in old:
        path.write_text("old")

    def fill(done: int, total: int) -> None:
        if not filler.exists() and done > total / 4:
            with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    with pytest.raises(GGUFError, match="No space left on device"):
        convert_weights(folder, output, type="q8_0", split_max_size=split, force=True, progress=fill)
    assert sorted(small_disk.iterdir()) == sorted([filler, *old])
    assert all(path.read_text() == "old" for path in old)


def test_a_kill_leaves_no_file_under_the_final_name(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    script = Path(__file__).with_name("convert_until_killed.py")
    for lines in (1, 20, 60):
        with subprocess.Popen([sys.executable, script, folder, output], stdout=subprocess.PIPE) as process:
            for _ in range(lines):
                process.stdout.readline()
            process.kill()
        assert not output.exists()


# ----------------------------------------------------------------------------------------------


def _sparse_safetensors(path: Path, weights: dict[str, tuple[int, ...]], layers: int) -> None:
    """Zeros in float32, of which the file system stores nothing."""
    shapes = dict(weights)
    for i in range(layers):
        own = {
            "self_attn.q_proj": (256, 256),
            "self_attn.k_proj": (64, 256),
            "self_attn.v_proj": (64, 256),
            "self_attn.o_proj": (256, 256),
            "mlp.gate_proj": (512, 256),
            "mlp.up_proj": (512, 256),
            "mlp.down_proj": (256, 512),
            "input_layernorm": (256,),
            "post_attention_layernorm": (256,),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in own.items()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
