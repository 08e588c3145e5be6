"""Measurements that are kept: what their keys depend on, and runs that continue."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from yarn_gguf import Llama, RopeScaling, YarnGGUFError
from yarn_gguf.disk.fingerprint import digest, fingerprint
from yarn_gguf.evaluate.compare import compare_losses, compare_passkey, compare_windows
from yarn_gguf.evaluate.passkey import Style
from yarn_gguf.evaluate.reading import losses as perplexity
from yarn_gguf.evaluate.reading.documents import Document
from yarn_gguf.evaluate.reading.losses import window_ends, window_losses
from yarn_gguf.evaluate.results import Results, model_key
from yarn_gguf.rope.names import Variant


def test_a_kept_measurement_is_not_repeated(fast_llama, prose_tokens, tmp_path, monkeypatch) -> None:
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
def test_windows_are_kept_a_few_at_a_time(
    fast_llama, prose_tokens, tmp_path, monkeypatch, parallel: int
) -> None:
    """An interrupted run continues within a text, and gives the same numbers as an uninterrupted one."""
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
    assert groups == [3] * 4  # the first, the interrupted one, and the remaining two
    ends = window_ends(200, 64, 16)
    np.testing.assert_allclose(
        resumed, window_losses(fast_llama, prose_tokens[:200], 64, ends, parallel), atol=1e-6
    )


def test_a_key_holds_all_that_a_measurement_depends_on(fast_llama, prose_tokens, tmp_path) -> None:
    """A change of any of them causes a new measurement."""
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


def test_another_build_of_the_library_has_separate_measurements(fast_llama, monkeypatch, tmp_path) -> None:
    results = Results(tmp_path)
    before = model_key(fast_llama, results)
    assert before == model_key(fast_llama, results)
    (tmp_path / "libllama.so").write_bytes(b"another")
    monkeypatch.setattr("yarn_gguf.evaluate.results.library_folder", lambda: tmp_path)
    assert before != model_key(fast_llama, results)


def test_another_model_cache_or_version_has_separate_measurements(
    smollm2_q8, tmp_path: Path, monkeypatch
) -> None:
    """Models that differ in a single bit of the weights are different models."""
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


def test_no_file_is_read_if_nothing_is_kept(fast_llama) -> None:
    assert model_key(fast_llama, Results(None)) == {}
