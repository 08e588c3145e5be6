"""The patched and the unpatched library, side by side, each in processes of its own."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
UNPATCHED = ROOT / "build" / "unpatched" / "install" / "yarn_gguf" / "lib"


def patched() -> Path:
    from yarn_gguf.native import library_folder

    return library_folder()


def run_python(library: Path | None, *args: str, input_text: str = "") -> subprocess.CompletedProcess:
    """A Python process with `library` as the llama.cpp of the bindings (None: not chosen)."""
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    if library is not None:
        environment["LLAMA_CPP_LIB_PATH"] = str(library)
    command = [sys.executable, *args]
    return subprocess.run(
        command, input=input_text, capture_output=True, text=True, env=environment, cwd=ROOT
    )


def logits(
    library: Path, model: Path, tokens: list[int], *, shifts: int = 0, distance: int = 64, **context
) -> np.ndarray:
    """What `library` computes for `tokens`: float32 (len(tokens), n_vocab), or the last row after shifts.

    context: fields of llama_context_params. Defaults: as many cells as needed, one thread count.
    """
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "logits.npy")
        settings = {
            "n_ctx": len(tokens) + distance + 64,
            "n_batch": 512,
            "n_threads": 2,
            "n_threads_batch": 2,
        } | context
        request = {
            "model": str(model),
            "tokens": tokens,
            "output": str(output),
            "context": settings,
            "shifts": shifts,
            "distance": distance,
        }
        done = run_python(library, str(ROOT / "tests" / "logits_worker.py"), input_text=json.dumps(request))
        assert done.returncode == 0, done.stderr[-2000:]
        return np.load(output)
