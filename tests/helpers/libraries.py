"""The patched and the unpatched library side by side, each in its own processes."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
HELPERS = ROOT / "tests" / "helpers"
PROGRAMS = ROOT / "tests" / "cpp" / "programs"
PROSE = ROOT / "examples" / "mansfield-park.txt"
WORKER = str(HELPERS / "logits_worker.py")
UNPATCHED = ROOT / "build" / "unpatched" / "install" / "yarn_gguf" / "lib"


def patched() -> Path:
    """Return the folder of the patched library."""
    from yarn_gguf.native.library import library_folder

    return library_folder()


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Return |got - expected| / |expected|, with L2 norms."""
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def run_python(
    library: Path | None, *args: str, input_text: str = "", variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run Python with ARGS. library: the folder of the llama.cpp of the bindings; None for their default.

    variables: more environment variables.
    """
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    if library is not None:
        environment["LLAMA_CPP_LIB_PATH"] = str(library)
    environment |= variables or {}
    command = [sys.executable, *args]
    return subprocess.run(
        command, input=input_text, capture_output=True, text=True, env=environment, cwd=ROOT
    )


def logits(
    library: Path,
    model: Path,
    tokens: list[int],
    *,
    shifts: int = 0,
    distance: int = 64,
    upstream_rope: bool = False,
    **context,
) -> np.ndarray:
    """Return the logits of `tokens` by `library`: float32 (len(tokens), n_vocab), the last row after shifts.

    shifts: round trips of the whole cache by `distance` positions, before the last token is read.
    upstream_rope: use upstream's arithmetic in the rope op.
    context: fields of llama_context_params; by default, cells for the tokens and 2 threads.
    """
    context = {"n_ctx": len(tokens) + distance + 64} | context
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "logits.npy")
        request = _request(model, tokens, output, context) | {"shifts": shifts, "distance": distance}
        variables = {"YARN_GGUF_UPSTREAM_ROPE": str(int(upstream_rope))}
        done = run_python(library, WORKER, input_text=json.dumps(request), variables=variables)
        assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout + done.stderr[-2000:]
        return np.load(output)


def _request(model: Path, tokens: list[int], output: Path, context: dict) -> dict:
    """Return a request to logits_worker.py without shifts."""
    settings = {"n_batch": 512, "n_threads": 2, "n_threads_batch": 2} | context
    return {
        "model": str(model),
        "tokens": tokens,
        "output": str(output),
        "context": settings,
        "shifts": 0,
        "table": None,
    }


def run_cli_on_a_full_disk(*arguments: object) -> subprocess.CompletedProcess:
    """Run yarn-gguf in a process that cannot write more than 500,000 bytes to a file."""

    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    command = "import sys; from yarn_gguf.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", command, *map(str, arguments)]
    return subprocess.run(command, preexec_fn=limit_file_size, capture_output=True, text=True)


class LibraryProcess:
    """A process that computes the logits of many models with `library`; a context manager."""

    def __init__(self, library: Path) -> None:
        self._library = library
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "LibraryProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate()

    def logits(
        self, model: Path, tokens: list[int], table: tuple | None = None, **context
    ) -> np.ndarray | None:
        """Return what logits() above does, or None if the library refuses the model or ends the process.

        table: frequencies, factor and attention factor that the caller sets; None for none.
        """
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch, "logits.npy")
            answer = self._ask(_request(model, tokens, output, context) | {"table": table})
            return np.load(output) if answer == "done" else None

    def _ask(self, request: dict) -> str:
        """Return the answer of the process, which is started if it does not run; "" if it ends."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"LLAMA_CPP_LIB_PATH": str(self._library)},
            )
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        if not answer:
            self._process.wait()
        return answer
