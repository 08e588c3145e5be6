"""Find, check and load the patched llama.cpp.

The bindings are llama-cpp-python's. They load the library in the folder that the environment variable
LLAMA_CPP_LIB_PATH names, once, when `llama_cpp` is first imported. So :func:`load` must come first.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from yarn_gguf import _version
from yarn_gguf.errors import NativeLibraryError
from yarn_gguf.native import prototypes
from yarn_gguf.native.log import install_callback

FOLDER_VARIABLE = "LLAMA_CPP_LIB_PATH"
REINSTALL = "reinstall yarn-gguf (pip install --force-reinstall yarn-gguf, or make setup in a source tree)"

_FILE_NAMES = {"win32": ("{}.dll", "lib{}.dll"), "darwin": ("lib{}.dylib", "lib{}.so")}


def library_folder() -> Path:
    """Return the folder of the native library: LLAMA_CPP_LIB_PATH if set, else the one in this package."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    package = sys.modules["yarn_gguf"]  # an editable install has two roots
    folders = [Path(root) / "lib" for root in package.__path__]
    return next((folder for folder in folders if _file_in(folder, "llama")), folders[0])


def load() -> ModuleType:
    """Load our library and return the module `llama_cpp`, bound to it. Raises NativeLibraryError."""
    folder = library_folder().resolve()
    _refuse_foreign_bindings(folder)
    if "llama_cpp" not in sys.modules:
        check_library(folder)
        os.environ[FOLDER_VARIABLE] = str(folder)
    try:
        llama_cpp = importlib.import_module("llama_cpp")
    except ImportError as error:
        raise NativeLibraryError(f"llama-cpp-python cannot be imported ({error}): {REINSTALL}") from error
    install_callback(llama_cpp)
    return llama_cpp


def check_library(folder: Path) -> None:
    """Raise NativeLibraryError if a folder's library is missing, unpatched or of another version."""
    path = _file_in(folder, "llama")
    if path is None:
        raise NativeLibraryError(f"no llama.cpp library in {folder}: {REINSTALL}{_variable_hint()}")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeLibraryError(
            f"{path} cannot be loaded ({error}): {REINSTALL}{_variable_hint()}"
        ) from error
    found = _exported_text(library, "yarn_gguf_patch_version")
    if found is None:
        raise NativeLibraryError(
            f"{path} is a llama.cpp without yarn-gguf's patches: {REINSTALL}{_variable_hint()}"
        )
    if found != _version.__version__:
        both = f"belongs to yarn-gguf {found}, this is {_version.__version__}"
        raise NativeLibraryError(f"{path} {both}: {REINSTALL}{_variable_hint()}")
    _check_bindings(path, _exported_text(library, "yarn_gguf_bindings_version"))


@cache
def library() -> ctypes.CDLL:
    """Return the patched libllama with the C types of the functions that our patches add."""
    return prototypes.declare_llama(_open("llama"))


@cache
def ggml() -> ctypes.CDLL:
    """Return the library of ggml's devices, with C types."""
    return prototypes.declare_ggml(_open("ggml"))


@cache
def ggml_base() -> ctypes.CDLL:
    """Return the library of ggml's tensor types, with C types."""
    return prototypes.declare_ggml_base(_open("ggml-base"))


# ----------------------------------------------------------------------------------------------


def _open(name: str) -> ctypes.CDLL:
    """Open a library, which may be loaded already. Calls into it release Python's global lock."""
    return ctypes.CDLL(str(_file_in(library_folder().resolve(), name)))


def _file_in(folder: Path, name: str) -> Path | None:
    names = [form.format(name) for form in _FILE_NAMES.get(sys.platform, ("lib{}.so",))]
    return next((folder / each for each in names if (folder / each).is_file()), None)


def _variable_hint() -> str:
    chosen = os.environ.get(FOLDER_VARIABLE)
    return f"; or unset {FOLDER_VARIABLE}, which is {chosen}" if chosen else ""


def _exported_text(library: ctypes.CDLL, name: str) -> str | None:
    function = getattr(library, name, None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    return function().decode()


def _check_bindings(path: Path, needed: str | None) -> None:
    try:
        installed = version("llama-cpp-python")
    except PackageNotFoundError as error:
        raise NativeLibraryError(f"llama-cpp-python is not installed: {REINSTALL}") from error
    if installed != needed:
        raise NativeLibraryError(
            f"{path} fits llama-cpp-python {needed}, but {installed} is installed: {REINSTALL}"
        )


def _refuse_foreign_bindings(folder: Path) -> None:
    bindings = sys.modules.get("llama_cpp.llama_cpp")
    if bindings is None:
        return
    loaded = Path(bindings._base_path).resolve()
    if loaded != folder:
        raise NativeLibraryError(
            f"llama_cpp was already imported with the library in {loaded}; yarn_gguf needs the one in "
            f"{folder}: import yarn_gguf.Llama before llama_cpp"
        )
