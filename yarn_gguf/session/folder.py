"""A folder of sessions: it finds the longest prefix of a text, and keeps within a limit of bytes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from yarn_gguf.errors import SessionError
from yarn_gguf.progress import Progress
from yarn_gguf.run.cached_text import common_prefix
from yarn_gguf.run.llama import Llama
from yarn_gguf.session import kv_state
from yarn_gguf.session.file import Contents, read_contents
from yarn_gguf.session.lock import lock, remove_all_leftovers
from yarn_gguf.session.session import Session

SUFFIX = ".session"


class SessionFolder:
    """Sessions of any models, side by side in a folder.

    folder: made if need be. max_bytes: of all sessions together. Whoever saves beyond it removes the sessions
    that were not used for the longest time, by the files' time of modification. The one just saved stays,
    whatever its size.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)

    def open(self, llama: Llama, tokens: Sequence[int], progress: Progress | None = None) -> Session:
        """Restore the longest prefix of `tokens` that any session has. llama.cached_text is that prefix.

        To go on: llama.prefill(tokens[len(llama.cached_text):]). The session that was found is returned if
        `tokens` begin with all of it. Otherwise a new one is, and the other stays as it is. If none is found,
        the cache is emptied. Damaged files are passed over. Raises SessionError, OSError.
        """
        llama.reset()
        for path, contents in self._candidates(llama, tokens):
            with suppress(SessionError, FileNotFoundError):  # of another model, damaged, or removed meanwhile
                is_whole = len(contents.tokens) == len(read_contents(path).tokens)
                session = self._session(llama, path if is_whole else None)
                session.restore(path, contents, progress)
                session.notes = contents.facts.get("notes") if is_whole else None
                os.utime(path)
                return session
        return self._session(llama, None)

    def evict(self, kept: Path) -> None:
        """Remove sessions, the longest unused first, until all take at most max_bytes."""
        with lock(self.folder) as is_locked:
            if is_locked:
                remove_all_leftovers(self.folder, SUFFIX)
            by_use = sorted(self._files(), key=lambda file: file[1].st_mtime_ns)
            total = sum(status.st_size for _, status in by_use)
            for path, status in by_use:
                if total > self.max_bytes and path != kept:
                    path.unlink(missing_ok=True)
                    total -= status.st_size

    def _candidates(self, llama: Llama, tokens: Sequence[int]) -> list[tuple[Path, Contents]]:
        """Return the sessions, cut to their common beginning with `tokens`, the longest first."""
        wanted = np.asarray(tokens, np.intc)
        found = []
        for path, _ in self._files():
            with suppress(SessionError, FileNotFoundError):
                contents = read_contents(path)
                length = common_prefix(contents.tokens, wanted)
                can_cut = kv_state.is_divisible(llama) or length == len(contents.tokens)
                if length and can_cut:
                    found.append((path, contents.cut(length)))
        return sorted(found, key=lambda each: len(each[1].tokens), reverse=True)

    def _session(self, llama: Llama, path: Path | None) -> Session:
        path = path or self.folder / f"{uuid.uuid4().hex}{SUFFIX}"
        return Session(llama, path, after_save=lambda: self.evict(kept=path))

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        files = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):
                files.append((path, path.stat()))
        return files
