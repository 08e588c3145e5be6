"""Upstream's converter, out of the source package that the build has fetched."""

from __future__ import annotations

import tarfile
from pathlib import Path

_DOWNLOADS = Path(__file__).resolve().parent.parent.parent / "build" / "download"
_WANTED = ("/vendor/llama.cpp/conversion/", "/vendor/llama.cpp/convert_hf", "/vendor/llama.cpp/gguf-py/gguf/")


def unpack_converter(folder: Path) -> Path:
    """Unpack it into `folder`; gives the tree that holds convert_hf_to_gguf.py."""
    sdist = next(_DOWNLOADS.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(sdist) as archive:
        members = [each for each in archive if any(part in each.name for part in _WANTED)]
        archive.extractall(folder, members, filter="data")
    return next(folder.glob("*/vendor/llama.cpp"))
