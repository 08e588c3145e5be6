"""yarn-gguf run: read a prompt, however long, and stream what the model says next."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Console

from yarn_gguf.cli.options import model, running
from yarn_gguf.cli.options.numbers import positive
from yarn_gguf.cli.screen.progress import reading_progress
from yarn_gguf.disk.text import text_of
from yarn_gguf.errors import YarnGGUFError

if TYPE_CHECKING:
    from yarn_gguf.run.handles import Vocabulary
    from yarn_gguf.run.llama import Llama
    from yarn_gguf.session.session import Session

HELP = "read a prompt, however long, and stream what the model says next"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    model.configure(parser, context="prompt and answer", temp=0.0, seed=0)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt")
    prompt.add_argument("-f", "--file", metavar="FILE", type=Path, help="read the prompt from FILE")
    prompt.add_argument("-", dest="stdin", action="store_true", help="read the prompt from standard input")
    parser.add_argument(
        "-n", "--max-tokens", type=positive, default=256, help="tokens to generate (default 256)"
    )
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, without the chat template"
    )


def main(args: argparse.Namespace) -> None:
    """Run the subcommand."""
    console = Console(stderr=True)
    earlier = running.earlier_session(args)
    if args.system and (args.raw or earlier.tokens):
        what = f"{args.session} has begun without it" if earlier.tokens else "--raw has no messages"
        raise YarnGGUFError(f"--system is the first message of a chat, and {what}: leave it out")
    _check_whole(args, earlier)
    text = _read_prompt(args)
    tokens = _count_before_loading(args, earlier, text)
    if len(tokens) == len(earlier.tokens):
        raise YarnGGUFError("the prompt is empty: give a text to go on from")
    if args.session is not None:
        _check_writable(args.session)
    n_ctx = args.ctx_size or max(earlier.n_ctx, len(tokens) + args.max_tokens)
    if len(tokens) >= n_ctx:
        what = "the session and the prompt have" if earlier.tokens else "the prompt has"
        raise YarnGGUFError(f"{what} {len(tokens)} tokens, which --ctx-size {n_ctx} cannot hold")
    running.warn_beyond_context(args, earlier, n_ctx, console)
    with closing(running.load(args, running.requested_scaling(args, earlier), n_ctx)) as llama:
        session = running.open_session(args, llama, console)
        if _is_chat(args, llama.vocabulary):
            pieces = _answer_in_chat(args, llama, session, text, console)
        else:
            pieces = _continue_text(args, llama, session, tokens, console)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


def _is_chat(args: argparse.Namespace, vocabulary: Vocabulary) -> bool:
    from yarn_gguf.run.chat_template import has_chat_template

    return not args.raw and has_chat_template(vocabulary)


def _answer_in_chat(
    args: argparse.Namespace, llama: Llama, session: Session | None, text: str, console: Console
) -> Iterator[str]:
    """Take one turn of a conversation."""
    from yarn_gguf.session.conversation import Conversation

    chat = Conversation(
        llama,
        system=args.system,
        max_tokens=args.max_tokens,
        seed=args.seed,
        sampling=model.sampling(args),
    )
    if session is not None:
        chat.open(session)
    with reading_progress(console) as report:
        chat.say(text, report)
    chat.save()  # an interrupted answer must not cost the reading
    yield from chat.answer()
    chat.save()


def _continue_text(
    args: argparse.Namespace, llama: Llama, session: Session | None, tokens: list[int], console: Console
) -> Iterator[str]:
    """Continue a text of `tokens` without a chat template. The session's text is its beginning."""
    from yarn_gguf.run.answer import Answer

    llama.reserve_for_request(len(tokens) + args.max_tokens)
    with reading_progress(console) as report:
        llama.prefill(tokens[len(llama.cached_text) :], report)
    if session is not None:
        session.save()  # an interrupted answer must not cost the reading
    most = min(args.max_tokens, llama.n_ctx() - len(tokens))
    answer = Answer(llama, tokens, most, model.sampling(args))

    def pieces() -> Generator[str, None, None]:
        llama.turns.request.answer = most  # the policy "request" takes the factor for all of it
        yield from answer.pieces()

    yield from llama.turns.through(pieces())
    if session is not None:
        if answer.finish == "length" and llama.cached_text.room:
            llama.prefill(answer.tokens[-1:])  # so that the next text comes after it
        session.save()


def _check_writable(path: Path) -> None:
    from yarn_gguf.session.lock import check_writable

    check_writable(path)


def _check_whole(args: argparse.Namespace, earlier: running.Earlier) -> None:
    if not earlier.notes.get("is_whole", True):
        raise YarnGGUFError(
            f"{args.session}: its last text was not read to the end, or has no question yet: "
            f"go on with yarn-gguf chat {quote(str(args.model))} --session {quote(str(args.session))}"
        )


def _count_before_loading(args: argparse.Namespace, earlier: running.Earlier, text: str) -> list[int]:
    """Return the tokens of the session's text and the prompt, before the weights are loaded."""
    from yarn_gguf.run.prompt import following_tokens, load_vocabulary
    from yarn_gguf.session.transcript import Transcript

    with closing(load_vocabulary(args.model)) as vocabulary:
        if _is_chat(args, vocabulary):
            transcript = Transcript(vocabulary, args.system)
            transcript.resume(earlier.notes, earlier.tokens)
            prompt = transcript.render(transcript.question(text))
            if not transcript.begins(prompt):
                raise YarnGGUFError(
                    f"{args.model}: its chat template leaves out answers, so that none can be gone on from: "
                    "use --raw"
                )
            return transcript.tokens_of(prompt)
        if earlier.tokens:
            return [*earlier.tokens, *following_tokens(vocabulary, text, earlier.tokens, special=False)]
        return vocabulary.tokenize(text.encode(), add_bos=vocabulary.add_bos_token(), special=False)


def _read_prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        return text_of(args.prompt.encode("utf-8", "surrogateescape"), "the prompt")
    data = args.file.read_bytes() if args.file else sys.stdin.buffer.read()
    return text_of(data, args.file or "standard input")
