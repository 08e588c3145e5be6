"""The time to reopen a session, against reading its text and against llama-cpp-python's saved state.

    python benchmarks/session.py MODEL.gguf [--tokens 12288] [--rounds 7] [--threads N] [--text FILE]

One process reads the text, saves it as a session, and pickles llama_cpp.Llama.save_state. Then new processes
reopen both in turns, with the files in the system's cache. Prints medians and their ratios:
    restored      seconds from the loaded model to the restored cache
    first token   seconds from the loaded model to the first token of an answer
    process       seconds of the whole process
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
APPENDED = 256  # tokens


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that `work` takes, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def open_llama(args: argparse.Namespace, upstream: bool = False) -> Any:
    from yarn_gguf.run.llama import Llama, llama_cpp

    n_ctx = args.tokens + 2 * APPENDED
    kind = llama_cpp.Llama if upstream else Llama
    path = str(args.model)
    return kind(path, n_ctx=n_ctx, n_threads=args.threads, flash_attn=True, verbose=False)


def first_token(llama: Any) -> int:
    tokens = llama.input_ids[: llama.n_tokens].tolist()
    return next(llama.generate(tokens, temp=0.0))


def measure_read(args: argparse.Namespace) -> dict[str, Any]:
    """Read the text and write both files. Return times and sizes."""
    llama = open_llama(args)
    tokens = llama.tokenize(args.text.read_bytes())[: args.tokens + APPENDED]
    if len(tokens) < args.tokens + APPENDED:
        sys.exit(f"{args.text} has {len(tokens)} tokens: name a longer text with --text")

    def read() -> int:
        llama.prefill(tokens[: args.tokens])
        return first_token(llama)

    found: dict[str, Any] = {"restored": 0.0}
    found["first token"], found["token"] = seconds(read)
    from yarn_gguf import open_session

    session = open_session(llama, args.session)
    found["save"], _ = seconds(session.save)
    found["bytes"] = args.session.stat().st_size
    llama.prefill(tokens[args.tokens :])
    found["append"], _ = seconds(session.save)
    found["bytes appended"] = args.session.stat().st_size - found["bytes"]
    llama.n_tokens = args.tokens
    llama.input_ids[args.tokens :] = 0
    session.save()
    llama._ctx.kv_cache_seq_rm(-1, args.tokens, -1)

    def save_state() -> None:
        with args.state.open("wb") as file:
            pickle.dump(llama.save_state(), file, protocol=pickle.HIGHEST_PROTOCOL)
            os.fsync(file.fileno())

    found["save_state"], _ = seconds(save_state)
    found["bytes of state"] = args.state.stat().st_size
    return found


def measure_session(args: argparse.Namespace) -> dict[str, Any]:
    from yarn_gguf import open_session

    llama = open_llama(args)
    return measure_reopening(llama, lambda: open_session(llama, args.session))


def measure_state(args: argparse.Namespace) -> dict[str, Any]:
    llama = open_llama(args, upstream=True)

    def load_state() -> None:
        with args.state.open("rb") as file:
            llama.load_state(pickle.load(file))

    return measure_reopening(llama, load_state)


def measure_reopening(llama: Any, restore: Callable[[], Any]) -> dict[str, Any]:
    restored, _ = seconds(restore)
    answered, token = seconds(lambda: first_token(llama))
    return {"restored": restored, "first token": restored + answered, "token": token}


MEASURES = {"read": measure_read, "session": measure_session, "state": measure_state}


def in_new_process(args: argparse.Namespace, which: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, args.model, "--measure", which, "--folder", folder]
    command += ["--tokens", args.tokens, "--threads", args.threads, "--text", args.text]
    elapsed, done = seconds(lambda: subprocess.run([*map(str, command)], capture_output=True, text=True))
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout) | {"process": elapsed}


def measure_all(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory(dir=args.model.parent) as folder:
        rounds = {"read": [in_new_process(args, "read", Path(folder))], "session": [], "state": []}
        for _ in range(args.rounds):
            for which in ("session", "state"):
                rounds[which].append(in_new_process(args, which, Path(folder)))
    tokens = {each["token"] for runs in rounds.values() for each in runs}
    if len(tokens) != 1:
        sys.exit(f"the first tokens after reading, session and state differ: {tokens}")
    return rounds


def show(args: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]]) -> None:
    medians = {
        (which, key): statistics.median(each[key] for each in runs)
        for which, runs in rounds.items()
        for key in ("restored", "first token", "process")
    }
    columns = ("restored", "session takes", "first token", "session takes", "whole process", "session takes")
    table = Table("", *columns, title=f"{args.model.name}, {args.tokens:,} tokens, {args.rounds} rounds")
    labels = {"read": "reading the text", "state": "save_state, pickled", "session": "session"}
    for which, label in labels.items():
        row = [label]
        for key in ("restored", "first token", "process"):
            ratio = medians[which, key] / medians["session", key]
            is_compared = which != "session" and ratio > 0
            row += [f"{medians[which, key]:.3f} s", f"1/{ratio:.1f}" if is_compared else ""]
        table.add_row(*row)
    Console().print(table)
    read = rounds["read"][0]
    print(f"session: {read['bytes']:,} bytes, saved in {read['save']:.2f} s")
    print(f"{APPENDED} more tokens: {read['bytes appended']:,} bytes, appended in {read['append']:.2f} s")
    print(f"save_state: {read['bytes of state']:,} bytes, saved in {read['save_state']:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=12288)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--text", type=Path, default=ROOT / "examples" / "mansfield-park.txt")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)  # measure here
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.model = args.model.absolute()
    if args.measure is None:
        show(args, measure_all(args))
        return
    args.session, args.state = args.folder / "text.session", args.folder / "text.pickle"
    print(json.dumps(MEASURES[args.measure](args)))


if __name__ == "__main__":
    main()
