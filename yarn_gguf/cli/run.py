"""yarn-gguf run: read a prompt, however long, and stream what the model says next."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Console

from yarn_gguf.cli.options import model as model_options
from yarn_gguf.cli.screen.progress import reading_progress
from yarn_gguf.disk.text import text_of
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.rope.dynamic import DynamicScaling

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama
    from yarn_gguf.session.session import Session

HELP = "read a prompt, however long, and stream what the model says next"


def configure(parser: argparse.ArgumentParser) -> None:
    model_options.configure(parser, context="prompt and answer", temp=0.0, seed=0)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt")
    prompt.add_argument("-f", "--file", metavar="FILE", type=Path, help="read the prompt from FILE")
    prompt.add_argument("-", dest="stdin", action="store_true", help="read the prompt from standard input")
    parser.add_argument(
        "-n",
        "--max-tokens",
        type=model_options.positive,
        default=256,
        help="tokens to generate (default 256)",
    )
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, without the chat template"
    )


def main(args: argparse.Namespace) -> None:
    console = Console(stderr=True)
    earlier = model_options.earlier(args)
    if args.system and (args.raw or earlier.tokens):
        what = f"{args.session} has begun without it" if earlier.tokens else "--raw has no messages"
        raise YarnGGUFError(f"--system is the first message of a chat, and {what}: leave it out")
    tokens = _tokens(args, earlier.tokens)
    if not tokens:
        raise YarnGGUFError("the prompt is empty: give a text to go on from")
    if args.session is not None:
        _check_writable(args.session)
    total = len(earlier.tokens) + len(tokens)
    n_ctx = args.ctx_size or max(earlier.n_ctx, total + args.max_tokens)
    if total >= n_ctx:
        raise YarnGGUFError(f"the prompt has {total} tokens, which --ctx-size {n_ctx} cannot hold")
    model_options.warn_beyond_context(args, earlier, n_ctx, console)
    with closing(model_options.load(args, model_options.scaling(args, earlier), n_ctx)) as llama:
        session = model_options.open_session(args, llama, console)
        if session is not None:
            _check_whole(args, session)
        if isinstance(llama.rope_scaling, DynamicScaling) and llama.rope_scaling.policy == "request":
            llama.reserve(total + args.max_tokens)
        with reading_progress(console) as report:
            llama.prefill(tokens, report)
        if session is not None:
            session.save()  # what was read is not lost if the answer is interrupted
        _answer(args, llama)
        if session is not None:
            session.save()


def _check_writable(path: Path) -> None:
    from yarn_gguf.session.lock import check_writable  # loads the native library

    check_writable(path)


def _check_whole(args: argparse.Namespace, session: Session) -> None:
    if not session.notes_of_text.get("is_whole", True):
        raise YarnGGUFError(
            f"{session.path}: its last text was not read to the end, or has no question yet: "
            f"go on with yarn-gguf chat {quote(str(args.model))} --session {quote(str(args.session))}"
        )


def _tokens(args: argparse.Namespace, before: Sequence[int]) -> list[int]:
    from yarn_gguf.run.prompt import next_turn_tokens, prompt_tokens

    prompt, is_chat = _read_prompt(args), not args.raw
    if not before:
        return prompt_tokens(args.model, prompt, chat=is_chat, system=args.system)
    return next_turn_tokens(args.model, prompt, chat=is_chat, before=before)


def _answer(args: argparse.Namespace, llama: Llama) -> None:
    tokens = llama.input_ids[: llama.n_tokens].tolist()
    for part in llama.create_completion(tokens, max_tokens=args.max_tokens, stream=True, **_sampling(args)):
        print(part["choices"][0]["text"], end="", flush=True)
    print()
    if part["choices"][0]["finish_reason"] == "length" and llama.n_tokens < llama.n_ctx():
        llama.eval([llama.last_sampled])  # the answer's last token, which the next message comes after


def _sampling(args: argparse.Namespace) -> dict[str, float]:
    """As create_completion names them."""
    sampling = model_options.sampling(args)
    return {"temperature": sampling.pop("temp"), **sampling}


def _read_prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        return args.prompt
    data = args.file.read_bytes() if args.file else sys.stdin.buffer.read()
    return text_of(data, args.file or "standard input")
