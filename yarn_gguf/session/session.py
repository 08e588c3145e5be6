"""Sessions: the text that a Llama has read, kept in a file with everything that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.errors import SessionError
from yarn_gguf.progress import Progress
from yarn_gguf.run.cached_text import common_prefix
from yarn_gguf.run.llama import Llama
from yarn_gguf.session import file as session_file
from yarn_gguf.session import kv_state
from yarn_gguf.session.file import Block, Contents
from yarn_gguf.session.identity import AS_IT_WAS, check_identity, facts_of, identity_of, vocabulary_digest
from yarn_gguf.session.lock import check_writable, lock, remove_leftovers

_BLOCK = 16 << 20  # bytes of keys and values in a block: one is read while another is restored
_MOST_WASTE = 1 / 3  # of a file's blocks; beyond it the file is written anew

Scale = tuple[float, int]  # factor and rotations of dynamic scaling


class Session:
    """The text that a Llama has read, and a file for it. Made by `open_session`.

    As a context manager it saves when its block ends well. Otherwise only `save` writes.

    path: the file. notes: kept in the file for its user, in JSON's types.
    """

    def __init__(self, llama: Llama, path: Path, after_save: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.notes: dict[str, Any] | None = None
        self._llama = llama
        self._after_save = after_save
        self._file: Contents | None = None  # as the file was last read or written
        self._scale: Scale | None = None  # under which the file's blocks and the cache are the same
        _ = llama.fingerprints, llama.adapter_fingerprint  # now: files that change later were not loaded

    @property
    def tokens(self) -> list[int]:
        """The tokens of the text that the file holds."""
        return [] if self._file is None else self._file.tokens.tolist()

    @property
    def notes_of_text(self) -> dict[str, Any]:
        """`notes`, if their "text" is the digest of exactly the tokens in the file; else nothing."""
        return session_file.notes_of_text(self.notes, self.tokens)

    def save(self, *, replace: bool = False) -> None:
        """Bring the file up to the text that the Llama has read by now.

        This may be another text, of another thread's request. If it does not begin with half of the file's
        text or more, the file is kept and SessionError raised. replace: the other text takes its place.

        New tokens are appended. The file is written anew, beside the old one, in these cases: nothing in it
        holds any more (after a change of s, or of the scaling); the cache cannot be divided (recurrent
        layers, swa_full=False); a third of the file is of no more use. At every moment the file is as it was
        or as it will be. Raises SessionError, with the file as it was.
        """
        with self._llama.turns.between():
            self._save(replace)

    def _save(self, replaces: bool) -> None:
        text = self._llama.cached_text
        text.drop_drafts()
        text.trim()
        kv_state.check_cache(self._llama)
        facts = facts_of(self._llama) | {"notes": self.notes}
        wanted = Contents(identity_of(self._llama), facts, text.tokens.copy())
        with lock(self.path.parent) as is_locked:
            self._check_unchanged()
            if not replaces:
                self._check_same_text(wanted)
            kept = self._kept(wanted)
            if kept is not None and self._is_saved(wanted):
                return
            try:
                saved = self._write(wanted, is_locked) if kept is None else self._append(kept, wanted)
            except BaseException:
                if is_locked:
                    self._look_again()
                raise
        self._in_step(saved)
        self._after_save()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.save()

    def restore(self, source: Path, contents: Contents, progress: Progress | None = None) -> None:
        """Fill the cache from the file `source`. `contents` are its contents, or a cut of them.

        Raises SessionError: with the cache as it was if `contents` do not suit the Llama, else with an empty
        one.
        """
        with self._llama.turns.take():
            check_identity(source, contents, self._llama)
            _check_room(source, contents, self._llama)
            self._llama.empty()
            try:
                _read_into(self._llama, source, contents, progress)
            except BaseException:
                self._llama.empty()
                raise
            if source == self.path:
                self._in_step(contents)

    def rebuild(self, contents: Contents, progress: Progress | None = None) -> None:
        """Read the tokens of a file whose keys and values are of no use. Raises SessionError."""
        _check_room(self.path, replace(contents, blocks=()), self._llama)
        if contents.facts["vocabulary"] != vocabulary_digest(self._llama):
            raise SessionError(
                f"{self.path}: its tokens are those of another vocabulary than {self._llama.model_path} has: "
                f"open it with the model that it was saved by ({contents.facts['model']}), or begin anew"
            )
        self._llama.empty()
        self._llama.prefill(contents.tokens.tolist(), progress)
        self._file = contents

    def _in_step(self, contents: Contents) -> None:
        """The file has `contents`, and the cache the same."""
        self._file, self._scale = contents, _scale(self._llama)

    def _look_again(self) -> None:
        """Read the file's index, after a failure or a signal: the new header may be in its place already."""
        with suppress(OSError, SessionError):
            if self._file is None or session_file.read_header(self.path) != self._file.header:
                self._in_step(session_file.read_contents(self.path))

    # ---- writing -------------------------------------------------------------------------------

    def _check_unchanged(self) -> None:
        known = b"" if self._file is None else self._file.header
        if self.path.exists() and session_file.read_header(self.path) != known:
            raise SessionError(
                f"{self.path}: another has saved to it since it was opened: open it again, or save elsewhere"
            )

    def _check_same_text(self, wanted: Contents) -> None:
        held = self.tokens
        common = common_prefix(wanted.tokens, held)
        if 2 * common < len(held) and self.path.exists():
            raise SessionError(
                f"{self.path} holds {len(held):,} tokens, and the Llama has read another text since "
                f"({common:,} tokens in common): open the session again, or save(replace=True) to lose them"
            )

    def _kept(self, wanted: Contents) -> Contents | None:
        """Return the part of the file that goes on to hold; None if it has to be written whole."""
        saved = self._file
        if saved is None or self._scale != _scale(self._llama) or not self.path.exists():
            return None
        if saved.identity != wanted.identity:
            return None
        if not kv_state.is_divisible(self._llama):
            return saved if self._is_saved(wanted) else None
        kept = saved.cut(common_prefix(saved.tokens, wanted.tokens))
        wasted = sum(block.wasted for block in kept.blocks)
        return None if wasted > _MOST_WASTE * sum(block.size for block in kept.blocks) else kept

    def _is_saved(self, wanted: Contents) -> bool:
        if self._file is None:
            return False
        has_notes = self._file.facts.get("notes") == wanted.facts["notes"]
        return has_notes and np.array_equal(self._file.tokens, wanted.tokens)

    def _write(self, wanted: Contents, is_locked: bool) -> Contents:
        if is_locked:
            remove_leftovers(self.path.parent, self.path.name)
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
        """Yield the approximate size of all tokens from `first` on, and their blocks."""
        total = len(self._llama.cached_text)
        bytes_each = kv_state.size_of(self._llama) // max(total, 1) + 1
        step = max(1, _BLOCK // bytes_each)
        with kv_state.reading_ranges(self._llama) as read:

            def blocks() -> Iterator[tuple[Block, np.ndarray]]:
                for start, stop in _ranges(first, total, step, self._llama.vocabulary.window):
                    data = read(start, stop)
                    yield Block(len(data), 0, start, stop - start, stop - start), data

            yield bytes_each * (total - first), blocks()


def open_session(
    llama: Llama, path: str | Path, *, rebuild: bool = False, progress: Progress | None = None
) -> Session:
    """Restore the session in the file `path` into the cache of `llama`, in place of the text that is there.

    If there is no such file, the cache stays as it is. `Session.save` writes the file. The logits of the
    last token are not kept: they come with the next tokens, or the last token is read again.

    rebuild: if the file was saved by another model, scaling, cache or version, or is damaged, read its text
    again. This needs tokens that can be read and that mean the same to this model. progress(done, total) is
    called as tokens are restored or read. Raises SessionError, with the file as it was.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path  # the link stays when the file is written anew
    with llama.turns.between():  # refuses a Llama that was closed
        session = Session(llama, path)
    if not path.exists():
        check_writable(path)
        return session
    contents = session_file.read_contents(path)
    session.notes = contents.facts.get("notes")
    with llama.turns.take():
        try:
            session.restore(path, contents, progress)
        except SessionError:
            if not rebuild:
                raise
            session.rebuild(contents, progress)
    return session


# ----------------------------------------------------------------------------------------------


def _scale(llama: Llama) -> Scale:
    """Return the factor and rotations in force. If the pair is unchanged, cached keys were not rotated."""
    state = llama.dynamic_state
    return state.factor, state.rotations


def _check_room(path: Path, contents: Contents, llama: Llama) -> None:
    ends = [block.first + block.count for block in contents.blocks if block.used]
    needed = max([len(contents.tokens), *ends])
    if needed > llama.n_ctx():
        raise SessionError(
            f"{path}: {needed:,} tokens, and n_ctx is {llama.n_ctx():,}: open the model with an n_ctx (-c) "
            f"of {needed:,} or more"
        )


def _ranges(first: int, total: int, step: int, window: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of at most `step` tokens that do not cross a multiple of `window`."""
    while first < total:
        stop = min(first + step, total)
        if window:
            stop = min(stop, (first // window + 1) * window)
        yield first, stop
        first = stop


def _read_into(llama: Llama, path: Path, contents: Contents, progress: Progress | None) -> None:
    """Fill the empty cache. Every byte of the file is read and checked, whether it is needed or not."""
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
    text = llama.cached_text
    text.buffer[:total] = contents.tokens
    text.restore(total)
    text.has_scores = False
    llama.keep_factor()
    kv_state.check_cache(llama)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Add the file and the remedy to the library's reason."""
    try:
        yield
    except SessionError as error:
        raise SessionError(f"{path}: {error}: {AS_IT_WAS}") from error
