"""Read GGUF headers: literal bytes, files that the gguf package reads too, and damaged files."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_gguf import contents, write_tiny

from yarn_gguf.errors import GGUFError, YarnGGUFError
from yarn_gguf.gguf.header import ValueType, assemble, key_value, parse_header, read_header
from yarn_gguf.model_file.inspect import inspect_file

# a file with two keys and one F32 tensor of one number, byte for byte as gguf.h describes it
LITERAL = b"".join(
    [
        b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
        b"\x05\0\0\0\0\0\0\0n.one\x04\0\0\0\x2a\0\0\0",
        b"\x05\0\0\0\0\0\0\0words\x09\0\0\0\x08\0\0\0\x02\0\0\0\0\0\0\0",
        b"\x02\0\0\0\0\0\0\0ab\0\0\0\0\0\0\0\0",
        b"\x01\0\0\0\0\0\0\0t\x01\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ]
)
PADDED = LITERAL.ljust(128, b"\0")
FILE = PADDED + struct.pack("<f", 0.5)


def test_literal_bytes_are_read() -> None:
    header = parse_header(FILE, Path("literal.gguf"), len(FILE))
    assert (header.version, header.alignment, header.data_offset) == (3, 32, 128)
    assert {key: entry.value for key, entry in header.entries.items()} == {"n.one": 42, "words": ["ab", ""]}
    tensor = header.tensors["t"]
    assert (tensor.name, tensor.dims, tensor.type, tensor.offset) == ("t", (1,), 0, 0)


def test_assembled_header_has_the_literal_bytes() -> None:
    header = parse_header(FILE, Path("literal.gguf"), len(FILE))
    entries = [key_value("n.one", ValueType.UINT32, 42), header.entries["words"]]
    assert assemble(header, entries) == LITERAL


@pytest.mark.parametrize(
    ("type_", "value", "raw"),
    [
        (ValueType.UINT32, 7, b"\x01\0\0\0\0\0\0\0k\x04\0\0\0\x07\0\0\0"),
        (ValueType.FLOAT32, 0.5, b"\x01\0\0\0\0\0\0\0k\x06\0\0\0\0\0\0\x3f"),
        (ValueType.STRING, "é", b"\x01\0\0\0\0\0\0\0k\x08\0\0\0\x02\0\0\0\0\0\0\0\xc3\xa9"),
        (ValueType.ARRAY, b"\1\2", b"\x01\0\0\0\0\0\0\0k\x09\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\1\2"),
    ],
)
def test_key_values_have_the_format_s_bytes(type_: ValueType, value: object, raw: bytes) -> None:
    entry = key_value("k", type_, value)
    assert entry.raw == raw
    assert entry.value == ([1, 2] if type_ == ValueType.ARRAY else value)


def test_every_key_and_tensor_is_read_as_gguf_reads_it(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    header, reader = read_header(path), gguf.GGUFReader(path)
    assert {key: entry.value for key, entry in header.entries.items()} == contents(path)[0]
    assert header.data_offset == reader.data_offset
    assert [
        (each.name, each.dims, each.type, header.data_offset + each.offset)
        for each in header.tensors.values()
    ] == [(each.name, tuple(each.shape), each.tensor_type, each.data_offset) for each in reader.tensors]


def test_a_real_vocabulary_is_read_as_gguf_reads_it(smollm2_path: Path) -> None:
    header, reader = read_header(smollm2_path), gguf.GGUFReader(smollm2_path)
    assert header.data_offset == reader.data_offset
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"):
        assert header.entries[key].value == reader.fields[key].contents()


def test_a_custom_alignment_is_honoured(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", alignment=256)
    assert read_header(path).data_offset == gguf.GGUFReader(path).data_offset
    assert read_header(path).alignment == 256


def test_version_2_is_read() -> None:
    version_2 = FILE[:4] + b"\x02" + FILE[5:]
    assert parse_header(version_2, Path("old.gguf"), len(FILE)).entries["n.one"].value == 42


# ---- damaged files ---------------------------------------------------------------------------


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for size in range(len(FILE)):
        path.write_bytes(FILE[:size])
        with pytest.raises(GGUFError, match=r"cut\.gguf"):
            read_header(path)


def test_a_file_without_its_last_byte_says_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(FILE[:-1])
    with pytest.raises(GGUFError, match="cut short: 131 bytes, 132 needed; download it again"):
        read_header(path)


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value)


N_DIMS = LITERAL.index(b"t\x01\0\0\0") + 1


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (0, b"GGML", "no GGUF file: it begins with b'GGML'"),
        (4, _u32(0), "GGUF version 0"),
        (4, _u32(1), "GGUF version 1"),
        (4, _u32(4), "GGUF version 4"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, _u64(2**63), "2 keys and 9223372036854775808 tensors would need"),
        (16, _u64(2**40), "1099511627776 keys and 1 tensors would need"),
        (24, _u64(2**64 - 1), "key 1 of 2 would need"),
        (32, b"\xff", "the name of key 1 of 2 is no UTF-8"),
        (37, _u32(13), "the key 'n.one' is of the unknown type 13"),
        (45 + 8, b"n.one", "'n.one' is there twice"),
        (45 + 17, _u32(9), "array of arrays"),
        (45 + 21, _u64(2**62), "the key 'words' would need"),
        (45 + 29, _u64(2**63 + 5), "the key 'words' would need"),
        (N_DIMS, _u32(5), r"the tensor 't' has 5 dimensions"),
        (N_DIMS + 4, _u64(2**40), "cut short: 132 bytes, 4398046511232 needed"),
        (N_DIMS + 16, _u64(16), "no multiple of the alignment 32"),
        (N_DIMS + 16, _u64(2**62), "cut short"),
    ],
)
def test_damage_is_named(tmp_path: Path, at: int, new: bytes, message: str) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(FILE[:at] + new + FILE[at + len(new) :])
    with pytest.raises(GGUFError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "again" in str(caught.value) or "no GGUF file" in str(caught.value)


@pytest.mark.parametrize("alignment", [0, 24, 3])
def test_an_alignment_that_is_no_power_of_two_is_refused(tmp_path: Path, alignment: int) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", alignment=64)
    key = b"general.alignment" + _u32(ValueType.UINT32)
    path.write_bytes(path.read_bytes().replace(key + _u32(64), key + _u32(alignment)))
    with pytest.raises(GGUFError, match=rf"general\.alignment = {alignment}"):
        read_header(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.touch()
    with pytest.raises(GGUFError, match="is empty"):
        read_header(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("fuzz")
    keys = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__attn_factor": 1.5}
    return write_tiny(folder / "tiny.gguf", **keys).read_bytes()


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_raises_only_our_errors(tiny: bytes, tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(tiny)
    header_size = len(tiny) - 1100
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, header_size - 1))
        new = data.draw(st.binary(min_size=1, max_size=8))
        damaged[at : at + len(new)] = new
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(damaged[: data.draw(st.one_of(st.just(len(tiny)), st.integers(0, len(tiny))))])
    tracemalloc.start()
    try:
        inspect_file(path)
    except YarnGGUFError as error:
        assert str(path) in str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 10_000_000
