"""The report on a file, its picture, and the description of an unpatched llama.cpp."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import write_tiny

from yarn_gguf.cli import main
from yarn_gguf.errors import RopeScalingError
from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.gguf.header import ValueType, key_value, read_header
from yarn_gguf.model_file.extend import extend
from yarn_gguf.model_file.inspect import Report, inspect_file
from yarn_gguf.model_file.plot import plot_report
from yarn_gguf.model_file.unpatched import unpatched_view
from yarn_gguf.rope.read import read_model
from yarn_gguf.rope.scaling import RopeScaling

AS_THE_FILE_SAYS = ["scales as the file says"]


def inspected(tmp_path: Path, scaling: RopeScaling, arch: str = "llama") -> Report:
    path = write_tiny(tmp_path / "tiny.gguf", arch)
    extend(path, scaling)
    return inspect_file(path)


def treatments(report: Report) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for each in report.dimensions:
        found.setdefault(each.treatment, []).append(each.index)
    return found


# ---- the report ------------------------------------------------------------------------------


def test_yarn_leaves_fast_dimensions_alone_and_interpolates_slow_ones(tmp_path: Path) -> None:
    report = inspected(tmp_path, RopeScaling("yarn", 4.0))
    # c(n) = d ln(L / (2 pi n)) / (2 ln b) with d = 64, b = 1e5, L = 8192: c(32) = 10.3, c(1) = 19.9
    assert treatments(report) == {
        "extrapolated": list(range(11)),
        "blended": list(range(11, 20)),
        "interpolated": list(range(20, 32)),
    }
    for each in report.dimensions:
        wavelength = 2 * math.pi * 100000 ** (2 * each.index / 64)
        assert each.wavelength == pytest.approx(wavelength)
        stretched = each.scaled_wavelength / wavelength
        assert 1 - 1e-9 <= stretched <= 4 + 1e-9
        assert (stretched == pytest.approx(4)) == (each.treatment == "interpolated")
        assert (stretched == pytest.approx(1)) == (each.treatment == "extrapolated")


def test_dynamic_scaling_is_reported_and_an_unpatched_library_scales_all(tmp_path: Path, capsys) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    extend(path, RopeScaling("yarn", 4.0), dynamic="growth")
    report = inspect_file(path)
    assert (report.dynamic.policy, report.dynamic.scaling.factor) == ("growth", 1.0)
    assert report.unpatched == (
        "scales every text by the whole factor: it ignores llama.rope.scaling.dynamic",
    )
    assert report.as_json()["dynamic"]["policy"] == "growth"
    main(["inspect", str(path)])
    assert "growth: the factor follows the text, from 1 on" in capsys.readouterr().out
    extend(path, RopeScaling("yarn", 4.0))
    assert inspect_file(path).dynamic is None


def test_an_unpatched_library_uses_ntk_s_base_for_every_text_and_for_olmo_3_s_windows(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "olmo2", attention__sliding_window=64)
    extend(path, RopeScaling("ntk", 4.0), dynamic="growth")
    assert inspect_file(path).unpatched == (
        "gives layers with a sliding window, which are not scaled, the larger base of NTK",
        "scales every text by the whole factor: it ignores olmo2.rope.scaling.dynamic",
    )


def test_a_llama_3_file_that_states_its_context_is_not_warned_of(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", context_length=131072)
    extend(path, RopeScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0))
    assert inspect_file(path).context_length == 131072
    assert inspect_file(path).warnings == ()


def test_contexts_and_temperature_are_reported(tmp_path: Path) -> None:
    report = inspected(tmp_path, RopeScaling("yarn", 4.0))
    assert (report.original_context, report.context_length, report.usable_context) == (8192, 32768, 32768)
    assert report.temperature == pytest.approx(0.1 * math.log(4) + 1)
    assert report.problem is None


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (RopeScaling(), {"extrapolated": 32}),
        (RopeScaling("linear", 4.0), {"interpolated": 32}),
        (RopeScaling("ntk", 4.0), {"extrapolated": 1, "blended": 30, "interpolated": 1}),
    ],
)
def test_other_methods_treat_dimensions_their_way(
    tmp_path: Path, scaling: RopeScaling, expected: dict
) -> None:
    found = treatments(inspected(tmp_path, scaling))
    assert {treatment: len(indices) for treatment, indices in found.items()} == expected


def test_llama_3_s_rope_freqs_count_as_scaling(tmp_path: Path) -> None:
    factors = np.repeat(np.array([1, 3, 8], np.float32), [20, 4, 8])
    path = write_tiny(tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": factors})
    report = inspect_file(path)
    assert [each.scaled_wavelength / each.wavelength for each in report.dimensions] == pytest.approx(
        factors.tolist()
    )
    assert {key: len(found) for key, found in treatments(report).items()} == {
        "extrapolated": 20,
        "blended": 4,
        "interpolated": 8,
    }


@pytest.mark.parametrize("factor", [float("nan"), -4.0, 0.5, float("inf")])
def test_an_unsound_scaling_is_reported_rather_than_raised(tmp_path: Path, factor: float) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__scaling__type="yarn", rope__scaling__factor=factor)
    report = inspect_file(path)
    assert "factor must be a number >= 1" in report.problem
    assert str(path) in report.problem
    assert (report.scaling, report.temperature, report.usable_context, report.dimensions) == (
        None,
        None,
        None,
        (),
    )


def test_rope_freqs_of_a_wrong_length_are_reported(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": np.ones(31, np.float32)})
    assert "must hold 32 numbers" in inspect_file(path).problem


# ---- a llama.cpp without our patches ---------------------------------------------------------


def seen(tmp_path: Path, arch: str = "llama", **keys: Any) -> list[str]:
    scaling = {f"rope__scaling__{key}": value for key, value in keys.items()}
    return unpatched_view(read_model(write_tiny(tmp_path / "tiny.gguf", arch, **scaling)))


@pytest.mark.parametrize("method", ["none", "linear", "ntk", "by-parts", "yarn"])
def test_what_extend_writes_by_default_is_understood_unpatched(tmp_path: Path, method: str) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    extend(path, RopeScaling(method, 4.0))
    assert unpatched_view(read_model(path)) == AS_THE_FILE_SAYS


def test_a_temperature_of_ours_is_understood_unpatched(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    extend(path, RopeScaling("yarn", 4.0, attention_factor=1.7))
    assert unpatched_view(read_model(path)) == AS_THE_FILE_SAYS


def test_a_temperature_of_the_converter_is_ignored_unpatched(tmp_path: Path) -> None:
    (line,) = seen(tmp_path, type="yarn", factor=4.0, yarn_attn_factor=1.7)
    assert line == "uses the temperature 1.13863: it ignores llama.rope.scaling.yarn_attn_factor = 1.7"


@pytest.mark.parametrize(("arch", "count"), [("llama", 2), ("mistral3", 0), ("grok", 0)])
def test_other_betas_are_ignored_unpatched_but_by_two_architectures(
    tmp_path: Path, arch: str, count: int
) -> None:
    lines = seen(tmp_path, arch, type="yarn", factor=4.0, yarn_beta_fast=8.0, yarn_beta_slow=2.0)
    assert [line for line in lines if "ignores" in line] == [
        f"uses 32: it ignores {arch}.rope.scaling.yarn_beta_fast = 8",
        f"uses 1: it ignores {arch}.rope.scaling.yarn_beta_slow = 2",
    ][:count]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"type": "ntk"}, "ends the whole process: .* llama.rope.scaling.type = 'ntk'"),
        ({"type": "yarn", "factor": float("nan")}, "nonsense: llama.rope.scaling.factor = nan"),
        ({"factor": -2.0}, "nonsense: llama.rope.scaling.factor = -2"),
        ({"type": "yarn", "factor": 0.0}, "takes llama.rope.scaling.factor = 0 for no scaling"),
        ({"original_context_length": 0}, "original_context_length = 0 for 8192"),
    ],
)
def test_what_an_unpatched_library_does_with_bad_keys_is_said(tmp_path: Path, keys: dict, line: str) -> None:
    (found,) = seen(tmp_path, **keys)
    assert re.search(line, found)


# ---- the picture -----------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [RopeScaling(), RopeScaling("yarn", 4.0)])
def test_a_plot_is_a_png_of_some_size(tmp_path: Path, scaling: RopeScaling) -> None:
    output = tmp_path / "plot.png"
    plot_report(inspected(tmp_path, scaling), output)
    assert output.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert output.stat().st_size > 10_000


def test_an_unsound_scaling_cannot_be_plotted(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__scaling__type="ntk")
    with pytest.raises(RopeScalingError, match=r"nothing to plot: .*'ntk'"):
        plot_report(inspect_file(path), tmp_path / "plot.png")


@pytest.mark.parametrize(
    ("arch", "warning"),
    [
        ("llama", None),
        ("qwen2", "llama.cpp refuses a file with the tensor rope_freqs.weight"),
        ("llada", "llama.cpp ignores the tensor rope_freqs.weight"),
    ],
)
def test_a_tensor_of_rope_factors_that_has_no_effect_is_warned_of(
    tmp_path: Path, arch: str, warning: str | None
) -> None:
    tensors = {"rope_freqs.weight": np.ones(32, np.float32)}
    report = inspect_file(write_tiny(tmp_path / "a.gguf", arch, tensors=tensors))
    assert len(report.warnings) == (warning is not None)
    assert all(line.startswith(warning) for line in report.warnings)


@pytest.mark.parametrize("type_", [None, "linear", "none"])
@pytest.mark.parametrize("name", ["yarn_beta_fast", "yarn_beta_slow", "yarn_attn_factor", "yarn_ext_factor"])
def test_a_parameter_of_yarn_without_yarn_is_warned_of(tmp_path: Path, name: str, type_: str | None) -> None:
    keys = {"factor": 4.0, "original_context_length": 2048, name: 1.0} | ({"type": type_} if type_ else {})
    keys |= {"factor": 1.0} if type_ == "none" else {}
    path = write_tiny(tmp_path / "a.gguf", **{f"rope__scaling__{k}": v for k, v in keys.items()})
    (line,) = inspect_file(path).warnings
    found = repr(type_) if type_ else "missing"
    prefix = "llama.rope.scaling."
    assert line.startswith(f"{prefix}{name} has no effect, since {prefix}type is {found};")
    extend(path, RopeScaling("yarn", 4.0))
    assert inspect_file(path).warnings == ()


@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        (
            {"original_context_length": None},
            "original_context_length is missing: llama.context_length = 8192",
        ),
        (
            {"original_context_length": 4096},
            "llama.context_length = 8192, but factor x original context = 16384",
        ),
        ({"original_context_length": 2048}, None),
    ],
    ids=["missing", "contradicting", "sound"],
)
def test_keys_that_are_missing_or_disagree_are_warned_of(
    tmp_path: Path, keys: dict, warning: str | None
) -> None:
    scaling = {"type": "yarn", "factor": 4.0} | {name: value for name, value in keys.items() if value}
    report = inspect_file(
        write_tiny(tmp_path / "a.gguf", **{f"rope__scaling__{k}": v for k, v in scaling.items()})
    )
    assert len(report.warnings) == (warning is not None)
    assert all(warning in line for line in report.warnings)


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("by-parts", 4.0),
        RopeScaling("llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0),
    ],
    ids=["by-parts", "llama3"],
)
def test_a_ramp_without_an_original_context_is_warned_of(tmp_path: Path, scaling: RopeScaling) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    extend(path, scaling)
    key = "llama.rope.scaling.original_context_length"
    # llama3's table depends on the original context, so context_length has to state that
    context = key_value("llama.context_length", ValueType.UINT32, 8192)
    change_keys(read_header(path), [context], [key, context.key])
    (line,) = inspect_file(path).warnings
    assert line.startswith(f"{key} is missing")


def test_a_context_beyond_what_the_scaling_gives_is_warned_of(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    extend(path, RopeScaling("linear", 4.0))
    key = "llama.context_length"
    change_keys(read_header(path), [key_value(key, ValueType.UINT32, 65536)], [key])
    (line,) = inspect_file(path).warnings
    assert line.startswith(f"{key} = 65536, but factor x original context = 32768")


def test_a_file_that_lost_its_longrope_is_warned_of_and_gets_it_back(tmp_path: Path) -> None:
    """Converters wrote Phi-3's original context, and then did not find the factors in rope_parameters."""
    keys = {"context_length": 131072, "rope__scaling__original_context_length": 4096}
    path = write_tiny(tmp_path / "a.gguf", "phi3", rope__freq_base=10000.0, **keys)
    (line,) = inspect_file(path).warnings
    assert line.startswith("phi3.context_length = 131072 is beyond the original context of 4096, and the")
    factors = {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    parameters = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    config = {"model_type": "phi3", "hidden_size": 576, "num_attention_heads": 9}
    config |= {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_parameters": parameters}))
    assert main(["extend", str(path), "--in-place", "--from-hf", str(tmp_path)]) == 0
    assert inspect_file(path).warnings == ()
    assert {"rope_factors_short.weight", "rope_factors_long.weight"} <= read_header(path).tensors.keys()


@pytest.mark.parametrize(
    ("arch", "is_warned_of"), [("muse-glimmer", True), ("cohere2", False), ("gemma3", False)]
)
def test_a_scaling_that_reaches_no_layer_is_warned_of(
    tmp_path: Path, capsys, arch: str, is_warned_of: bool
) -> None:
    """tests/rope/test_layers.py compares with the sources which layers are rotated and scaled."""
    path = write_tiny(tmp_path / "a.gguf", arch, block_count=12, attention__sliding_window=64)
    assert main(["extend", str(path), "--in-place", "--factor", "4"]) == 0
    lines = inspect_file(path).warnings
    assert len(lines) == is_warned_of
    assert all(line.startswith("yarn scaling has no effect: a muse-glimmer model") for line in lines)
    assert ("warning: yarn scaling has no effect" in capsys.readouterr().out) == is_warned_of


def test_a_file_of_llama_3_1_from_before_its_tensor_gets_it(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "a.gguf", context_length=131072, rope__freq_base=500000.0)
    blend = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    section = {"rope_type": "llama3", "original_max_position_embeddings": 8192, **blend}
    config = {"model_type": "llama", "hidden_size": 576, "num_attention_heads": 9, "rope_theta": 500000.0}
    config |= {"max_position_embeddings": 131072, "rope_scaling": section}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["extend", str(path), "--in-place", "--from-hf", str(tmp_path)]) == 0
    assert "rope_freqs.weight" in read_header(path).tensors
    model = read_model(path)
    assert (model.scaling.method, model.context_length, model.original_context) == ("llama3", 131072, 8192)


@pytest.mark.parametrize(
    ("context", "base", "is_warned_of"), [(32768, None, True), (8192, None, False), (32768, 1e6, False)]
)
def test_a_long_context_without_a_base_is_warned_of(
    tmp_path: Path, context: int, base: float | None, is_warned_of: bool
) -> None:
    """Qwen 1.5 was published so. 10000 is then computed with, and the checkpoint has 1000000."""
    path = write_tiny(tmp_path / "a.gguf", "qwen2", context_length=context, rope__freq_base=base)
    lines = inspect_file(path).warnings
    assert len(lines) == is_warned_of
    assert all(line.startswith("qwen2.rope.freq_base is missing: 10000 is taken") for line in lines)


def test_longrope_s_tensors_are_warned_of_where_the_architecture_has_none(tmp_path: Path) -> None:
    tensors = {f"rope_factors_{name}.weight": np.ones(32, np.float32) for name in ("long", "short")}
    (line,) = inspect_file(write_tiny(tmp_path / "a.gguf", "qwen2", tensors=tensors)).warnings
    assert line.startswith("llama.cpp refuses a file with the tensor rope_factors_long.weight")


@pytest.mark.parametrize(
    ("scaling", "line"),
    [
        (
            RopeScaling("yarn", 4.0, truncate=False),
            "scales by type 'yarn': it ignores qwen2.rope.scaling.inv_freq",
        ),
        (
            RopeScaling("longrope", 4.0, short_factor=(1.0,) * 32, long_factor=(2.0,) * 32),
            "does not scale: it ignores qwen2.rope.scaling.short_factor and long_factor",
        ),
    ],
    ids=["table", "lists"],
)
def test_frequencies_of_our_own_keys_are_ignored_unpatched(
    tmp_path: Path, scaling: RopeScaling, line: str
) -> None:
    assert line in inspected(tmp_path, scaling, "qwen2").unpatched


def test_a_negative_factor_of_no_scaling_has_no_effect_unpatched(tmp_path: Path) -> None:
    assert seen(tmp_path, type="none", factor=-2.0) == AS_THE_FILE_SAYS
