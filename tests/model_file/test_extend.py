"""Files of other makers: their keys are understood, and extend refuses those that it cannot extend."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from rope_keys import f32, rope_keys, scaling_keys
from tiny_gguf import write_tiny

from yarn_gguf.errors import GGUFError, RopeScalingError
from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.gguf.header import ValueType, key_value, read_header
from yarn_gguf.model_file.extend import extend
from yarn_gguf.rope import gguf_write
from yarn_gguf.rope.model import RotaryEmbedding
from yarn_gguf.rope.read import read_model
from yarn_gguf.rope.scaling import RopeScaling

# ---- files of other makers -------------------------------------------------------------------


def test_a_file_without_scaling_keys_is_unscaled(tiny: Path) -> None:
    model = read_model(tiny)
    assert model.scaling == RopeScaling()
    assert (model.dim, model.rope_theta, model.original_context, model.usable_context) == (
        64,
        1e5,
        8192,
        8192,
    )


@pytest.mark.parametrize(
    ("keys", "dim"),
    [
        ({}, 64),
        ({"attention__key_length": 128}, 128),
        ({"attention__key_length": 128, "rope__dimension_count": 32}, 32),
        ({"attention__head_count": [0, 9, 4]}, 64),
    ],
)
def test_rotary_dimensions_are_found_as_llama_cpp_finds_them(tmp_path: Path, keys: dict, dim: int) -> None:
    assert read_model(write_tiny(tmp_path / "tiny.gguf", **keys)).dim == dim


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"type": "none", "factor": 4.0}, RopeScaling()),
        ({"type": "linear", "factor": 0.0}, RopeScaling("linear", 1.0)),
        ({"type": "yarn", "factor": 4.0}, RopeScaling("yarn", 4.0, 8192)),
        ({"type": "yarn", "factor": 4.0, "yarn_ext_factor": -1.0}, RopeScaling("yarn", 4.0, 8192)),
        ({"type": "yarn", "factor": 4.0, "yarn_ext_factor": 0.0}, RopeScaling("linear", 4.0)),
        ({"type": "linear", "factor": 1.0}, RopeScaling("linear", 1.0)),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 2048, "yarn_attn_factor": 1.5},
            RopeScaling("yarn", 4.0, 2048, attention_factor=1.5),
        ),
        (
            {"type": "yarn", "factor": 4.0, "yarn_attn_factor": 1.5, "attn_factor": 7.0},
            RopeScaling("yarn", 4.0, 8192, attention_factor=1.5),
        ),
    ],
)
def test_keys_of_other_makers_are_understood(tmp_path: Path, keys: dict, expected: RopeScaling) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", **scaling_keys(keys))
    assert read_model(path).scaling == expected


def test_the_old_name_of_the_linear_factor_is_understood(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__scale_linear=4.0)
    assert read_model(path).scaling == RopeScaling("linear", 4.0)
    path = write_tiny(tmp_path / "both.gguf", rope__scale_linear=4.0, rope__scaling__factor=2.0)
    assert read_model(path).scaling == RopeScaling("linear", 2.0)


def test_grok_s_ramp_begins_at_8_rotations_by_default(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "grok.gguf", "grok", **scaling_keys({"type": "yarn", "factor": 4.0}))
    assert read_model(path).scaling == RopeScaling("yarn", 4.0, 8192, beta_fast=8.0)


def test_a_type_that_came_after_ntk_counts(tiny: Path) -> None:
    extend(tiny, RopeScaling("ntk", 4.0))
    key = "llama.rope.scaling.type"
    change_keys(read_header(tiny), [key_value(key, ValueType.STRING, "linear")], [key])
    assert read_model(tiny).scaling.method == "linear"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"type": "yarn", "factor": 0.0}, "factor must be a number >= 1, got 0.0"),
        ({"type": "yarn", "factor": 4.0, "yarn_ext_factor": 0.5}, "yarn_ext_factor 0.5 has no meaning"),
        ({"type": "yarn", "factor": 4.0, "inv_freq": [1.0] * 31}, "inv_freq and the other keys disagree"),
    ],
)
def test_a_scaling_that_makes_no_sense_is_refused_when_it_is_asked_for(
    tmp_path: Path, keys: dict, message: str
) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", **scaling_keys(keys))
    with pytest.raises(RopeScalingError, match=message) as caught:
        read_model(path).scaling  # noqa: B018
    assert str(caught.value).startswith(f"{path}: ")


def test_attn_factor_alone_multiplies_the_temperature(tmp_path: Path) -> None:
    keys = {"type": "yarn", "factor": 4.0, "attn_factor": 0.5}
    path = write_tiny(tmp_path / "tiny.gguf", **scaling_keys(keys))
    assert read_model(path).scaling.temperature() == pytest.approx(0.5 * 1.1386294361119891)


def test_deepseek_s_log_multiplier_is_mscale_all_dim(tmp_path: Path) -> None:
    keys = {"rope__scaling__type": "yarn", "rope__scaling__factor": 40.0}
    path = write_tiny(
        tmp_path / "v2.gguf", "deepseek2", rope__scaling__yarn_log_multiplier=f32(0.0707), **keys
    )
    assert read_model(path).scaling.mscale_all_dim == pytest.approx(0.707)
    assert read_model(path).scaling.temperature() == 1


@pytest.mark.parametrize(
    ("arch", "stored", "mscale", "temperature"),
    [
        ("deepseek2", 0.0707, 0.707, 1.0),
        # (0.1 ln 40 + 1) / (0.0707 ln 40 + 1): llama.cpp takes mscale for 1 there
        ("deepseek32", 0.0707, 1.0, 1.3688879 / 1.2608038),
        ("mistral3", 0.707, 1.0, 1.3688879 / 1.2608038),
    ],
)
def test_a_log_multiplier_is_taken_as_each_loader_takes_it(
    tmp_path: Path, arch: str, stored: float, mscale: float, temperature: float
) -> None:
    keys = scaling_keys({"type": "yarn", "factor": 40.0, "yarn_log_multiplier": f32(stored)})
    scaling = read_model(write_tiny(tmp_path / "v2.gguf", arch, **keys)).scaling
    assert (scaling.mscale, scaling.mscale_all_dim) == pytest.approx((mscale, 0.707))
    assert scaling.temperature() == pytest.approx(temperature, rel=1e-6)


@pytest.mark.parametrize(
    ("arch", "own"), [("llama", 1.3688879), ("deepseek2", 1.0), ("mistral3", 1.3688879 / 1.2608038)]
)
def test_attn_factor_brings_an_unpatched_library_s_own_temperature_to_the_whole(
    arch: str, own: float
) -> None:
    """own: its temperature for factor 40 and the log multiplier (get_mscale in llama-context.cpp)."""
    scaling = RopeScaling("yarn", 40.0, 1024, mscale=1.0, mscale_all_dim=0.707)
    entries = gguf_write.scaling_keys(RotaryEmbedding(arch, 64, 1e5), scaling)
    keys, whole = {entry.key: entry.value for entry in entries}, 1.3688879 / 1.2608038
    assert keys[f"{arch}.rope.scaling.yarn_attn_factor"] == pytest.approx(whole, rel=1e-6)
    assert keys[f"{arch}.rope.scaling.attn_factor"] == pytest.approx(whole / own, rel=1e-6)


def test_where_the_temperature_comes_from_is_kept(tiny: Path) -> None:
    extend(tiny, RopeScaling("yarn", 4.0, mscale=0.75, mscale_all_dim=0.5))
    assert read_model(tiny).scaling == RopeScaling("yarn", 4.0, 8192, mscale=0.75, mscale_all_dim=0.5)
    extend(tiny, RopeScaling("yarn", 4.0))
    assert read_model(tiny).scaling == RopeScaling("yarn", 4.0, 8192)


def test_finetuned_goes_with_its_scaling(tiny: Path) -> None:
    extend(tiny, RopeScaling("yarn", 4.0), finetuned=True)
    assert rope_keys(tiny)["rope.scaling.finetuned"] is True
    extend(tiny, RopeScaling("yarn", 2.0))
    assert "rope.scaling.finetuned" not in rope_keys(tiny)


def test_phi_3_s_factors_are_read_from_their_tensors(tmp_path: Path) -> None:
    long, short = np.linspace(1, 32, 32, dtype=np.float32), np.linspace(1, 2, 32, dtype=np.float32)
    path = write_tiny(
        tmp_path / "phi3.gguf",
        "phi3",
        context_length=131072,
        rope__scaling__original_context_length=4096,
        rope__scaling__attn_factor=f32((1 + np.log(32) / np.log(4096)) ** 0.5),
        tensors={"rope_factors_long.weight": long, "rope_factors_short.weight": short},
    )
    expected = RopeScaling(
        "longrope", 32.0, 4096, short_factor=tuple(short.tolist()), long_factor=tuple(long.tolist())
    )
    assert read_model(path).scaling == expected
    assert read_model(path).usable_context == 131072


# ---- refusals --------------------------------------------------------------------------------


def assert_refused(
    path: Path, scaling: RopeScaling, message: str, kind: type = RopeScalingError, **kwargs
) -> None:
    """Assert that extend raises `kind`, and that neither the file nor its folder changes."""
    before = path.read_bytes(), path.stat().st_mtime_ns, sorted(path.parent.iterdir())
    with pytest.raises(kind, match=message):
        extend(path, scaling, **kwargs)
    assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(path.parent.iterdir())) == before


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (RopeScaling("explicit", 2.0, inv_freq=(1.0,)), "inv_freq must be 32 numbers"),
        (
            RopeScaling("longrope", 8.0, short_factor=(1.0,), long_factor=(1.0,) * 32),
            "short_factor must be 32",
        ),
        (
            RopeScaling("longrope", 8.0, short_factor=(1.0,) * 32, long_factor=(1.0,)),
            "long_factor must be 32",
        ),
        (RopeScaling("yarn", 1e6), "beyond 32 bits"),
        (RopeScaling("ntk", 1e38, 1), "beyond 32 bits"),
    ],
)
def test_what_gguf_cannot_say_is_refused(tiny: Path, scaling: RopeScaling, message: str) -> None:
    assert_refused(tiny, scaling, message)


@pytest.mark.parametrize("context", [0, -1])
def test_an_original_context_that_is_none_is_refused(tiny: Path, context: int) -> None:
    assert_refused(tiny, RopeScaling("yarn", 4.0), "whole number of tokens > 0", original_context=context)


def test_a_base_beyond_float32_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__freq_base=1e30)
    assert_refused(path, RopeScaling("ntk", 1e9, 1), r"takes llama\.rope\.freq_base beyond float32")


def test_contradicting_original_contexts_are_refused(tiny: Path) -> None:
    assert_refused(tiny, RopeScaling("yarn", 4.0, 4096), "4096", original_context=2048)


@pytest.mark.parametrize("arch", ["mamba", "rwkv7", "bert", "gpt2"])
def test_a_model_without_rope_is_refused(tmp_path: Path, arch: str) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", arch)
    assert_refused(path, RopeScaling("yarn", 4.0), f"{arch} models have no rotary embedding")


@pytest.mark.parametrize("keys", [{"rope__dimension_count": 0}, {"attention__head_count": None}])
def test_a_model_without_rotary_dimensions_is_refused(tmp_path: Path, keys: dict) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", **keys)
    assert_refused(path, RopeScaling("yarn", 4.0), "no rotary embedding")


def test_scaling_tied_to_a_log_multiplier_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "deepseek2", rope__scaling__yarn_log_multiplier=0.1)
    assert_refused(path, RopeScaling("yarn", 4.0), "yarn_log_multiplier")


def test_scaling_by_alpha_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__scaling__alpha=1000.0)
    assert_refused(path, RopeScaling("yarn", 4.0), r"llama\.rope\.scaling\.alpha = 1000\.0 already scales")


def test_llama_3_s_context_is_the_given_one_else_the_file_s_else_the_factor_s(tmp_path: Path) -> None:
    scaling = RopeScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    path = write_tiny(tmp_path / "tiny.gguf", context_length=8192)
    assert extend(path, scaling).context_length == 65536
    assert extend(path, scaling, context_length=131072).context_length == 131072
    assert extend(path, scaling).context_length == 131072


def test_longrope_s_tensors_beside_a_factor_are_refused(tmp_path: Path) -> None:
    """The library would scale twice."""
    tensors = {f"rope_factors_{name}.weight": np.full(32, 2, np.float32) for name in ("long", "short")}
    keys = scaling_keys({"factor": 4.0, "original_context_length": 2048})
    model = read_model(write_tiny(tmp_path / "tiny.gguf", "phi3", tensors=tensors, **keys))
    with pytest.raises(RopeScalingError, match=r"factor 4\.0 beside LongRoPE's lists scales a second time"):
        model.scaling  # noqa: B018


@pytest.mark.parametrize("arch", ["deepseek2", "deepseek32", "mistral3"])
def test_an_mscale_that_changes_the_attention_too_is_refused(tmp_path: Path, arch: str) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", arch)
    assert_refused(path, RopeScaling("yarn", 4.0, mscale_all_dim=0.7), "mscale_all_dim = 0.7 changes the")
    assert extend(path, RopeScaling("yarn", 4.0)).how == "copied"


def test_a_linear_factor_of_1_leaves_no_question_of_its_origin(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__scaling__type="linear", rope__scaling__factor=1.0)
    assert extend(path, RopeScaling("yarn", 4.0)).context_length == 32768


def test_linear_scaling_of_unknown_origin_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__scaling__type="linear", rope__scaling__factor=8.0)
    assert_refused(path, RopeScaling("yarn", 4.0), "give --original-context")
    assert extend(path, RopeScaling("yarn", 4.0), original_context=1024).context_length == 4096


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"context_length": None}, "context_length is missing or 0"),
        ({"context_length": 0}, "context_length is missing or 0"),
        ({"context_length": 8192.0}, "context_length is of type FLOAT32, and llama.cpp reads UINT32"),
        ({"rope__dimension_count": 31}, "dimension_count = 31"),
        ({"rope__dimension_count": 2**31}, "dimension_count = 2147483648"),
    ],
)
def test_unusable_keys_are_named(tmp_path: Path, keys: dict, message: str) -> None:
    assert_refused(write_tiny(tmp_path / "tiny.gguf", **keys), RopeScaling("yarn", 4.0), message, GGUFError)


@pytest.mark.parametrize("base", [0.0, 1.0, float("nan"), float("inf")])
def test_an_unusable_base_is_refused(tmp_path: Path, base: float) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__freq_base=base)
    assert_refused(path, RopeScaling("yarn", 4.0), r"llama\.rope\.freq_base")


def test_a_later_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m-00002-of-00003.gguf"
    write_split(path, 1)
    assert_refused(path, RopeScaling("yarn", 4.0), r"part 2 of 3 .*-00001-of-00003", GGUFError)


def write_split(path: Path, number: int) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {"context_length": 64, "embedding_length": 64, "attention.head_count": 1}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_the_first_part_of_a_split_model_keeps_its_name(tmp_path: Path) -> None:
    path, output = tmp_path / "m-00001-of-00003.gguf", tmp_path / "out.gguf"
    write_split(path, 0)
    assert_refused(path, RopeScaling("yarn", 4.0), "part 1 of 3 of a split model", GGUFError, output=output)
    assert extend(path, RopeScaling("yarn", 4.0)).context_length == 256


def test_an_existing_output_is_refused_unless_forced(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    output.write_bytes(b"precious")
    assert_refused(tiny, RopeScaling("yarn", 4.0), "use --force", GGUFError, output=output)
    assert output.read_bytes() == b"precious"
    extend(tiny, RopeScaling("yarn", 4.0), output=output, force=True)
    assert rope_keys(output)["context_length"] == 32768


def test_the_input_as_output_is_refused(tiny: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny)
    for output in (tiny, link):
        assert_refused(tiny, RopeScaling("yarn", 4.0), "use --in-place", GGUFError, output=output, force=True)


def test_a_broken_scaling_can_be_replaced(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__scaling__type="ntk", rope__scaling__factor=float("nan"))
    with pytest.raises(RopeScalingError, match=r"type 'ntk' .*\(keys llama\.rope\.scaling\.\*\).* extend"):
        _ = read_model(path).scaling
    assert extend(path, RopeScaling("yarn", 4.0)).context_length == 32768


def test_a_folder_that_is_missing_is_reported(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "missing" / "out.gguf"
    assert_refused(tiny, RopeScaling("yarn", 4.0), "there is no folder", GGUFError, output=output)
