"""Sessions: what a Llama has read, kept in a file with all that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import yarn_gguf
from yarn_gguf import kv_state, session_file
from yarn_gguf.dynamic import DynamicScaling
from yarn_gguf.errors import RopeScalingError, SessionError
from yarn_gguf.fingerprint import token_digest
from yarn_gguf.llama import CACHE_TYPES, ROPE_ARGUMENTS, Llama, Progress, llama_cpp
from yarn_gguf.rope import RopeScaling
from yarn_gguf.session_file import Block, Contents

_BLOCK = 16 << 20  # bytes of keys and values that are written at once: one is read while another is restored
_AS_IT_WAS = "open the model as it was then, or with rebuild (--rebuild) read the text anew"


class Session:
    """The text that a Llama has read, and a file for it; made by `Llama.open_session`.

    As a context manager it saves when its block ends well. Otherwise only `save` writes.
    """

    def __init__(self, llama: Llama, path: Path, after_save: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._llama = llama
        self._after_save = after_save
        self._files = llama.fingerprints, llama.adapter_fingerprint  # now: what changes later was not loaded
        self._header = b""  # of the file as it was last read or written; empty where there was none
        self._saved: Contents | None = None  # what of the file is in step with the cache,
        self._scale = _scale(llama)  # as long as the cached keys were not rotated since
        self.tokens: list[int] = []  # of the text that the file holds
        self.notes: dict[str, Any] | None = None  # kept in the file for its user; what JSON can hold

    @property
    def notes_of_text(self) -> dict[str, Any]:
        """`notes` whose "text" is the digest of exactly the tokens that the file holds; else nothing."""
        is_ours = isinstance(self.notes, dict) and self.notes.get("text") == token_digest(self.tokens)
        return self.notes if is_ours else {}

    def save(self, *, replace: bool = False) -> None:
        """Bring the file up to what the Llama has read by now.

        That may be another text, by another thread's request, say. Unless it begins with half of what the
        file holds, or more, that is kept and SessionError raised; with `replace` the other takes its place.

        What is new is appended. All is written anew, beside the old file, where nothing in it holds any more
        (after a change of s, or of the scaling), where the cache cannot be divided (recurrent layers,
        swa_full=False), and when a third of the file is of no more use. At every moment the file is as it was
        or as it will be. Raises SessionError, with the file as it was.
        """
        with self._llama._turns.aside():  # between the turns of other threads
            self._save(replace)

    def _save(self, replace: bool) -> None:
        llama = self._llama
        llama._drop_drafts()
        llama._ctx.kv_cache_seq_rm(-1, llama.n_tokens, -1)  # what was cut and is still there
        kv_state.check_cache(llama)
        facts = _facts(llama) | {"notes": self.notes}
        wanted = Contents(identity_of(llama), facts, llama.input_ids[: llama.n_tokens].copy())
        with lock(self.path.parent) as is_locked:
            self._check_unchanged()
            if not replace:
                self._check_same_text(wanted)
            kept = self._kept(wanted)
            if kept is not None and self._is_saved(wanted):
                return
            try:
                saved = self._write(wanted, is_locked) if kept is None else self._append(kept, wanted)
            except BaseException:
                if is_locked:
                    self._take_what_was_written()
                raise
        self._take(saved)
        self._after_save()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.save()

    def restore(self, source: Path, contents: Contents, progress: Progress | None = None) -> None:
        """Fill the cache from the file `source`, of which `contents` may be a cut.

        Raises SessionError: with the cache as it was if `contents` do not suit the Llama, else an empty one.
        """
        with self._llama._turns.take():
            _check_identity(source, contents, self._llama)
            _check_room(source, contents, self._llama)
            _empty(self._llama)
            try:
                _read_into(self._llama, source, contents, progress)
            except BaseException:
                _empty(self._llama)
                raise
            if source == self.path:
                self._take(contents)

    def rebuild(self, contents: Contents, progress: Progress | None = None) -> None:
        """Read the tokens of a file whose keys and values are of no use. Raises SessionError."""
        _check_room(self.path, replace(contents, blocks=()), self._llama)
        if contents.facts["vocabulary"] != _vocabulary(self._llama):
            raise SessionError(
                f"{self.path}: its tokens are those of another vocabulary than {self._llama.model_path} has: "
                f"open it with the model that it was saved by ({contents.facts['model']}), or begin anew"
            )
        _empty(self._llama)
        self._llama.prefill(contents.tokens.tolist(), progress)
        self._header, self.tokens = contents.header, contents.tokens.tolist()

    def _take(self, contents: Contents) -> None:
        """`contents`, which are in the file, and the cache are in step."""
        self._saved, self._header, self._scale = contents, contents.header, _scale(self._llama)
        self.tokens = contents.tokens.tolist()

    def _take_what_was_written(self) -> None:
        """After a signal, or a failure, that came when the new header was in its place already."""
        with suppress(OSError, SessionError):
            if _header_of(self.path) != self._header:
                self._take(session_file.read_contents(self.path))

    # ---- writing -------------------------------------------------------------------------------

    def _check_unchanged(self) -> None:
        if self.path.exists() and _header_of(self.path) != self._header:
            raise SessionError(
                f"{self.path}: another has saved to it since it was opened: open it again, or save elsewhere"
            )

    def _check_same_text(self, wanted: Contents) -> None:
        common = common_prefix(wanted.tokens, np.asarray(self.tokens, np.intc))
        if 2 * common < len(self.tokens) and self.path.exists():
            raise SessionError(
                f"{self.path} holds {len(self.tokens):,} tokens, and of these the Llama has but the first "
                f"{common:,} now, as it has read something else since: open the session again, or "
                "save(replace=True) to lose them"
            )

    def _kept(self, wanted: Contents) -> Contents | None:
        """What of the file goes on to hold; None if it has to be written whole."""
        saved = self._saved
        if saved is None or not self.path.exists():
            return None
        if saved.identity != wanted.identity or self._scale != _scale(self._llama):
            return None
        length = common_prefix(saved.tokens, wanted.tokens)
        if not kv_state.is_divisible(self._llama):
            return saved if self._is_saved(wanted) else None
        kept = saved.cut(length)
        wasted = sum(block.wasted for block in kept.blocks)
        return None if 3 * wasted > sum(block.size for block in kept.blocks) else kept

    def _is_saved(self, wanted: Contents) -> bool:
        has_notes = self._saved.facts.get("notes") == wanted.facts["notes"]
        return has_notes and np.array_equal(self._saved.tokens, wanted.tokens)

    def _write(self, wanted: Contents, is_locked: bool) -> Contents:
        if is_locked:
            remove_leftovers(self.path.parent, _literal(self.path.name))
        if kv_state.is_divisible(self._llama):
            with self._blocks(0) as (size, blocks):
                return session_file.write(self.path, wanted, size, blocks)
        data, count = kv_state.read_all(self._llama), len(wanted.tokens)
        block = Block(len(data), 0, 0, count, count)
        return session_file.write(self.path, wanted, len(data), [(block, data)])

    def _append(self, kept: Contents, wanted: Contents) -> Contents:
        with self._blocks(len(kept.tokens)) as (size, blocks):
            return session_file.append(self.path, kept, replace(wanted, blocks=kept.blocks), size, blocks)

    @contextmanager
    def _blocks(self, first: int) -> Iterator[tuple[int, Iterator[tuple[Block, np.ndarray]]]]:
        """Yields the size, about, of all tokens from `first` on, and their blocks."""
        total = self._llama.n_tokens
        bytes_each = kv_state.size_of(self._llama) // max(total, 1) + 1
        step = max(1, _BLOCK // bytes_each)
        with kv_state.reading_ranges(self._llama) as read:

            def blocks() -> Iterator[tuple[Block, np.ndarray]]:
                for start, stop in _ranges(first, total, step, kv_state.window_of(self._llama)):
                    data = read(start, stop)
                    yield Block(len(data), 0, start, stop - start, stop - start), data

            yield bytes_each * (total - first), blocks()


def open_session(
    llama: Llama, path: str | Path, *, rebuild: bool = False, progress: Progress | None = None
) -> Session:
    """As `Llama.open_session`."""
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path  # the link stays when the file is written anew
    session = Session(llama, path)
    if not path.exists():
        check_writable(path)
        return session
    contents = session_file.read_contents(path)
    session.notes = contents.facts.get("notes")
    with llama._turns.take():
        try:
            session.restore(path, contents, progress)
        except SessionError:
            if not rebuild:
                raise
            session.rebuild(contents, progress)
    return session


def identity_of(llama: Llama) -> dict[str, Any]:
    """All that cached keys and values depend on, the tokens apart; what JSON can hold."""
    params = llama.context_params
    types = {number: name.lower() for name, number in CACHE_TYPES.items()}
    identity = {
        "library": f"yarn-gguf {yarn_gguf.__version__}, llama-cpp-python {llama_cpp.__version__}",
        "model": llama.fingerprints,
        "LoRA adapter": None if llama.lora_path is None else [llama.adapter_fingerprint, llama.lora_scale],
        "kv_overrides": llama.kv_overrides,
        "rope scaling": _rope_scaling(llama),
        "type_k": types[params.type_k],
        "type_v": types[params.type_v],
        "flash_attn": params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "swa_full": params.swa_full,
        "LLAMA_ATTN_ROT_DISABLE": os.environ.get("LLAMA_ATTN_ROT_DISABLE"),  # the basis of quantized keys
    }
    return json.loads(json.dumps(identity))


def _rope_scaling(llama: Llama) -> dict[str, Any]:
    """What was asked for; nothing where the file decides."""
    if llama.rope_scaling is None:
        given = {name: getattr(llama.context_params, name) for name in ROPE_ARGUMENTS}
        return {name: value for name, value in given.items() if value not in (0, -1)}
    return {name: value for name, value in asdict(llama.rope_scaling).items() if value is not None}


def scaling_of(contents: Contents) -> RopeScaling | DynamicScaling | None:
    """That under which they were read, as Llama takes it; None where the model's file decided."""
    values = contents.identity["rope scaling"]
    if "method" not in values:  # nothing, or llama_cpp.Llama's own arguments
        return None
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return (DynamicScaling if "policy" in values else RopeScaling)(**values)
    except (TypeError, RopeScalingError):  # of another version
        return None


def check_writable(path: Path) -> None:
    """Before hours are spent on what is to be saved there. Raises SessionError."""
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise SessionError(f"{path}: {path.parent} is no folder that can be written to: name another")
    if path.exists() and not os.access(path, os.W_OK):
        raise SessionError(f"{path} cannot be written to: check its rights, or go on with a copy of it")


def remove_leftovers(folder: Path, pattern: str) -> None:
    """The temporary files of killed processes; to be called under the folder's lock."""
    for leftover in folder.glob(f".{pattern}.*.tmp"):
        leftover.unlink(missing_ok=True)


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens the two have in common from the beginning on."""
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length


# ----------------------------------------------------------------------------------------------


def _facts(llama: Llama) -> dict[str, Any]:
    """For people, for the next n_ctx, and for whoever has to read the tokens anew."""
    return {
        "model": Path(llama.model_path).name,
        "n_ctx": llama.n_ctx(),
        "factor": llama.dynamic_state.factor,
        "vocabulary": _vocabulary(llama),
    }


def _vocabulary(llama: Llama) -> str:
    """A digest of samples: whether tokens mean the same."""
    vocabulary = llama_cpp.llama_model_get_vocab(llama._model.model)
    digest = hashlib.sha256(str(llama.n_vocab()).encode())
    has_texts = llama_cpp.llama_vocab_type(vocabulary) != llama_cpp.LLAMA_VOCAB_TYPE_NONE
    for token in range(0, llama.n_vocab() if has_texts else 0, llama.n_vocab() // 1000 + 1):
        digest.update(llama_cpp.llama_vocab_get_text(vocabulary, token) + b"\0")
    return digest.hexdigest()


def _scale(llama: Llama) -> tuple[float, int]:
    """While this stays, so do the keys of what is cached."""
    state = llama.dynamic_state
    return state.factor, state.rotations


def _check_identity(path: Path, contents: Contents, llama: Llama) -> None:
    now, then = identity_of(llama), contents.identity
    if now == then:
        return
    if now["model"] != then.get("model"):
        other = contents.facts["model"]
        raise SessionError(f"{path}: saved by another model ({other}) than {llama.model_path}: {_AS_IT_WAS}")
    differences = [
        f"{key} {_shown(then.get(key), now.get(key))}, and not {_shown(now.get(key), then.get(key))}"
        for key in sorted({*now, *then})
        if now.get(key) != then.get(key)
    ]
    raise SessionError(f"{path}: saved with {'; with '.join(differences)}: {_AS_IT_WAS}")


def _shown(value: Any, other: Any) -> Any:
    """Of a scaling what differs."""
    if not (isinstance(value, dict) and isinstance(other, dict)):
        return value
    differs = ", ".join(f"{name} {value[name]}" for name in value if value[name] != other.get(name))
    return differs or ("the same without" if value else "as the file says")


def _check_room(path: Path, contents: Contents, llama: Llama) -> None:
    ends = [block.first + block.count for block in contents.blocks if block.used]
    needed = max([len(contents.tokens), *ends])
    if needed > llama.n_ctx():
        raise SessionError(
            f"{path}: {needed:,} tokens, and n_ctx is {llama.n_ctx():,}: open the model with an n_ctx (-c) "
            f"of {needed:,} or more"
        )


def _header_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(session_file.START)


def _empty(llama: Llama) -> None:
    llama.reset()
    llama._ctx.kv_cache_clear()


def _ranges(first: int, total: int, step: int, window: int) -> Iterator[tuple[int, int]]:
    """Of at most `step` tokens, and not across a multiple of `window`."""
    while first < total:
        stop = min(first + step, total)
        if window:
            stop = min(stop, (first // window + 1) * window)
        yield first, stop
        first = stop


def _read_into(llama: Llama, path: Path, contents: Contents, progress: Progress | None) -> None:
    """Every byte of the file is read and checked, whether it is needed or not."""
    total = len(contents.tokens)
    if kv_state.is_divisible(llama):
        with kv_state.writing_ranges(llama) as write:
            for block, data in session_file.read_blocks(path, contents):
                if not block.used:
                    continue
                with _refusals(path):
                    write(data, block.first + block.used)
                if progress is not None:
                    progress(block.first + block.used, total)
    else:
        for block, data in session_file.read_blocks(path, contents):
            if block.used:
                with _refusals(path):
                    kv_state.write_all(llama, data)
    llama.input_ids[:total] = contents.tokens
    llama.n_tokens = total
    llama._requires_eval = llama._lacks_scores = True
    llama._keep_reserved()
    kv_state.check_cache(llama)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """The library's reason, with the file and the remedy."""
    try:
        yield
    except SessionError as error:
        raise SessionError(f"{path}: {error}: {_AS_IT_WAS}") from error


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


@contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """One process at a time saves to the sessions of a folder. Yields whether the system can do that."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            is_locked = True
        except OSError:  # a file system without locks
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)
