"""yarn-gguf run: read a prompt, however long, and stream what the model says next."""

from __future__ import annotations

import argparse
import math
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from yarn_gguf.cli.progress import reading_progress
from yarn_gguf.dynamic import POLICIES, DynamicScaling
from yarn_gguf.errors import RopeScalingError, YarnGGUFError, not_utf8
from yarn_gguf.gguf_rope import read_model

if TYPE_CHECKING:
    from yarn_gguf.llama import Llama
    from yarn_gguf.session import Session

HELP = "read a prompt, however long, and stream what the model says next"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="the GGUF file")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt")
    prompt.add_argument("-f", "--file", metavar="FILE", type=Path, help="read the prompt from FILE")
    prompt.add_argument("-", dest="stdin", action="store_true", help="read the prompt from standard input")
    parser.add_argument(
        "-n", "--max-tokens", type=_positive, default=256, help="tokens to generate (default 256)"
    )
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, without the chat template"
    )
    parser.add_argument(
        "-c", "--ctx-size", type=_positive, help="context in tokens (default: prompt and answer)"
    )
    parser.add_argument(
        "--temp", type=_temperature, default=0.0, help="sampling temperature (default 0: greedy)"
    )
    parser.add_argument("--seed", type=int, default=0, help="sampling seed")
    parser.add_argument("-t", "--threads", type=int, help="threads (default: all cores)")
    parser.add_argument("-ngl", "--gpu-layers", type=int, default=-1, help="layers on the GPU (default: all)")
    parser.add_argument(
        "--rope-scaling",
        choices=["none", "linear", "ntk", "by-parts", "yarn"],
        help="override the file, with the factor that makes the context fit",
    )
    parser.add_argument(
        "--dynamic",
        nargs="?",
        const="growth",
        choices=POLICIES,
        help="let the factor follow the length of the text (default policy: growth; default method: yarn)",
    )
    parser.add_argument(
        "--session",
        type=Path,
        metavar="FILE",
        help="go on from what FILE has of earlier runs, with the prompt as the next message, and save to it",
    )
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="if FILE suits model and options no more, or is damaged, read its text again",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the native library's log")


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be a whole number > 0, got {text}")
    return value


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number >= 0, got {text}")
    return value


def main(args: argparse.Namespace) -> None:
    from yarn_gguf.llama import Llama  # loads the native library

    console = Console(stderr=True)
    if args.rebuild and args.session is None:
        raise YarnGGUFError("--rebuild is about the file of a session: give --session FILE")
    earlier, wanted = _earlier(args)
    tokens = _tokens(args, is_first=not earlier)
    if not tokens:
        raise YarnGGUFError("the prompt is empty: give a text to go on from")
    total = earlier + len(tokens)
    n_ctx = args.ctx_size or max(wanted, total + args.max_tokens)
    if total >= n_ctx:
        raise YarnGGUFError(f"the prompt has {total} tokens, which --ctx-size {n_ctx} cannot hold")
    _warn_beyond_context(args, n_ctx, console)
    with closing(
        Llama(
            args.model,
            rope_scaling=_scaling(args),
            n_ctx=n_ctx,
            n_threads=args.threads or os.cpu_count(),
            n_gpu_layers=args.gpu_layers,
            flash_attn=True,
            seed=args.seed,
            verbose=args.verbose,
        )
    ) as llama:
        session = _open_session(args, llama, console)
        if isinstance(llama.rope_scaling, DynamicScaling) and llama.rope_scaling.policy == "request":
            llama.reserve(total + args.max_tokens)
        with reading_progress(console) as report:
            llama.prefill(tokens, report)
        if session is not None:
            session.save()  # what was read is not lost if the answer is interrupted
        _answer(args, llama)
        if session is not None:
            session.save()


def _earlier(args: argparse.Namespace) -> tuple[int, int]:
    """Of the session that is gone on with: tokens, and the context that it was made with."""
    if args.session is None or not args.session.exists():
        return 0, 0
    from yarn_gguf.session_file import read_contents

    contents = read_contents(args.session)
    return len(contents.tokens), contents.facts["n_ctx"]


def _tokens(args: argparse.Namespace, is_first: bool) -> list[int]:
    from yarn_gguf.prompt import next_turn_tokens, prompt_tokens

    as_tokens = prompt_tokens if is_first else next_turn_tokens
    return as_tokens(args.model, _read_prompt(args), chat=not args.raw)


def _open_session(args: argparse.Namespace, llama: Llama, console: Console) -> Session | None:
    if args.session is None:
        return None
    with reading_progress(console, "restoring") as report:
        return llama.open_session(args.session, rebuild=args.rebuild, progress=report)


def _answer(args: argparse.Namespace, llama: Llama) -> None:
    tokens = llama.input_ids[: llama.n_tokens].tolist()
    for part in llama.create_completion(
        tokens, max_tokens=args.max_tokens, temperature=args.temp, stream=True
    ):
        print(part["choices"][0]["text"], end="", flush=True)
    print()
    if part["choices"][0]["finish_reason"] == "length" and llama.n_tokens < llama.n_ctx():
        llama.eval([llama.last_sampled])  # the answer's last token, which the next message comes after


def _scaling(args: argparse.Namespace) -> str | DynamicScaling | None:
    if args.dynamic is None:
        return args.rope_scaling
    return DynamicScaling(args.rope_scaling or "yarn", args.dynamic)


def _read_prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        return args.prompt
    data = args.file.read_bytes() if args.file else sys.stdin.buffer.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(args.file or "standard input", error) from error


def _warn_beyond_context(args: argparse.Namespace, n_ctx: int, console: Console) -> None:
    try:
        usable = read_model(args.model).usable_context
    except RopeScalingError:  # no rotary embedding, nothing to extend
        return
    if args.rope_scaling is None and args.dynamic is None and n_ctx > usable:
        console.print(
            f"warning: {n_ctx} tokens are wanted, and {args.model} is made for {usable}; "
            "--rope-scaling yarn extends it for this run, yarn-gguf extend for good",
            style="yellow",
        )
