"""Twelve long texts from Debian packages: novels, a dictionary, a manual.

    python benchmarks/texts.py FOLDER

Needs apt-get and dpkg-deb (nothing is installed), and the package rdata. Each text has 230,000 characters:
more than 49,152 tokens of SmolLM2.
"""

from __future__ import annotations

import argparse
import gzip
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import rdata

PACKAGES = ("r-cran-janeaustenr", "jargon-text", "debian-reference-en")
LENGTH = 230_000  # characters


def unpack(folder: Path) -> None:
    subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=folder, check=True)
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)


def novels(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and text of each data set in an R package's lazy-load database."""
    data = folder / "usr/lib/R/site-library/janeaustenr/data/Rdata"
    index = rdata.conversion.convert(rdata.parser.parse_data(data.with_suffix(".rdx").read_bytes()))
    content = data.with_suffix(".rdb").read_bytes()
    for name, (offset, length) in index["variables"].items():
        piece = content[int(offset) + 4 : int(offset) + int(length)]  # after 4 bytes with the size
        lines = rdata.conversion.convert(rdata.parser.parse_data(zlib.decompress(piece)))
        yield name, "\n".join(lines)


def excerpts(folder: Path) -> Iterator[tuple[str, str]]:
    for name, text in novels(folder):
        yield name, text[:LENGTH]
        if name in ("emma", "mansfieldpark"):
            yield f"{name}-middle", text[len(text) // 2 :][:LENGTH]
    for path in ("doc/jargon-text/jargon.txt.gz", "debian-reference/debian-reference.en.txt.gz"):
        text = gzip.decompress((folder / "usr/share" / path).read_bytes()).decode("utf-8", "replace")
        name = Path(path).name.split(".")[0]
        for third in (1, 2):
            yield f"{name}-{third}", text[third * len(text) // 3 :][:LENGTH]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        unpack(Path(scratch))
        for name, text in excerpts(Path(scratch)):
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
