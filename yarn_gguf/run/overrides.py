"""kv_overrides: values that a caller puts in the place of a file's keys while the model is loaded."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from yarn_gguf.errors import ModelLoadError
from yarn_gguf.gguf.header import Header, KeyValue, ValueType, key_value
from yarn_gguf.native.log import overheard
from yarn_gguf.rope.gguf_keys import owned_keys
from yarn_gguf.rope.read import model_of

Override = bool | int | float | str

_FLOATS = (ValueType.FLOAT32, ValueType.FLOAT64)
_KINDS = {ValueType.BOOL: bool, ValueType.STRING: str, **dict.fromkeys(_FLOATS, float)}  # others: int
_OF_MISSING = {bool: ValueType.BOOL, int: ValueType.UINT32, float: ValueType.FLOAT32, str: ValueType.STRING}
_EXAMPLES = {bool: "True", int: "8192", float: "8192.0", str: "'text'"}

# llama_model_loader::validate_override logs these
_TAKEN = re.compile(r"Using metadata override \(.*?\) '(.*)' =")
_OF_WRONG_TYPE = re.compile(r"Bad metadata override type for key '(.*)', expected (\w+) but got (\w+)")


def overridden(header: Header, overrides: Mapping[str, Override] | None) -> Header:
    """Return the header of a file as if it had these values.

    Raises ModelLoadError for a value of another type than the file's, or one that the type cannot hold.
    """
    if not overrides:
        return header
    changed = {key: _entry(header, key, value) for key, value in overrides.items()}
    return replace(header, entries={**header.entries, **changed})


@contextmanager
def taken_by_the_library(header: Header, overrides: Mapping[str, Override] | None) -> Iterator[None]:
    """Raise ModelLoadError after a load in which the library did not take every override."""
    with overheard("metadata override") as lines:
        yield
    text = "\n".join(lines)
    for key, expected, _ in _OF_WRONG_TYPE.findall(text):
        value = (overrides or {})[key]
        raise ModelLoadError(f"kv_overrides: {key} = {value!r}: llama.cpp reads a value of type {expected}")
    unused = (overrides or {}).keys() - set(_TAKEN.findall(text))
    if unused and not unused <= (own := owned_keys(model_of(header))):
        raise ModelLoadError(
            f"kv_overrides: {min(unused - own)}: llama.cpp reads no such key of {header.path}: check its name"
        )


def _entry(header: Header, key: str, value: Override) -> KeyValue:
    given = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    if given is None:
        raise ModelLoadError(f"kv_overrides: {key} must be a bool, an int, a float or a str, got {value!r}")
    old = header.entries.get(key)
    if old is not None and old.type == ValueType.ARRAY:
        raise ModelLoadError(f"kv_overrides: {key} is a list in {header.path}: no single value replaces it")
    expected = given if old is None else _KINDS.get(old.type, int)
    if given is not expected:
        raise ModelLoadError(
            f"kv_overrides: {key} is of type {expected.__name__} in {header.path}, got {value!r}: "
            f"write it like {_EXAMPLES[expected]}"
        )
    type_ = _OF_MISSING[given] if old is None else old.type
    try:
        return key_value(key, type_, value)
    except (struct.error, OverflowError) as error:
        raise ModelLoadError(f"kv_overrides: {key} = {value!r} is no {type_.name}") from error
