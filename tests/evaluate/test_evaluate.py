"""Evaluation: losses against transformers, switching scalings on one model, results that survive."""

from __future__ import annotations

import argparse
import csv
import errno
import hashlib
import json
import math
import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from libraries import PROSE

from yarn_gguf import DynamicScaling, Llama, RopeScaling, RopeScalingError, YarnGGUFError
from yarn_gguf.cli import main
from yarn_gguf.cli.evaluate.perplexity import _quarters
from yarn_gguf.cli.options import evaluation as common
from yarn_gguf.disk.fingerprint import digest, fingerprint
from yarn_gguf.evaluate.compare import Cell, compare_losses, compare_passkey, compare_windows
from yarn_gguf.evaluate.passkey import Style
from yarn_gguf.evaluate.reading import losses as perplexity
from yarn_gguf.evaluate.reading.cross_entropy import cross_entropy
from yarn_gguf.evaluate.reading.documents import Document, read_documents, read_pieces
from yarn_gguf.evaluate.reading.loglikelihood import Scorer
from yarn_gguf.evaluate.reading.losses import token_losses, window_ends, window_losses
from yarn_gguf.evaluate.results import Results, model_key
from yarn_gguf.evaluate.statistics.positions import position_ranges
from yarn_gguf.rope.names import Variant, parse_variant


@pytest.fixture(scope="module")
def exact_llama(smollm2_f32):
    with closing(Llama(smollm2_f32, n_ctx=512, type_k=0, type_v=0, verbose=False)) as llama:
        yield llama


@pytest.fixture(scope="module")
def fast_llama(smollm2_q8):
    with closing(Llama(smollm2_q8, n_ctx=512, n_batch=128, flash_attn=True, verbose=False)) as llama:
        yield llama


def torch_losses(smollm2_torch, tokens: list[int], **rope) -> np.ndarray:
    logits = smollm2_torch(tokens, **rope)
    losses = []
    for row, target in zip(logits, tokens[1:], strict=False):  # the last row predicts what is not there
        losses.append(np.logaddexp.reduce(row.astype(np.float64)) - row[target])
    return np.array(losses)


# ---- losses ----------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "rope_theta": 100000.0}


@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
def test_losses_of_one_pass_are_those_of_transformers(
    exact_llama, smollm2_torch, prose_tokens, factor
) -> None:
    tokens = prose_tokens[:400]
    exact_llama.set_rope_scaling(RopeScaling("yarn", factor) if factor > 1 else "none")
    theirs = torch_losses(smollm2_torch, tokens, **(YARN | {"factor": factor} if factor > 1 else {}))
    np.testing.assert_allclose(token_losses(exact_llama, tokens), theirs, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
def test_perplexity_beyond_the_trained_context_is_that_of_transformers(
    smollm2_f32, smollm2_torch, prose_tokens, factor
) -> None:
    """In each range of 2048 positions, to 1e-3; the trained context is 8192."""
    tokens, edges = prose_tokens[:10240], range(0, 10241, 2048)
    theirs = torch_losses(smollm2_torch, tokens, **(YARN | {"factor": factor} if factor > 1 else {}))
    scaling = RopeScaling("yarn", factor) if factor > 1 else "none"
    with closing(
        Llama(smollm2_f32, n_ctx=10240, type_k=0, type_v=0, rope_scaling=scaling, verbose=False)
    ) as llama:
        ours = token_losses(llama, tokens)
    found, expected = (
        [each.perplexity for each in position_ranges([losses], edges)] for losses in (ours, theirs)
    )
    print(f"x{factor:g}: {found} against {expected}")
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_loss_of_logits_is_that_in_float64_however_large_they_are(threads: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 100)).astype(np.float32) * np.float32([[1], [1000]] * 20)
    targets = rng.integers(0, 100, 40)
    wide = logits.astype(np.float64)
    expected = np.logaddexp.reduce(wide, axis=1) - wide[np.arange(40), targets]
    np.testing.assert_allclose(cross_entropy(logits, targets, threads), expected, rtol=1e-6, atol=1e-6)


def test_losses_take_the_memory_of_one_batch_of_logits(fast_llama, prose_tokens) -> None:
    """Of 128 tokens; those of all 512 would be four times that."""
    token_losses(fast_llama, prose_tokens[:128])
    tracemalloc.start()
    token_losses(fast_llama, prose_tokens[:512])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2 * 128 * fast_llama.n_vocab() * 4


@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("parallel", [1, 3])
def test_losses_by_windows_are_those_of_transformers(
    exact_llama, smollm2_torch, prose_tokens, parallel, factor
) -> None:
    """Windows of 128 tokens by strides of 32, over 250 tokens: the last 26 are no whole stride."""
    tokens, theirs_of = prose_tokens[:250], YARN | {"factor": factor} if factor > 1 else {}
    exact_llama.set_rope_scaling(RopeScaling("yarn", factor) if factor > 1 else "none")
    got = window_losses(exact_llama, tokens, 128, window_ends(250, 128, 32), parallel)
    ends = (128, 160, 192, 224)
    theirs = [torch_losses(smollm2_torch, tokens[end - 128 : end], **theirs_of) for end in ends]
    theirs[1:] = [each[-32:] for each in theirs[1:]]
    np.testing.assert_allclose(got, np.concatenate(theirs), atol=2e-3)


def test_a_window_as_long_as_the_text_is_one_pass(fast_llama, prose_tokens) -> None:
    fast_llama.set_rope_scaling(RopeScaling("yarn", 4.0))
    tokens = prose_tokens[:256]
    assert np.array_equal(
        window_losses(fast_llama, tokens, 256, window_ends(256, 256, 64)), token_losses(fast_llama, tokens)
    )


@pytest.mark.parametrize("policy", ["growth", "request"])
def test_a_window_under_dynamic_scaling_has_the_s_of_its_policy(
    smollm2_q8, fast_llama, prose_tokens, policy: str
) -> None:
    """By growth the last of it has another s than the first; by request all of it has that of its length."""
    tokens, scaling = (
        prose_tokens[:250],
        DynamicScaling.of("yarn", policy=policy, original_max_position_embeddings=64),
    )
    fast_llama.set_rope_scaling(scaling)
    found = window_losses(fast_llama, tokens, 250, window_ends(250, 250, 64))
    with closing(Llama(smollm2_q8, rope_scaling=scaling, n_ctx=250, n_batch=128, verbose=False)) as alone:
        np.testing.assert_allclose(found, token_losses(alone, tokens), atol=2e-2)
        alone.set_rope_scaling(RopeScaling("yarn", 250 / 64, original_max_position_embeddings=64))
        is_static = np.allclose(found, token_losses(alone, tokens), atol=2e-2)
    assert is_static is (policy == "request")


def test_every_window_of_a_model_with_a_first_token_begins_with_it(
    fast_llama, prose_tokens, monkeypatch
) -> None:
    monkeypatch.setattr(fast_llama._model, "add_bos_token", lambda: True)
    bos = fast_llama.token_bos()
    tokens = [bos, *prose_tokens[:150]]
    got = window_losses(fast_llama, tokens, 128, window_ends(151, 128, 16))
    expected = token_losses(fast_llama, [bos, *tokens[17:144]])[-16:]
    np.testing.assert_allclose(got[127:], expected, atol=2e-3)


def test_windows_leave_the_model_s_own_cache_alone(fast_llama, prose_tokens) -> None:
    token_losses(fast_llama, prose_tokens[:64])
    window_losses(fast_llama, prose_tokens[:64], 32, window_ends(64, 32, 16))
    assert fast_llama.n_tokens == 64


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (64, 0), (128, 32)])
def test_windows_that_do_not_fit_are_refused(window: int, stride: int) -> None:
    with pytest.raises(YarnGGUFError, match=f"window of {window} tokens by strides of {stride}"):
        window_ends(100, window, stride)


# ---- one model, many scalings ----------------------------------------------------------------


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("yarn", 4.0),
        RopeScaling("linear", 2.0),
        RopeScaling("ntk", 2.0),
        RopeScaling("yarn", 2.0, ramp="rotations"),
        DynamicScaling.of("yarn", original_max_position_embeddings=64),
        "none",
    ],
    ids=str,
)
def test_a_scaling_set_later_is_that_of_a_new_model(exact_llama, smollm2_f32, prose_tokens, scaling) -> None:
    tokens = prose_tokens[:200]
    with closing(
        Llama(smollm2_f32, n_ctx=512, type_k=0, type_v=0, verbose=False, rope_scaling=scaling)
    ) as new:
        expected = token_losses(new, tokens)
    exact_llama.set_rope_scaling(RopeScaling("linear", 8.0))
    exact_llama.set_rope_scaling(scaling)
    assert exact_llama.n_tokens == 0
    np.testing.assert_allclose(token_losses(exact_llama, tokens), expected, atol=2e-3)


def test_a_refused_scaling_leaves_the_last_one(fast_llama, prose_tokens) -> None:
    fast_llama.set_rope_scaling("yarn")
    before = token_losses(fast_llama, prose_tokens[:64])
    with pytest.raises(RopeScalingError, match="inv_freq"):
        fast_llama.set_rope_scaling(RopeScaling("explicit", inv_freq=(1.0,)))
    assert fast_llama.rope_scaling.method == "yarn"
    assert np.array_equal(token_losses(fast_llama, prose_tokens[:64]), before)


@pytest.mark.parametrize(
    ("text", "scaling"),
    [
        ("none", RopeScaling()),
        ("file", None),
        ("yarn", RopeScaling("yarn", 3.0)),
        ("ntk:1", RopeScaling()),
        ("yarn:1,attention_factor=1.5", RopeScaling("yarn", 1.0, attention_factor=1.5)),
        ("yarn:4", RopeScaling("yarn", 4.0)),
        ("yarn,factor=2", RopeScaling("yarn", 2.0)),
        ("by-parts:2,ramp=rotations", RopeScaling("by-parts", 2.0, ramp="rotations")),
        (
            "yarn:2,attention_factor=1.5,truncate=false",
            RopeScaling("yarn", 2.0, attention_factor=1.5, truncate=False),
        ),
        ("dynamic-yarn", DynamicScaling.of("yarn")),
        ("dynamic-linear,policy=request", DynamicScaling.of("linear", policy="request")),
    ],
)
def test_scalings_have_short_names(text: str, scaling) -> None:
    assert parse_variant(text, 3.0) == Variant(text, scaling)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jarn:2", "method must be one of"),
        ("yarn:two", "a number is expected after the colon, got 'two'"),
        ("yarn:0.5", "factor must be a number >= 1"),
        ("yarn:2,beta", "NAME=VALUE is expected after the comma, got 'beta'"),
        ("yarn:2,beta_fats=3", "'beta_fats' is none of"),
        ("dynamic-yarn:2", "a dynamic factor follows the text"),
        ("yarn:2,factor=4", "the factor is given twice"),
    ],
)
def test_a_bad_name_of_a_scaling_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(RopeScalingError, match=message):
        parse_variant(text, 3.0)


def test_a_scaling_without_a_factor_has_that_of_each_window_and_length(
    smollm2_q8, tmp_path: Path, monkeypatch
) -> None:
    path, asked = tmp_path / "short.gguf", []
    short = ["--method", "yarn", "--factor", "64", "--original-context", "128"]
    assert main(["extend", str(smollm2_q8), "-o", str(path), *short]) == 0

    def windows(llama, variants, documents, *_, window: int, **__) -> dict:
        asked.append((window, variants[0].scaling.factor))
        return {"yarn": [np.ones(599)]}

    def passkey(llama, variants, length: int, *_) -> list[Cell]:
        asked.append((length, variants[0].scaling.factor))
        return [Cell("yarn", length, 0.0, 1, 1)]

    monkeypatch.setattr("yarn_gguf.evaluate.compare.compare_windows", windows)
    monkeypatch.setattr("yarn_gguf.evaluate.compare.compare_passkey", passkey)
    read = ["eval", "perplexity", str(path), "-f", str(PROSE), "-c", "600", "--windows", "512", "320"]
    assert main([*read, "--scaling", "yarn"]) == 0
    assert main(["eval", "passkey", str(path), "--lengths", "256", "384", "--scaling", "yarn"]) == 0
    assert asked == [(512, 4.0), (320, 2.5), (256, 2.0), (384, 3.0)]


def test_windows_are_as_asked_for_and_all_that_they_give_counts(smollm2_q8, tmp_path, monkeypatch) -> None:
    asked, losses = [], np.linspace(3, 4, 599)

    def windows(llama, variants, documents, *_, **settings) -> dict:
        asked.append(settings)
        return {"file": [losses]}

    monkeypatch.setattr("yarn_gguf.evaluate.compare.compare_windows", windows)
    options = ["-c", "600", "--windows", "256", "--stride", "64", "--parallel", "3"]
    out = tmp_path / "a.json"
    assert main(["eval", "perplexity", str(smollm2_q8), "-f", str(PROSE), *options, "--json", str(out)]) == 0
    assert asked == [{"window": 256, "stride": 64, "parallel": 3}]
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["window"], row["stop"]) == ("256", 599)
    assert row["loss"] == pytest.approx(3.5)


# ---- results that are kept -------------------------------------------------------------------


def test_what_was_measured_is_not_measured_again(fast_llama, prose_tokens, tmp_path, monkeypatch) -> None:
    variants = [Variant("a", RopeScaling()), Variant("b", RopeScaling("yarn", 2.0))]
    documents = [Document(str(i), np.array(prose_tokens[i : i + 40], np.int32)) for i in range(2)]
    results, label = Results(tmp_path / "new" / "folder"), lambda name: lambda done, total: None
    whole = compare_losses(fast_llama, variants, documents, Results(None), label)
    calls = []

    def interrupted(llama, tokens, progress):
        calls.append(tokens)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return perplexity.token_losses(llama, tokens, progress)

    monkeypatch.setattr("yarn_gguf.evaluate.compare.token_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare_losses(fast_llama, variants, documents, results, label)
    resumed = compare_losses(fast_llama, variants, documents, results, label)
    assert len(calls) == 5  # two measured, one interrupted, the other two
    for name, losses in whole.items():
        np.testing.assert_allclose(resumed[name], losses, atol=1e-6)
    assert compare_losses(fast_llama, variants, documents, results, label).keys() == whole.keys()
    assert len(calls) == 5


@pytest.mark.parametrize("parallel", [1, 3])
def test_windows_are_kept_some_at_a_time(
    fast_llama, prose_tokens, tmp_path, monkeypatch, parallel: int
) -> None:
    """An interrupted run goes on within a text, and gives the same numbers as one that was not."""
    monkeypatch.setattr("yarn_gguf.evaluate.compare._WINDOWS_KEPT", 3)
    documents = [Document("a", np.array(prose_tokens[:200], np.int32))]
    label = lambda name: lambda done, total: None  # noqa: E731
    groups = []

    def interrupted(*arguments) -> np.ndarray:
        groups.append(len(arguments[3]))
        if len(groups) == 2:
            raise KeyboardInterrupt
        return window_losses(*arguments)

    def compared(results: Results) -> np.ndarray:
        arguments = (fast_llama, [Variant("a", RopeScaling("yarn", 2.0))], documents, results, label)
        return compare_windows(*arguments, window=64, stride=16, parallel=parallel)["a"][0]

    monkeypatch.setattr("yarn_gguf.evaluate.compare.window_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compared(Results(tmp_path))
    resumed = compared(Results(tmp_path))
    assert groups == [3] * 4  # the first, the interrupted one, and the two that were left
    ends = window_ends(200, 64, 16)
    np.testing.assert_allclose(
        resumed, window_losses(fast_llama, prose_tokens[:200], 64, ends, parallel), atol=1e-6
    )


def test_a_measurement_is_known_by_all_that_it_depends_on(fast_llama, prose_tokens, tmp_path) -> None:
    """Each change of one of them is measured anew."""
    label, results = lambda name: lambda done, total: None, Results(tmp_path)
    texts = [[Document("a", np.array(prose_tokens[i : i + 80], np.int32))] for i in (0, 1)]
    variants = [[Variant("a", RopeScaling("yarn", factor))] for factor in (2.0, 3.0)]

    def windows(text=texts[0], variant=variants[0], **settings) -> None:
        given = {"window": 64, "stride": 8} | settings
        compare_windows(fast_llama, variant, text, results, label, **given)

    def losses(text=texts[0], variant=variants[0]) -> None:
        compare_losses(fast_llama, variant, text, results, label)

    def keys(variant=variants[0], length=300, style=Style(), seed=0) -> None:  # noqa: B008
        compare_passkey(fast_llama, variant, length, [0.5], 1, style, seed, results, label)

    measure = [
        windows,
        lambda: windows(texts[1]),
        lambda: windows(variant=variants[1]),
        lambda: windows(window=32),
        lambda: windows(stride=4),
        lambda: windows(parallel=2),
        losses,
        lambda: losses(texts[1]),
        lambda: losses(variant=variants[1]),
        keys,
        lambda: keys(variants[1]),
        lambda: keys(length=400),
        lambda: keys(style=Style(keys=2)),
        lambda: keys(style=Style(chat=True)),
        lambda: keys(seed=1),
    ]
    for count, each in enumerate(measure, 1):
        each()
        each()
        assert len(list(tmp_path.iterdir())) == count


def test_a_damaged_result_says_what_to_do(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.get({"kind": "x"}, lambda: [1, 2]) == [1, 2]
    assert results.get({"kind": "x"}, lambda: 1 / 0) == [1, 2]
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(YarnGGUFError, match=r"is damaged .* delete it, and it is measured again"):
        results.get({"kind": "x"}, lambda: 0)


def test_a_fingerprint_tells_files_apart(tmp_path: Path) -> None:
    data = bytearray(np.random.default_rng(0).bytes(1 << 20))
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(data)
    found = {fingerprint(one)}
    digests = {digest(one)}
    for at in (0, len(data) // 2, len(data) - 1):
        changed = data.copy()
        changed[at] ^= 1
        other.write_bytes(changed)
        found.add(fingerprint(other))
        digests.add(digest(other))
    other.write_bytes(data + b"\0")
    found.add(fingerprint(other))
    assert len(found) == 5 and len(digests) == 4
    other.write_bytes(data)
    assert fingerprint(other) == fingerprint(one)
    assert digest(other) == digest(one) == hashlib.sha256(data).hexdigest()


# ---- texts and the command line --------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty: give a text"),
        (b" \n", "is empty: give a text"),
        (b"caf\xe9", r"is no UTF-8 text \(byte 3\)"),
        (b"too short", r"has \d tokens, and 500 are wanted: give a longer text, or a smaller --context"),
    ],
)
def test_a_bad_text_is_refused(smollm2_path, tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(YarnGGUFError, match=f"{path} {message}"):
        read_documents(smollm2_path, [path], 500)


def test_a_text_that_is_there_twice_is_refused(smollm2_path, tmp_path: Path) -> None:
    again = tmp_path / "again.txt"
    again.write_text(PROSE.read_text() + "and a little more")
    with pytest.raises(YarnGGUFError, match=f"{PROSE.stem} and again: the same 300 tokens"):
        read_documents(smollm2_path, [PROSE, again], 300)
    with pytest.raises(YarnGGUFError, match="the same 300 tokens"):
        read_pieces(smollm2_path, [PROSE, again], 300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scaling", "none", "yarn:2", "none"], "--scaling: none is there 2 times"),
        (["--edges", "0", "100", "--windows", "64"], "--edges divide the positions of one pass"),
        (["--windows", "300", "301"], "a window of 301 tokens by strides of 256 does not fit a text of 300"),
        (["--json", "no/such/a.json"], "no/such/a.json: there is no folder no/such that can be written to"),
        (["--json", str(PROSE.parent)], f"{PROSE.parent} is there and no plain file: name another"),
        (["--plot", "/dev/null"], "/dev/null is there and no plain file: name another"),
        (["--csv", str(PROSE)], f"{PROSE} is what is to be read: name another file to write to"),
        (["--plot", "a.foo"], "a.foo: '.foo' is no kind of picture"),
        (["--json", "a.x", "--csv", "a.x"], "a.x is there 2 times"),
        (["--results", str(PROSE)], f"--results {PROSE}: File exists: name a folder"),
        (["--scaling", "none", "dynamic-yarn,policy=exact"], "or a K cache of type f32"),
        (["--scaling", "none", "dynamic-yarn,policy=exact", "--windows", "280"], "or a K cache of type f32"),
    ],
)
def test_what_cannot_be_done_in_the_end_is_refused_before_anything_is_read(
    smollm2_path, arguments: list[str], message: str, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("yarn_gguf.evaluate.compare.token_losses", lambda *_: pytest.fail("it was read"))
    monkeypatch.setattr("yarn_gguf.evaluate.compare.window_losses", lambda *_: pytest.fail("it was read"))
    assert main(["eval", "perplexity", str(smollm2_path), "-f", str(PROSE), "-c", "300", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_results_that_cannot_be_written_leave_the_old_ones(
    smollm2_q8, tmp_path: Path, monkeypatch, capsys
) -> None:
    out = tmp_path / "a.json"
    arguments = ["eval", "perplexity", str(smollm2_q8), "-f", str(PROSE), "-c", "64", "--json", str(out)]
    assert main(arguments) == 0
    before = out.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("yarn_gguf.disk.replace.os.fsync", full)
    assert main(arguments) == 1
    assert f"{out}: cannot be written (No space left on device)" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [out] and out.read_bytes() == before


def test_the_loss_of_a_single_position_has_no_interval(smollm2_q8, tmp_path: Path, capsys) -> None:
    out, again = tmp_path / "a.json", tmp_path / "page.html"
    arguments = ["eval", "perplexity", str(smollm2_q8), "-f", str(PROSE), "--scaling", "none", "yarn:2"]
    assert main([*arguments, "-c", "2", "--json", str(out), "--plot", str(tmp_path / "a.png")]) == 0
    assert "nan" not in capsys.readouterr().out
    assert json.loads(out.read_text(), parse_constant=pytest.fail)["rows"][0]["low"] is None
    assert main(["eval", "report", str(out), "-o", str(again)]) == 0
    assert "nan" not in again.read_text().partition("<table")[2]
    with pytest.raises(SystemExit):
        main([*arguments, "-c", "1"])
    assert "must be 2 or more" in capsys.readouterr().err


def test_a_model_is_loaded_as_asked_for(smollm2_q8) -> None:
    parser = argparse.ArgumentParser()
    common.configure(parser)
    options = ["-t", "1", "--cache-type", "f32", "--no-flash-attn", "-ngl", "3"]
    with common.loaded(parser.parse_args([str(smollm2_q8), *options]), 64) as llama:
        params = llama.context_params
        assert (params.n_threads, params.n_threads_batch) == (1, 1)
        assert (params.type_k, params.type_v, params.flash_attn_type) == (0, 0, 0)
        assert llama.model_params.n_gpu_layers == 3


@pytest.mark.parametrize("edges", [["100"], ["200", "100"], ["-5", "100"], ["299", "400"]])
def test_edges_that_divide_nothing_are_refused_before_anything_is_read(smollm2_path, edges, capsys) -> None:
    arguments = ["eval", "perplexity", str(smollm2_path), "-f", str(PROSE), "-c", "300", "--edges", *edges]
    assert main(arguments) == 1
    assert f"--edges {' '.join(edges)}: give two positions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("original", "context", "edges"),
    [
        (8192, 2048, [0, 512, 1024, 1536, 2047]),
        (8192, 2050, [0, 513, 1026, 1539, 2049]),
        (8192, 10241, [0, 2048, 4096, 6144, 8192, 10240]),
        (8192, 10242, [0, 2048, 4096, 6144, 8192, 10240, 10241]),
        (8192, 2, [0, 1]),
    ],
)
def test_what_is_read_is_divided_by_default(original: int, context: int, edges: list[int]) -> None:
    assert _quarters(original, context) == edges


@pytest.mark.parametrize(
    "arguments",
    [
        ["perplexity", "model.gguf", "-f", "a.txt", "-c", "300", "--parallel", "0"],
        ["passkey", "model.gguf", "--lengths", "300", "--trials", "0"],
        ["passkey", "model.gguf", "--lengths", "300", "--depths", "0"],
    ],
)
def test_counts_of_nothing_are_refused(arguments, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["eval", *arguments])
    assert "must be a whole number > 0" in capsys.readouterr().err


def test_dynamic_scaling_builds_on_the_model_s_own_base_where_the_file_is_extended(
    smollm2_q8, tmp_path: Path
) -> None:
    """An NTK-aware file has another base."""
    path, out = tmp_path / "ntk.gguf", tmp_path / "out.json"
    assert main(["extend", str(smollm2_q8), "-o", str(path), "--method", "ntk", "--factor", "8"]) == 0
    arguments = ["eval", "perplexity", str(path), "-f", str(PROSE), "-c", "200", "--edges", "0", "200"]
    assert main([*arguments, "--scaling", "none", "dynamic-yarn", "ntk:8", "--json", str(out)]) == 0
    none, dynamic, ntk = (row["loss"] for row in json.loads(out.read_text())["rows"])
    assert none == dynamic != ntk


def test_a_context_of_its_own_has_the_longrope_factors_of_its_length(fast_llama, monkeypatch) -> None:
    given = []
    monkeypatch.setattr(
        "yarn_gguf.run.llama.set_rope_frequencies", lambda context, *table: given.append(table[0][0])
    )
    factors = {"short_factor": (1.0,) * 32, "long_factor": (2.0,) * 32}
    scaling = RopeScaling("longrope", 4.0, original_max_position_embeddings=512, **factors)
    fast_llama.set_rope_scaling(scaling)
    for length in (256, 1024):
        fast_llama.make_context(length).close()
    short, long = given[1:]
    assert short == 2 * long
    for length in (512, 513):  # of what is scored; the cache has room for more
        Scorer(fast_llama, length).close()
    assert given[3:] == [short, long]


def test_another_build_of_the_library_has_measurements_of_its_own(fast_llama, monkeypatch, tmp_path) -> None:
    results = Results(tmp_path)
    before = model_key(fast_llama, results)
    assert before == model_key(fast_llama, results)
    (tmp_path / "libllama.so").write_bytes(b"another")
    monkeypatch.setattr("yarn_gguf.evaluate.results.library_folder", lambda: tmp_path)
    assert before != model_key(fast_llama, results)


def test_another_model_cache_or_version_has_measurements_of_its_own(
    smollm2_q8, tmp_path: Path, monkeypatch
) -> None:
    """Another model, even if a single bit of its weights is another."""
    results, other = Results(tmp_path), tmp_path / "other.gguf"
    data = bytearray(smollm2_q8.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    other.write_bytes(data)

    def key(path: Path = smollm2_q8, **settings) -> str:
        with closing(Llama(path, verbose=False, **{"n_ctx": 256, "flash_attn": True} | settings)) as llama:
            return json.dumps(model_key(llama, results))

    found = [key(), key(other), key(type_k=8), key(type_v=8), key(flash_attn=False), key(n_batch=64)]
    found += [key(n_ctx=512, n_batch=256), key(n_ubatch=64), key(n_gpu_layers=1)]
    monkeypatch.setattr("yarn_gguf._version.__version__", "another")
    found.append(key())
    assert len(set(found)) == len(found)


def test_where_nothing_is_kept_no_file_is_read(fast_llama) -> None:
    assert model_key(fast_llama, Results(None)) == {}


def test_a_missing_model_or_text_is_named(smollm2_path, tmp_path: Path, capsys) -> None:
    arguments = ["eval", "perplexity", str(tmp_path / "no.gguf"), "-f", str(PROSE), "-c", "100"]
    assert main(arguments) == 1
    assert "no.gguf" in capsys.readouterr().err
    assert main(["eval", "perplexity", str(smollm2_path), "-f", str(tmp_path / "no.txt"), "-c", "100"]) == 1
    assert "no.txt" in capsys.readouterr().err


def test_perplexity_on_the_command_line(smollm2_q8, fast_llama, prose_tokens, tmp_path: Path, capsys) -> None:
    arguments = [
        "eval",
        "perplexity",
        str(smollm2_q8),
        "-f",
        str(PROSE),
        "-c",
        "300",
        "--edges",
        "0",
        "100",
        "300",
    ]
    arguments += [
        "--scaling",
        "none",
        "yarn:4",
        "--json",
        str(tmp_path / "a.json"),
        "--csv",
        str(tmp_path / "a.csv"),
    ]
    assert main(arguments) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["kind"] == "perplexity"
    assert found["model"]["original_context"] == 8192
    fast_llama.set_rope_scaling(RopeScaling("yarn", 4.0))
    losses = token_losses(fast_llama, prose_tokens[:300])
    row = found["rows"][3]
    assert row["losses"] == [row["loss"]]
    assert (row["scaling"], row["start"], row["stop"]) == ("yarn:4", 100, 299)
    assert row["loss"] == pytest.approx(losses[100:].mean(), abs=2e-3)  # other batches
    with (tmp_path / "a.csv").open() as file:
        assert [each["perplexity"] for each in csv.DictReader(file)] == [
            str(r["perplexity"]) for r in found["rows"]
        ]
    fast_llama.set_rope_scaling("none")
    change = (losses - token_losses(fast_llama, prose_tokens[:300]))[100:].mean()
    assert row["change"] == pytest.approx(math.expm1(change), abs=6e-3)  # other batches
    assert row["change_low"] < row["change"] < row["change_high"]
    assert (found["rows"][0]["change"], found["rows"][0]["change_low"]) == (0, 0)
    shown = capsys.readouterr().out
    assert "100 - 299" in shown and f"{row['perplexity']:.2f}" in shown
