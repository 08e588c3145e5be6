"""yarn-gguf: extend the context of rotary language models, and run them, with a patched llama.cpp."""

import importlib
from typing import TYPE_CHECKING

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
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.hf_rope import scaling_from_hf
from yarn_gguf.rope.read import scaling_from_gguf
from yarn_gguf.rope.scaling import RopeFrequencies, RopeScaling

if TYPE_CHECKING:
    from yarn_gguf._version import __version__
    from yarn_gguf.model_file.extend import extend
    from yarn_gguf.run.llama import Llama
    from yarn_gguf.session.conversation import Conversation
    from yarn_gguf.session.folder import SessionFolder
    from yarn_gguf.session.session import open_session

_LATE = {  # imported when they are first used, as they load the library or much else
    "Conversation": "yarn_gguf.session.conversation",
    "Llama": "yarn_gguf.run.llama",
    "SessionFolder": "yarn_gguf.session.folder",
    "__version__": "yarn_gguf._version",
    "extend": "yarn_gguf.model_file.extend",
    "open_session": "yarn_gguf.session.session",
}

__all__ = [
    "Cancelled",
    "Conversation",
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
    "SessionFolder",
    "YarnGGUFError",
    "__version__",
    "extend",
    "open_session",
    "scaling_from_gguf",
    "scaling_from_hf",
]


def __getattr__(name: str) -> object:
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
