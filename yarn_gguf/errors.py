"""The exceptions of yarn_gguf.

All derive from :class:`YarnGGUFError`. Every message names the file, the key and the value that are
at fault wherever there are such, and the remedy.
"""

from collections import Counter
from collections.abc import Iterable


class YarnGGUFError(Exception):
    """Base of every error that this package raises on purpose."""


class RopeScalingError(YarnGGUFError, ValueError):
    """A rope scaling that makes no sense, or that is asked for where it cannot be had."""


class GGUFError(YarnGGUFError, ValueError):
    """A GGUF file that is damaged, of an unknown version, or lacks what is needed."""


class ConversionError(YarnGGUFError, ValueError):
    """A checkpoint that is damaged, of an unknown architecture, or does not fit in GGUF."""


class NativeLibraryError(YarnGGUFError, ImportError):
    """The patched llama.cpp library is missing, unpatched, or of the wrong version."""


class ModelLoadError(YarnGGUFError, ValueError):
    """The native library refused a model or a context; the message carries its reason."""


class SessionError(YarnGGUFError, ValueError):
    """A session's file that is damaged, or that was saved by another model, scaling, cache or version."""


class NoRoomError(YarnGGUFError):
    """More tokens than are left of the context. Nothing was read of them."""


class Cancelled(YarnGGUFError):  # noqa: N818  (it is no error)
    """A request that was cancelled, or cut off by another: no failure, and nothing is damaged."""


def require_once(values: Iterable[str], option: str) -> None:
    """Raises YarnGGUFError for a value of `option` that is there twice."""
    for value, count in Counter(values).items():
        if count > 1:
            raise YarnGGUFError(f"{option}: {value} is there {count} times: give each once")


def not_utf8(source: object, error: UnicodeDecodeError) -> YarnGGUFError:
    """Of a text from `source` that is none."""
    return YarnGGUFError(f"{source} is no UTF-8 text (byte {error.start}): convert it first")


def words_of(error: Exception) -> str:
    """Of the system's errors, the file and what is wrong with it; of all others, what they say."""
    is_of_a_file = isinstance(error, OSError) and error.filename is not None and error.strerror
    return f"{error.filename}: {error.strerror}" if is_of_a_file else str(error)
