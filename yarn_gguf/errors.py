"""The exceptions of yarn_gguf.

All derive from :class:`YarnGGUFError`. A message names the file, the key and the value at fault, as far as
they exist, and the remedy.
"""

from collections import Counter
from collections.abc import Iterable


class YarnGGUFError(Exception):
    """Base class of every error that this package raises on purpose."""


class RopeScalingError(YarnGGUFError, ValueError):
    """A rope scaling makes no sense, or the model, the file or the library cannot have it."""


class GGUFError(YarnGGUFError, ValueError):
    """A GGUF file is damaged, is of an unknown version, lacks something, or cannot be written."""


class ConversionError(YarnGGUFError, ValueError):
    """A checkpoint is damaged, is of an unknown architecture, or does not fit in GGUF."""


class OtherModelError(ConversionError):
    """A checkpoint makes another model than the one in a GGUF file: other tensors, or other shapes."""


class NativeLibraryError(YarnGGUFError, ImportError):
    """The patched llama.cpp library is missing, unpatched, or of the wrong version."""


class ModelLoadError(YarnGGUFError, ValueError):
    """The native library refused a model or a context. The message carries its reason."""


class SessionError(YarnGGUFError, ValueError):
    """A session's file is damaged, or was saved by another model, scaling, cache or version."""


class NoRoomError(YarnGGUFError):
    """There are more tokens than the context has room for. None of them was read."""


class Cancelled(YarnGGUFError):  # noqa: N818  (not an error)
    """A request was cancelled, or another request took its place. Nothing failed, and nothing is damaged."""


class ReplacedScalingWarning(UserWarning):
    """The caller's rope scaling takes the place of one that the model was trained with."""


class LongFactorsWarning(UserWarning):
    """A context computes short texts with LongRoPE's factors for long ones, as llama.cpp does."""


def require_once(values: Iterable[str], option: str) -> None:
    """Raise YarnGGUFError if a value of the command-line option `option` was given twice."""
    for value, count in Counter(values).items():
        if count > 1:
            raise YarnGGUFError(f"{option}: {value} is there {count} times: give each once")


def not_utf8(source: object, error: UnicodeDecodeError) -> YarnGGUFError:
    """Return the error for bytes from `source` that are not UTF-8."""
    return YarnGGUFError(f"{source} is no UTF-8 text (byte {error.start}): convert it first")


def message_of(error: Exception) -> str:
    """Return the message for the user. For a system error on a file: the file's name and the reason."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
