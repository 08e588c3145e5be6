"""Sessions: a session that does not suit the model or its settings is refused with a reason."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import random_gguf
from reading import read
from sessions import F32, Q8_0, TOKENS, L, reopened, saved, tiny_llama

from yarn_gguf import DynamicScaling, RopeScaling, SessionError
from yarn_gguf.disk.fingerprint import fingerprints
from yarn_gguf.model_file.extend import extend
from yarn_gguf.run.llama import Llama
from yarn_gguf.session import file as session_file
from yarn_gguf.session.file import read_contents
from yarn_gguf.session.identity import check_identity, scaling_of
from yarn_gguf.session.session import open_session


def refused(model: Path, path: Path, message: str, *args, **kwargs) -> None:
    """Check that `path` is refused and the cache stays; with rebuild the text is read again."""
    with closing(tiny_llama(model, *args, **kwargs)) as llama:
        llama.prefill(TOKENS[:7])
        with pytest.raises(SessionError, match=message):
            open_session(llama, path)
        assert llama.n_tokens == 7
        session = open_session(llama, path, rebuild=True)
        assert llama.input_ids[: llama.n_tokens].tolist() == TOKENS[:100]
        session.save()
    with closing(tiny_llama(model, *args, **kwargs)) as llama:
        llama.prefill(TOKENS[:100])
        expected = read(llama, TOKENS[100:150])
    with closing(reopened(model, path, *args, **kwargs)) as llama:
        assert np.array_equal(read(llama, TOKENS[100:150]), expected)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {"type_k": Q8_0}, "saved with type_k f16, and not q8_0: open the model as it was then"),
        ((), {"type_v": F32}, "type_v f16, and not f32"),
        ((), {"flash_attn": False}, "saved with flash_attn True, and not False"),
        (
            (RopeScaling("yarn", 2.0),),
            {},
            "rope scaling as the file says, and not yarn:2:",
        ),
        (
            (DynamicScaling(),),
            {},
            "rope scaling as the file says, and not dynamic-yarn:",
        ),
        ((), {"rope_freq_base": 5000.0}, "rope scaling as the file says, and not rope_freq_base 5000.0"),
        ((), {"kv_overrides": {"general.name": "x"}}, r"saved with kv_overrides None, and not .*'x'"),
    ],
    ids=str,
)
def test_the_setting_that_differs_is_named(model: Path, path: Path, args, kwargs, message) -> None:
    saved(model, path, TOKENS[:100])
    refused(model, path, message, *args, **kwargs)


def test_the_size_of_a_windows_cache_is_named(model_of, path: Path) -> None:
    saved(model_of("gemma2"), path, TOKENS[:100])
    with (
        closing(tiny_llama(model_of("gemma2"), swa_full=False)) as llama,
        pytest.raises(SessionError, match="saved with swa_full True, and not False"),
    ):
        open_session(llama, path)


def test_the_basis_of_quantized_keys_is_named(model: Path, path: Path, monkeypatch) -> None:
    saved(model, path, TOKENS[:100], type_k=Q8_0)
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    refused(model, path, "saved with LLAMA_ATTN_ROT_DISABLE None, and not 1", type_k=Q8_0)


def test_another_factor_is_named_alone(model: Path, path: Path) -> None:
    with closing(tiny_llama(model, RopeScaling("yarn", 4.0))) as llama:
        llama.prefill(TOKENS[:100])
        open_session(llama, path).save()
    refused(model, path, r"rope scaling yarn:4, and not yarn:2: open", RopeScaling("yarn", 2.0))


def test_another_version_is_named(model: Path, path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("yarn_gguf._version.__version__", "0.0.9")
        saved(model, path, TOKENS[:100])
    refused(model, path, r"saved with library yarn-gguf 0\.0\.9, .* and not yarn-gguf 0\.1\.0")


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        RopeScaling("none"),
        RopeScaling("yarn", 2.0, beta_fast=16.0),
        RopeScaling("longrope", 4.0, L, short_factor=(1.0,) * 32, long_factor=(3.0,) * 32),
        DynamicScaling.of("ntk", policy="request", ntk_factor=2.0),
    ],
    ids=str,
)
def test_the_scaling_of_a_file_is_known_without_its_model(model: Path, path: Path, scaling) -> None:
    with closing(tiny_llama(model, scaling)) as llama:
        llama.prefill(TOKENS[:10])
        open_session(llama, path).save()
        contents = read_contents(path)
        assert scaling_of(contents) == llama.rope_scaling
    with closing(reopened(model, path, scaling_of(contents))) as llama:
        assert llama.n_tokens == 10
    of_later = {"rope scaling": {"method": "yarn", "unheard": 1}}
    assert scaling_of(replace(contents, identity=of_later)) is None
    with closing(tiny_llama(model, scaling)) as llama:
        later = replace(contents, identity=contents.identity | of_later)
        with pytest.raises(SessionError, match="method yarn, unheard 1"):
            check_identity(path, later, llama)


def test_a_fifo_is_no_place_for_a_session(model: Path, path: Path) -> None:
    with closing(tiny_llama(model)) as llama:
        session = open_session(llama, path)
        llama.prefill(TOKENS[:10])
        os.mkfifo(path)
        for attempt in (session.save, lambda: open_session(llama, path)):
            with pytest.raises(SessionError, match="is no plain file: name another"):
                attempt()
        contents = session_file.Contents({}, {}, llama.cached_text.tokens)
        with pytest.raises(SessionError, match="is not a regular file: name another"):
            session_file.write(path, contents, 0, [])
    assert path.is_fifo()


def test_a_later_format_is_refused(model: Path, path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(session_file, "FORMAT", 2)
        saved(model, path, TOKENS[:10])
    with closing(tiny_llama(model)) as llama, pytest.raises(SessionError, match="a session of format 2, and"):
        open_session(llama, path)


def test_another_model_is_named(model_of, path: Path) -> None:
    saved(model_of("qwen2"), path, TOKENS[:100])
    refused(model_of("llama"), path, r"saved by another model \(qwen2\.gguf\) than .*llama\.gguf: open")


def test_a_weight_that_changed_makes_another_model(model: Path, path: Path, tmp_path: Path) -> None:
    saved(model, path, TOKENS[:100])
    changed = tmp_path / "llama.gguf"
    data = bytearray(model.read_bytes())
    data[-5] ^= 1
    changed.write_bytes(data)
    with closing(tiny_llama(changed)) as llama, pytest.raises(SessionError, match="saved by another model"):
        open_session(llama, path)


def test_a_file_that_changes_later_is_not_the_model_that_was_loaded(
    model: Path, path: Path, tmp_path: Path
) -> None:
    changed = shutil.copy(model, tmp_path / "copy.gguf")
    with closing(tiny_llama(changed)) as llama:
        session = open_session(llama, path)
        llama.prefill(TOKENS[:100])
        temporary = tmp_path / "new.gguf"
        temporary.write_bytes(changed.read_bytes() + b"more")
        temporary.replace(changed)
        session.save()
    with closing(tiny_llama(changed)) as llama, pytest.raises(SessionError, match="saved by another model"):
        open_session(llama, path)
    with closing(reopened(model, path)) as llama:
        assert llama.n_tokens == 100


@pytest.mark.parametrize("changed", ["model", "adapter"])
def test_a_file_that_changed_before_the_session_was_opened_is_refused(path, tmp_path, changed) -> None:
    """Else the text that the old file read would count as read by the new one."""
    files = {"model": random_gguf.llama(tmp_path / "model.gguf")}
    files["adapter"] = random_gguf.adapter(tmp_path / "lora.gguf")
    with closing(tiny_llama(files["model"], lora_path=str(files["adapter"]))) as llama:
        llama.prefill(TOKENS[:100])
        Path(shutil.copy(files[changed], tmp_path / "new")).replace(files[changed])
        with pytest.raises(SessionError, match=f"{files[changed].name} was changed since it was loaded"):
            open_session(llama, path)
        assert llama.n_tokens == 100


def refuses_adapter(model: Path, path: Path, **arguments) -> None:
    """Check that a Llama with these arguments refuses the session for its adapter."""
    with closing(tiny_llama(model, **arguments)) as llama, pytest.raises(SessionError, match="LoRA adapter"):
        open_session(llama, path)


def test_an_adapter_counts_with_its_content_at_loading(path: Path, tmp_path: Path) -> None:
    model, lora = random_gguf.llama(tmp_path / "model.gguf"), tmp_path / "lora.gguf"
    random_gguf.adapter(lora)
    with closing(tiny_llama(model, lora_path=str(lora))) as llama:
        session = open_session(llama, path)
        llama.prefill(TOKENS[:100])
        lora.unlink()
        session.save()
    random_gguf.adapter(lora)
    with closing(reopened(model, path, lora_path=str(lora))) as llama:
        assert llama.n_tokens == 100
    for other in ({"lora_path": None}, {"lora_path": str(lora), "lora_scale": 0.5}):
        refuses_adapter(model, path, **other)
    random_gguf.adapter(lora, tensor="blk.1.attn_q.weight")
    refuses_adapter(model, path, lora_path=str(lora))


def test_a_model_that_was_extended_in_place_is_another(
    smollm2_path: Path, path: Path, tmp_path: Path
) -> None:
    """The scaling is behind megabytes of tokenizer, and the file keeps its size."""
    model = tmp_path / "model.gguf"
    extend(smollm2_path, RopeScaling("yarn", 4.0), output=model)
    with closing(tiny_llama(model)) as llama:
        llama.prefill(TOKENS[:20])
        open_session(llama, path).save()
    size = model.stat().st_size
    extend(model, RopeScaling("yarn", 2.0))
    assert model.stat().st_size == size
    with closing(tiny_llama(model)) as llama, pytest.raises(SessionError, match="saved by another model"):
        open_session(llama, path)


def test_every_part_of_a_split_model_counts(tmp_path: Path) -> None:
    for i in (1, 2):
        (tmp_path / f"m-0000{i}-of-00002.gguf").write_bytes(b"part" * i)
    before = fingerprints(tmp_path / "m-00001-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(b"other")
    after = fingerprints(tmp_path / "m-00001-of-00002.gguf")
    assert len(before) == len(after) == 2
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def test_a_link_to_a_session_stays_one(model: Path, path: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    saved(model, tmp_path / "disk" / "a.session", TOKENS[:50])
    path.symlink_to(tmp_path / "disk" / "a.session")
    with closing(reopened(model, path)) as llama:
        session = open_session(llama, path)
        llama.n_tokens = 1
        session.save(replace=True)
    assert path.is_symlink()
    assert len(read_contents(path).tokens) == 1


def test_a_disk_that_fails_counts_as_damage(model: Path, path: Path, monkeypatch) -> None:
    saved(model, path, TOKENS[:50])

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(session_file, "_fill", fail)
    with closing(tiny_llama(model)) as llama:
        with pytest.raises(SessionError, match=r"cannot be read \(Input/output error\): the file is damaged"):
            open_session(llama, path)
        open_session(llama, path, rebuild=True)
        assert llama.n_tokens == 50


def test_tokens_of_another_vocabulary_are_not_read_anew(model: Path, smollm2_q8: Path, path: Path) -> None:
    saved(model, path, TOKENS[:100])
    message = r"another vocabulary than .*\(llama\.gguf\), or begin anew"
    with (
        closing(Llama(smollm2_q8, n_ctx=256, verbose=False)) as llama,
        pytest.raises(SessionError, match=message),
    ):
        open_session(llama, path, rebuild=True)


def test_longrope_of_another_context_is_refused_by_the_library(model: Path, path: Path) -> None:
    """n_ctx decides between its two tables."""
    scaling = RopeScaling("longrope", 4.0, L, short_factor=(1.0,) * 32, long_factor=(3.0,) * 32)
    with closing(tiny_llama(model, scaling, n_ctx=L)) as llama:
        llama.prefill(TOKENS[:100])
        open_session(llama, path).save()
    with closing(tiny_llama(model, scaling, n_ctx=2 * L)) as llama:
        with pytest.raises(SessionError, match=r"book\.session: .*another rope scaling.*with rebuild"):
            open_session(llama, path)
        assert llama.n_tokens == 0
        open_session(llama, path, rebuild=True)
        assert llama.n_tokens == 100


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_context_that_is_too_small_is_named(model: Path, path: Path, rebuild: bool) -> None:
    """A rebuild needs room for the text, too."""
    saved(model, path, TOKENS[:300])
    with closing(tiny_llama(model, n_ctx=256)) as llama:
        llama.prefill(TOKENS[:5])
        with pytest.raises(SessionError, match=r"300 tokens, and n_ctx is 256: open .* n_ctx \(-c\) of 300"):
            open_session(llama, path, rebuild=rebuild)
        assert llama.n_tokens == 5


def test_a_context_that_is_just_filled_is_enough(model_of, path: Path) -> None:
    for name in ("llama", "gemma3"):
        saved(model_of(name), path, TOKENS[:256])
        with closing(reopened(model_of(name), path, n_ctx=256)) as llama:
            assert llama.n_tokens == 256
        path.unlink()


def test_the_unused_rest_of_a_block_needs_room_too(model: Path, path: Path) -> None:
    with closing(tiny_llama(model)) as llama:
        session = open_session(llama, path)
        llama.prefill(TOKENS[:300])
        session.save()
        llama.n_tokens = 240
        session.save()
    with closing(tiny_llama(model, n_ctx=256)) as llama:
        with pytest.raises(SessionError, match=r"300 tokens, and n_ctx is 256"):
            open_session(llama, path)
        assert open_session(llama, path, rebuild=True).tokens == TOKENS[:240]


def test_a_missing_folder_is_named_before_anything_is_read(model: Path, tmp_path: Path) -> None:
    with closing(tiny_llama(model)) as llama, pytest.raises(SessionError, match="missing is no folder"):
        open_session(llama, tmp_path / "missing" / "a.session")


def test_a_file_of_another_kind_is_refused(model: Path) -> None:
    with closing(tiny_llama(model)) as llama, pytest.raises(SessionError, match="no file of a session"):
        open_session(llama, model)


def test_a_cache_that_was_shifted_is_refused(model: Path, path: Path) -> None:
    with closing(tiny_llama(model)) as llama:
        llama.prefill(TOKENS[:100])
        llama._ctx.kv_cache_seq_rm(0, 0, 10)
        with pytest.raises(SessionError, match=r"positions 10 to 99, .*without shifts"):
            open_session(llama, path).save()
    assert not path.exists()
