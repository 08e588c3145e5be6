"""Write a file so that whoever looks, at any moment, finds the old one or the new one, whole."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from yarn_gguf.errors import GGUFError, YarnGGUFError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_writable_folder(folder: Path) -> bool:
    """Return whether `folder` is a folder in which this process may create files."""
    return folder.is_dir() and os.access(folder, os.W_OK)


def require_replaceable(target: Path, inputs: Iterable[Path] = ()) -> None:
    """Before long work: raises YarnGGUFError for a file that `replacing` could not, or should not, write.

    inputs: files that are read meanwhile.
    """
    if not is_writable_folder(target.parent):
        raise YarnGGUFError(f"{target}: there is no folder {target.parent} that can be written to: make it")
    if target.exists() and not target.is_file():
        raise YarnGGUFError(f"{target} is there and no plain file: name another")
    if target.exists() and any(each.exists() and target.samefile(each) for each in inputs):
        raise YarnGGUFError(f"{target} is what is to be read: name another file to write to")


@contextmanager
def replacing(
    target: Path,
    size: int,
    like: Path | None = None,
    *,
    error: type[YarnGGUFError] = GGUFError,
    elsewhere: str = "write elsewhere with -o",
) -> Iterator[BinaryIO]:
    """A new file beside `target`, on the disk and renamed to it when the block ends well; else removed.

    Where `target` is a symbolic link, all this happens to the file that it leads to.

    size: bytes that it will have, for the error's sake. like: the file whose owner and mode it takes; None
    for those of any new file. Raises `error` where the system refuses, with `target` as it was.
    """
    target = target.resolve() if target.is_symlink() else target
    with clear_errors(target, size, error=error, elsewhere=elsewhere), _temporary(target) as file:
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
def clear_errors(
    target: Path,
    size: int,
    *,
    error: type[YarnGGUFError] = GGUFError,
    elsewhere: str = "write elsewhere with -o",
) -> Iterator[None]:
    """Turns an OSError into an `error` that names `target`, what happened to it, and the remedy."""
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


@contextmanager
def _temporary(target: Path) -> Iterator[BinaryIO]:
    with tempfile.NamedTemporaryFile(
        dir=target.parent, prefix=f".{target.name}.", suffix=".tmp", delete=False
    ) as file:
        try:
            yield file
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _umask() -> int:
    mask = os.umask(0o077)  # there is no other way to read it
    os.umask(mask)
    return mask


def _copy_owner_and_mode(source: Path, target: str) -> None:
    status = source.stat()
    with suppress(AttributeError, PermissionError):  # Windows has no such call; others need to be root
        os.chown(target, status.st_uid, status.st_gid)
    shutil.copymode(source, target)


def _sync_directory(directory: Path) -> None:
    with suppress(OSError):  # some systems and filesystems do not offer it; the file itself is safe
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
