"""The file of a session: blocks of cached keys and values, and an index of them.

    header    magic, format, checksum, offset and length of the index; a checksum of the header
    blocks    cached keys and values in the library's format; earlier indices between them
    index     length and text of a JSON object, then the tokens (int32)

All numbers are little-endian. The header is written last, in one small write: until then the file is what it
was. Bytes behind the header's index are the rest of an interrupted write. The index has the size and checksum
of everything between header and index, so that no byte goes unchecked.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from io import FileIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from yarn_gguf.disk.fingerprint import token_digest
from yarn_gguf.disk.replace import explained_errors, replacing
from yarn_gguf.errors import SessionError

MAGIC, FORMAT = b"YARNSESS", 1

_HEADER = struct.Struct("<8sIIQQ")  # magic, format, checksum, offset and length of the index
_CHECKSUM = struct.Struct("<I")
START = _HEADER.size + _CHECKSUM.size  # offset of the first block
_PAGE = 512  # words of 8 bytes; one sum for each page
_DAMAGED = "the file is damaged: with rebuild (--rebuild) its text is read anew"
_ELSEWHERE = "save the session elsewhere"


@dataclass(frozen=True)
class Block:
    """A stretch of the file: the cached keys and values of some tokens, or bytes that nobody needs any more.

    size: bytes. first, count: the tokens in it. used: the number of these that the session still needs.
    """

    size: int
    checksum: int
    first: int = 0
    count: int = 0
    used: int = 0

    @property
    def wasted(self) -> int:
        """The bytes of tokens that the session does not need, approximately."""
        return self.size - self.size * self.used // max(self.count, 1)


@dataclass(frozen=True)
class Contents:
    """The index of a file.

    identity: everything that the blocks depend on. facts: for people, and for reading the tokens again.
    header: as it is in the file.
    """

    identity: dict[str, Any]
    facts: dict[str, Any]
    tokens: np.ndarray
    blocks: tuple[Block, ...] = ()
    header: bytes = b""

    @property
    def index_at(self) -> int:
        """The offset of the index in the file, in bytes."""
        return START + sum(block.size for block in self.blocks)

    def cut(self, length: int) -> Contents:
        """Return the contents with the first `length` tokens alone. All blocks stay, for their checksums."""
        blocks = tuple(
            replace(block, used=min(block.used, max(0, length - block.first))) for block in self.blocks
        )
        return replace(self, tokens=self.tokens[:length], blocks=blocks)


def notes_of_text(notes: Any, tokens: Sequence[int]) -> dict[str, Any]:
    """Return `notes` if their "text" is the digest of exactly these tokens; else nothing."""
    is_ours = isinstance(notes, dict) and notes.get("text") == token_digest(tokens)
    return notes if is_ours else {}


def checksum(data: Any) -> int:
    """Return the CRC-32 of the sums of all whole pages, and of the rest. It is as fast as memory.

    A change within one word always changes it. It does not protect from forgery.
    """
    data = np.frombuffer(data, np.uint8)
    whole = len(data) - len(data) % (8 * _PAGE)
    sums = np.add.reduce(data[:whole].view("<u8").reshape(-1, _PAGE), axis=1)
    return zlib.crc32(data[whole:], zlib.crc32(sums.astype("<u8")))


def read_header(path: Path) -> bytes:
    """Return the header of the file, unchecked. Raises SessionError for no plain file, OSError."""
    _require_plain_file(path)
    with path.open("rb") as file:
        return file.read(START)


def read_contents(path: Path) -> Contents:
    """Read and check the index of the file; no block is read. Raises SessionError, OSError."""
    _require_plain_file(path)
    with path.open("rb") as file:
        header = file.read(START)
        offset, length, expected = _parse_header(path, header)
        if os.fstat(file.fileno()).st_size < offset + length:
            raise SessionError(
                f"{path}: the file is cut off, and with its index its tokens are lost: begin anew"
            )
        file.seek(offset)
        index = file.read(length)
    if checksum(index) != expected:
        raise SessionError(f"{path}: the index is damaged, and with it the tokens are lost: begin anew")
    size = _CHECKSUM.unpack_from(index)[0]
    text = json.loads(index[_CHECKSUM.size : _CHECKSUM.size + size])
    return Contents(
        text["identity"],
        text["facts"],
        np.frombuffer(index, "<i4", offset=_CHECKSUM.size + size).astype(np.intc),
        tuple(Block(**block) for block in text["blocks"]),
        header,
    )


def read_blocks(path: Path, contents: Contents) -> Iterator[tuple[Block, np.ndarray]]:
    """Yield every block and its checked bytes. The next block is read meanwhile.

    The bytes are overwritten when the next but one is asked for. Raises SessionError.
    """
    most = max((block.size for block in contents.blocks), default=0)
    buffers = np.empty((2, most), np.uint8)
    with _unreadable(path), path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as reader:
        if file.read(START) != contents.header:
            raise SessionError(f"{path}: the file changed while it was read: try again")
        reading = None
        for number, block in enumerate(contents.blocks):
            following = reader.submit(_read_block, file, block, buffers[number % 2, : block.size])
            if reading:
                yield reading.result()
            reading = following
        if reading:
            yield reading.result()


def write(path: Path, contents: Contents, size: int, blocks: Iterable[tuple[Block, np.ndarray]]) -> Contents:
    """Write a file of these blocks in the place of `path` (atomic replace).

    size: bytes, approximately. Owner and mode stay. Raises SessionError, with `path` as it was.
    """
    like = path if path.exists() else None
    with replacing(path, size, like, error=SessionError, elsewhere=_ELSEWHERE) as file:
        file.write(bytes(START))
        contents = _write_blocks(file, replace(contents, blocks=()), blocks)
        file.seek(0)
        file.write(contents.header)
    return contents


def append(
    path: Path, old: Contents, new: Contents, size: int, blocks: Iterable[tuple[Block, np.ndarray]]
) -> Contents:
    """Write `blocks` and the index of `new` behind the index of `old`, which holds until all is written.

    new: its blocks are the old ones, cut, that still hold. Raises SessionError, with `path` as it was.
    """
    with (
        explained_errors(path, size, error=SessionError, elsewhere=_ELSEWHERE),
        path.open("r+b", buffering=0) as file,
    ):
        offset, length, expected = _parse_header(path, old.header)
        end = offset + length
        try:
            file.truncate(end)
            file.seek(end)
            contents = replace(new, blocks=(*new.blocks, Block(length, expected)))
            contents = _write_blocks(file, contents, blocks)
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)
            raise
        file.seek(0)
        file.write(contents.header)
        os.fsync(file.fileno())
    return contents


# ----------------------------------------------------------------------------------------------


def _require_plain_file(path: Path) -> None:
    """Raise SessionError for a FIFO, whose reader would wait for ever, and other things that are no files."""
    if path.exists() and not path.is_file():
        raise SessionError(f"{path} is no plain file: name another")


def _read_block(file: FileIO, block: Block, data: np.ndarray) -> tuple[Block, np.ndarray]:
    if _fill(file, data) != block.size or checksum(data) != block.checksum:
        at = "the keys and values of the tokens" if block.count else "what is no longer needed"
        raise SessionError(f"{file.name}: {at} from {block.first:,} on: {_DAMAGED}")
    return block, data


def _parse_header(path: Path, header: bytes) -> tuple[int, int, int]:
    """Return offset, length and checksum of the index."""
    if not header.startswith(MAGIC):
        raise SessionError(f"{path}: this is no file of a session, or its beginning is damaged: name another")
    fields, check = header[: _HEADER.size], header[_HEADER.size :]
    if len(header) < START or zlib.crc32(fields) != _CHECKSUM.unpack(check)[0]:
        raise SessionError(f"{path}: the header is damaged, and with it the tokens are lost: begin anew")
    _, format_, expected, offset, length = _HEADER.unpack(fields)
    if format_ != FORMAT:
        raise SessionError(
            f"{path}: a session of format {format_}, and this yarn-gguf reads {FORMAT}: "
            "use the version that it was saved by, or begin anew"
        )
    return offset, length, expected


def _write_blocks(
    file: IO[bytes], contents: Contents, blocks: Iterable[tuple[Block, np.ndarray]]
) -> Contents:
    """Write blocks and index at the file's position. The header of the result is still to be written."""
    for block, data in blocks:
        _write_all(file, data)
        contents = replace(contents, blocks=(*contents.blocks, replace(block, checksum=checksum(data))))
    index = _index(contents)
    _write_all(file, index)
    header = _HEADER.pack(MAGIC, FORMAT, checksum(index), contents.index_at, len(index))
    return replace(contents, header=header + _CHECKSUM.pack(zlib.crc32(header)))


def _index(contents: Contents) -> bytes:
    blocks = [asdict(block) for block in contents.blocks]
    text = json.dumps({"identity": contents.identity, "facts": contents.facts, "blocks": blocks}).encode()
    return _CHECKSUM.pack(len(text)) + text + contents.tokens.astype("<i4").tobytes()


def _write_all(file: IO[bytes], data: Any) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    """Turn an error of the disk into SessionError: it is damage, too."""
    try:
        yield
    except OSError as error:
        raise SessionError(f"{path}: cannot be read ({error.strerror}): {_DAMAGED}") from error


def _fill(file: FileIO, data: np.ndarray) -> int:
    """Read into all of `data`; return the bytes that the file had."""
    done = 0
    while done < len(data) and (count := file.readinto(data[done:].data)):
        done += count
    return done
