"""yarn-gguf: extend the context of rotary language models, and run them, with a patched llama.cpp."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from yarn_gguf.dynamic import DynamicScaling
from yarn_gguf.errors import (
    Cancelled,
    GGUFError,
    ModelLoadError,
    NativeLibraryError,
    NoRoomError,
    RopeScalingError,
    SessionError,
    YarnGGUFError,
)
from yarn_gguf.extend import extend
from yarn_gguf.rope import RopeFrequencies, RopeScaling

if TYPE_CHECKING:
    from yarn_gguf.llama import Llama

try:
    __version__ = version("yarn-gguf")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = [
    "Cancelled",
    "DynamicScaling",
    "GGUFError",
    "Llama",
    "ModelLoadError",
    "NativeLibraryError",
    "NoRoomError",
    "RopeFrequencies",
    "RopeScaling",
    "RopeScalingError",
    "SessionError",
    "YarnGGUFError",
    "__version__",
    "extend",
]


def __getattr__(name: str) -> object:
    if name == "Llama":  # loads the native library: only when it is used
        from yarn_gguf.llama import Llama

        return Llama
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
