"""A converted file: its weights, its parts, its header, and the progress while it is written."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hf_checkpoints import convert_weights, save_in_shards
from tiny_gguf import contents

from yarn_gguf.convert.gguf_header import headers, new_writer
from yarn_gguf.native.weights import check_loadable


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
        save_in_shards(folder)
    else:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    (other,) = convert_weights(folder, tmp_path / "other.gguf", type="q4_k_m")
    assert other.read_bytes() == whole.read_bytes()


def test_parts_have_upstreams_names_and_numbers_and_load(folder: Path, tmp_path: Path) -> None:
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


def test_a_model_that_fits_in_one_part_is_not_split(folder: Path, tmp_path: Path) -> None:
    assert convert_weights(folder, tmp_path / "o.gguf", type="q8_0", split_max_size=10**9) == [
        tmp_path / "o.gguf"
    ]


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


def test_progress_ends_when_all_weights_are_written(folder: Path, tmp_path: Path) -> None:
    seen = []
    (path,) = convert_weights(
        folder, tmp_path / "out.gguf", type="q4_k_m", progress=lambda *args: seen.append(args)
    )
    assert seen[-1] == (sum(each.n_bytes for each in gguf.GGUFReader(path).tensors),) * 2
    assert seen == sorted(seen)
    assert len(seen) >= 74  # tensors


def test_a_new_file_has_the_permissions_of_any_new_file(folder: Path, tmp_path: Path) -> None:
    (path,) = convert_weights(folder, tmp_path / "out.gguf", type="q8_0")
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode
