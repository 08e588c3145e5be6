"""Input that is refused, or converted with a warning."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hf_checkpoints import convert_weights, save_checkpoint, save_in_shards

from yarn_gguf.convert.plan import plan_conversion
from yarn_gguf.errors import ConversionError
from yarn_gguf.native.weights import check_loadable


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
        index = save_in_shards(folder)
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))

    return edit


def _lose_a_shard(folder: Path) -> None:
    save_in_shards(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def _repeat_a_shard(folder: Path) -> None:
    for number in (1, 2):
        shutil.copy(folder / "model.safetensors", folder / f"model-0000{number}-of-00002.safetensors")
    (folder / "model.safetensors").unlink()


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

QWEN_WINDOW = {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "is it a checkpoint"),
        (_break_config(model_type="mamba"), "'mamba' is not one of llama"),
        (_break_config(num_hidden_layers=9), "do not make the model of its config.json"),
        (_break_config(num_hidden_layers=7), "has no place in a llama model"),
        (_break_config(intermediate_size=1024), "wrong shape; expected"),
        (_break_config(vocab_size=1000), "wrong shape; expected"),
        (_cut_short, "needs"),
        (_claim_a_long_header, "damaged"),
        (_edit_header(lambda header: header.update(x={"dtype": "F32"})), "damaged"),
        (_edit_header(lambda header: header[NORM].update(dtype="F4")), "is F4: only F64"),
        (_edit_header(lambda header: header[NORM].update(dtype="F8_E4M3")), "needs 256 bytes and has 1024"),
        (
            _edit_header(lambda header: header[NORM].update(dtype="I32")),
            "tensor model.norm.weight is I32, whole numbers without a meaning: config.json names no",
        ),
        (
            _edit_header(lambda header: header[NORM].update(dtype="U8", shape=[1024])),
            "tensor model.norm.weight is U8, whole numbers without a meaning",
        ),
        (_edit_header(lambda header: header[NORM].update(shape=[257])), "needs 1028 bytes and has 1024"),
        (_edit_header(lambda header: header[NORM].update(shape=[-1, -256])), "(-1, -256) needs 1024 bytes"),
        (_edit_header(lambda header: header.update(strange=header.pop(NORM))), "strange has no place"),
        (_edit_header(lambda header: header.pop(NORM)), "output_norm.weight"),
        (
            _edit_index(lambda places: places.update({NORM: "../hf/model.safetensors"})),
            "is not a file name: a shard must lie beside",
        ),
        (
            _edit_index(lambda places: places.update({NORM: "/etc/passwd"})),
            "is not a file name: a shard must lie beside",
        ),
        (
            _edit_index(lambda places: places.update({NORM: "..\\model.safetensors"})),
            "is not a file name: a shard must lie beside",
        ),
        (
            _edit_index(lambda places: places.update({NORM: ".."})),
            "is not a file name: a shard must lie beside",
        ),
        (
            _edit_index(lambda places: places.update({NORM: ""})),
            "is not a file name: a shard must lie beside",
        ),
        (_edit_index(lambda places: places.update({NORM: 7})), "is not a file name: a shard must lie beside"),
        (_edit_index(lambda places: places.update(ghost=places[NORM])), "ghost: its shard does not hold it"),
        (_edit_index(lambda places: places.pop(NORM)), "the index does not name it"),
        (lambda folder: save_in_shards(folder).write_text("{"), "damaged"),
        (_lose_a_shard, "is missing, which model.safetensors.index.json names"),
        (_repeat_a_shard, "is also in"),
        (_put_whole_numbers_into_weights, "tensor x is I64, whole numbers without a meaning"),
        (_put_code_into_weights, "damaged, or holds more than weights"),
        (
            _write(CARD, b"---\nname: tiny\ntags: [a\nb: c\n---\n"),
            "README.md: its head is not YAML (line 4: ",
        ),
        (_write(CARD, b"---\nname: \0\n---\n"), "README.md: its head is not YAML (unacceptable character"),
        (_write(CARD, b"---\nlicense: [[7]]\n---\n"), "README.md or generation_config.json is damaged"),
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


@pytest.mark.parametrize("split", [0, 1_000_000])
def test_an_output_in_a_folder_that_is_missing_is_refused(folder: Path, tmp_path: Path, split: int) -> None:
    with pytest.raises(ConversionError, match=r"there is no folder .*missing that can be written to"):
        convert_weights(folder, tmp_path / "missing" / "out.gguf", type="q8_0", split_max_size=split)


@pytest.mark.parametrize(
    ("config", "warned"),
    [
        ({"model_type": "mistral", "sliding_window": 64}, True),
        ({"model_type": "mistral", "sliding_window": 256}, False),  # no shorter than the context
        ({"model_type": "mistral", "sliding_window": None}, False),
        (QWEN_WINDOW | {"max_window_layers": 7}, True),  # the window is of layers from the seventh on
        (QWEN_WINDOW | {"max_window_layers": 8}, False),  # of 8
        (QWEN_WINDOW | {"layer_types": ["full_attention"] * 8}, False),
        (QWEN_WINDOW | {"layer_types": ["full_attention"] * 7 + ["sliding_attention"]}, True),
        ({"model_type": "llama", "sliding_window": 64}, True),
        ({"model_type": "qwen2", "sliding_window": 64}, False),
        ({"model_type": "gemma2", "sliding_window": 64, "query_pre_attn_scalar": 32}, False),
    ],
)
def test_a_window_that_llama_cpp_does_not_have_gives_a_warning(
    tmp_path: Path, caplog, config, warned
) -> None:
    values = json.loads((save_checkpoint(tmp_path, config["model_type"]) / "config.json").read_text())
    values = {
        name: each for name, each in values.items() if name not in ("use_sliding_window", "layer_types")
    }
    (tmp_path / "config.json").write_text(json.dumps(values | config))
    plan_conversion(tmp_path, type="f16", tokenizer=False)
    found = [each.getMessage() for each in caplog.records if "sliding_window is 64" in each.getMessage()]
    assert len(found) == warned
    assert all("it differs from transformers on texts of more than 64 tokens" in each for each in found)
