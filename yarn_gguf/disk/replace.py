"""Replace a file atomically: at any moment a reader finds the old file or the new one, whole."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from yarn_gguf.errors import GGUFError, YarnGGUFError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_writable_folder(folder: Path) -> bool:
    """Return whether `folder` is a folder in which this process may create files."""
    return folder.is_dir() and os.access(folder, os.W_OK)


def require_replaceable(
    target: Path, inputs: Iterable[Path] = (), *, error: type[YarnGGUFError] = YarnGGUFError
) -> None:
    """Raise `error` if `replacing` could not, or should not, write `target`. Call it before long work.

    inputs: the files that the work reads.
    """
    if not is_writable_folder(target.parent):
        raise error(f"{target}: there is no folder {target.parent} that can be written to: make it")
    _require_plain_file(target, inputs, error)


def require_outputs(targets: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise YarnGGUFError, before long work, if a target is not replaceable, or two are the same file."""
    inputs = list(inputs)
    names: dict[str, Path] = {}
    for target in targets:
        require_replaceable(target, inputs)
        if (first := names.setdefault(os.path.realpath(target), target)) is not target:
            raise YarnGGUFError(f"{first} and {target} are the same file: give each output its own")


def replace_file(
    target: Path,
    data: bytes,
    inputs: Iterable[Path] = (),
    *,
    error: type[YarnGGUFError] = GGUFError,
    elsewhere: str = "write elsewhere with -o",
) -> None:
    """Write `data` to the file `target`, as `replacing` does."""
    with replacing(target, len(data), inputs=inputs, error=error, elsewhere=elsewhere) as file:
        file.write(data)


@contextmanager
def replacing(
    target: Path,
    size: int,
    like: Path | None = None,
    *,
    inputs: Iterable[Path] = (),
    error: type[YarnGGUFError] = GGUFError,
    elsewhere: str = "write elsewhere with -o",
) -> Iterator[IO[bytes]]:
    """Yield a new file beside `target`. When the block ends, sync it to the disk and rename it to `target`.

    If the block raises, remove the new file. If `target` is a symbolic link, replace the file behind it.
    Only a plain file is replaced: a device, a FIFO or a socket would be gone for everyone who uses it.
    size: bytes that the file will have; for the error.
    like: a file whose owner and mode the new one takes. None: those of any new file.
    inputs: files that the work reads; none of them is replaced.
    error, elsewhere: the exception, and the remedy that it names after "or".
    Raises `error` if `target` must not be replaced, or the system refuses. It is then unchanged.
    """
    _require_plain_file(target, inputs, error)
    target = target.resolve() if target.is_symlink() else target
    with explained_errors(target, size, error=error, elsewhere=elsewhere), _temporary(target) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()
        if like is None:
            Path(file.name).chmod(0o666 & ~_umask())
        else:
            _copy_owner_and_mode(like, file.name)
        Path(file.name).replace(target)
        _sync_directory(target.parent)


@contextmanager
def explained_errors(
    target: Path,
    size: int,
    *,
    error: type[YarnGGUFError] = GGUFError,
    elsewhere: str = "write elsewhere with -o",
) -> Iterator[None]:
    """Turn an OSError into an `error` that names `target`, what happened to it, and the remedy.

    size, elsewhere: as of `replacing`.
    """
    try:
        yield
    except OSError as cause:
        remedy = f"check the rights of its folder, or {elsewhere}"
        if cause.errno in _NO_ROOM:
            free = shutil.disk_usage(target.parent).free
            remedy = f"{size:,} bytes needed, {free:,} free: make room, or {elsewhere}"
        outcome = "it may be damaged" if cause.errno == errno.EIO else "nothing was changed"
        raise error(f"{target}: cannot be written ({cause.strerror}); {outcome}; {remedy}") from cause


# ----------------------------------------------------------------------------------------------


def _require_plain_file(target: Path, inputs: Iterable[Path], error: type[YarnGGUFError]) -> None:
    """Raise `error` if `target` exists, and is something else than a plain file, or one of the inputs."""
    real = Path(os.path.realpath(target))
    if os.path.lexists(real) and not real.is_file():  # a link that leads to itself is not resolved
        raise error(f"{target} is not a regular file: name another")
    if real.exists() and any(each.exists() and real.samefile(each) for each in inputs):
        raise error(f"{target} is also an input: name another file to write to")


@contextmanager
def _temporary(target: Path) -> Iterator[IO[bytes]]:
    with tempfile.NamedTemporaryFile(
        dir=target.parent, prefix=f".{target.name}.", suffix=".tmp", delete=False
    ) as file:
        try:
            yield file
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def _copy_owner_and_mode(source: Path, target: str) -> None:
    status = source.stat()
    with suppress(AttributeError, PermissionError):  # Windows lacks the call; elsewhere it needs root
        os.chown(target, status.st_uid, status.st_gid)
    shutil.copymode(source, target)


def _sync_directory(directory: Path) -> None:
    with suppress(OSError):  # some systems and filesystems cannot; the file itself is safe
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
