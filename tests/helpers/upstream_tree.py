"""The pinned source package that the build has fetched, and upstream's converter out of it."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent.parent
_WANTED = (
    *("/vendor/llama.cpp/conversion/", "/vendor/llama.cpp/gguf-py/gguf/"),
    *("/vendor/llama.cpp/convert_hf", "/vendor/llama.cpp/convert_lora"),
)


def pinned_sdist() -> Path:
    """The path of the source package of llama-cpp-python that cpp_patches/LLAMA_CPP_VERSION names."""
    pin = (_ROOT / "cpp_patches" / "LLAMA_CPP_VERSION").read_text()
    version = re.search(r"^version=(.*)$", pin, re.MULTILINE)[1]
    return _ROOT / "build" / "download" / f"llama_cpp_python-{version}.tar.gz"


def pinned_tree() -> Path:
    """The path of the llama.cpp tree that the build has unpacked from it."""
    name = pinned_sdist().name.removesuffix(".tar.gz")
    return pinned_sdist().with_name(name) / "vendor" / "llama.cpp"


def patched_tree() -> Path:
    """The path of the patched llama.cpp tree. Raises FileNotFoundError if there is no build."""
    found = sorted(_ROOT.glob("build/py3-*/llama.cpp"))
    if not found:
        raise FileNotFoundError(f"{_ROOT / 'build'} has no patched tree: run `make setup` first")
    return found[0]


def unpack_converter(folder: Path) -> Path:
    """Unpack upstream's converters into `folder`; return the tree that holds convert_hf_to_gguf.py."""
    with tarfile.open(pinned_sdist()) as archive:
        members = [each for each in archive if any(part in each.name for part in _WANTED)]
        archive.extractall(folder, members, filter="data")
    return next(folder.glob("*/vendor/llama.cpp"))
