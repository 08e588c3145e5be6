"""yarn-gguf chat: talk with a model in the terminal, about documents of any length."""

from __future__ import annotations

import argparse
import random
from contextlib import closing
from typing import TYPE_CHECKING

from rich.console import Console

from yarn_gguf.cli.options import model, running
from yarn_gguf.cli.options.numbers import positive
from yarn_gguf.errors import RopeScalingError, YarnGGUFError
from yarn_gguf.gguf.header import ValueType, read_header
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.read import read_model

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama

HELP = "talk with a model in the terminal, about documents of any length"

_SMALL = 8192  # tokens: a context that is not worth planning for
_TURN = 1024  # tokens: room for a question and its answer
_BEYOND = 4  # times what the file is made for: the context under --dynamic


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    context = f"what the model is made for, {_BEYOND} times that with --dynamic, as far as memory allows"
    model.configure(parser, context=context, temp=0.8, seed=None)
    parser.add_argument("-n", "--max-tokens", type=positive, help="tokens of an answer (default: no limit)")


def main(args: argparse.Namespace) -> None:
    """Run the subcommand."""
    from yarn_gguf.cli.chat_loop import Chat  # loads the native library
    from yarn_gguf.session.conversation import Conversation

    console = Console(stderr=True, highlight=False)
    earlier = running.earlier_session(args)
    n_ctx = args.ctx_size or _context_of(args, earlier)
    with closing(_load(args, earlier, n_ctx, console)) as llama:
        conversation = Conversation(
            llama,
            system=args.system,
            max_tokens=args.max_tokens,
            seed=random.randrange(2**31) if args.seed is None else args.seed,
            sampling=model.sampling(args),
        )
        session = running.open_session(args, llama, console)
        if session is not None:
            conversation.open(session)
            if args.system and session.tokens:
                console.print("the session has begun already: --system counts from /clear on", style="dim")
        Chat(llama, conversation, console).run()


def _context_of(args: argparse.Namespace, earlier: running.Earlier) -> int:
    """Return the context if none is asked for: the session's, if it has room for another turn.

    Else as for a new chat, as far as the session's scaling reaches.
    """
    if earlier.n_ctx >= len(earlier.tokens) + _TURN:
        return earlier.n_ctx
    reach = running.reach_of_session(earlier)
    wanted = default_context(args)
    return max(earlier.n_ctx, wanted if reach is None else min(wanted, reach))


def default_context(args: argparse.Namespace) -> int:
    """Return the context in tokens, if none is asked for."""
    made_for = running.usable_context(args.model)
    if made_for is None:  # no rotary embedding
        header = read_header(args.model)
        arch = header.get("general.architecture", ValueType.STRING)
        made_for = header.get(f"{arch}.context_length", ValueType.UINT32, _SMALL)
    elif args.dynamic is not None:
        made_for *= _BEYOND
    return made_for if made_for <= _SMALL else min(made_for, _largest_that_fits(args, made_for))


def _largest_that_fits(args: argparse.Namespace, context: int) -> int:
    """Return the tokens that fit with a quarter of the memory left free; at least a small context."""
    from yarn_gguf.model_file.plan import RESERVE, plan
    from yarn_gguf.native.memory import machine_memory

    ram, gpu = machine_memory()
    layers = None if args.gpu_layers < 0 else args.gpu_layers
    reserve = max(RESERVE, (ram if layers == 0 else gpu or ram) // 4)
    try:
        made = plan(args.model, context, reserve=reserve, kv_types=("f16",), gpu_layers=layers, swa_full=True)
    except YarnGGUFError:  # not even the weights
        return _SMALL
    return max(_SMALL, made.layouts[0].largest_context)


def _load(args: argparse.Namespace, earlier: running.Earlier, n_ctx: int, console: Console) -> Llama:
    """Load the model: with dynamic scaling beyond the file's context, unless the options say otherwise."""
    asked = running.requested_scaling(args, earlier)
    usable = running.usable_context(args.model)
    if asked is not None or earlier.has_scaling or usable is None or n_ctx <= usable:
        running.warn_beyond_context(args, earlier, n_ctx, console)
        return running.load(args, asked, n_ctx)
    if read_model(args.model).dynamic:
        return running.load(args, None, n_ctx)
    try:
        llama = running.load(args, DynamicScaling(), n_ctx)
    except RopeScalingError:  # it cannot be scaled so
        running.warn_beyond_context(args, earlier, n_ctx, console)
        return running.load(args, None, n_ctx)
    console.print(f"made for {usable:,} tokens; beyond them, dynamic YaRN extends it", style="dim")
    return llama
