"""The options that say how a model is run, and the model that they ask for; shared by run and chat."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from yarn_gguf.cli.screen.progress import reading_progress
from yarn_gguf.disk.fingerprint import fingerprints
from yarn_gguf.errors import RopeScalingError, YarnGGUFError
from yarn_gguf.rope.dynamic import POLICIES, DynamicScaling, Scaling
from yarn_gguf.rope.read import read_model
from yarn_gguf.rope.scaling import EXTENDING_METHODS, RopeScaling
from yarn_gguf.run.arguments import padded

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama
    from yarn_gguf.session.session import Session


def configure(parser: argparse.ArgumentParser, *, context: str, temp: float, seed: int | None) -> None:
    """context: what the default of -c is. temp, seed: of those options; None: a new one each time."""
    parser.add_argument("model", type=Path, help="the GGUF file")
    parser.add_argument("-c", "--ctx-size", type=positive, help=f"context in tokens (default: {context})")
    greedy = ": greedy" if temp == 0 else ""
    parser.add_argument(
        "--temp",
        type=_number,
        default=temp,
        help=f"sampling temperature (default {temp:g}{greedy})",
    )
    parser.add_argument(
        "--top-k", type=int, default=40, help="sample from so many tokens at most (default 40)"
    )
    parser.add_argument(
        "--top-p",
        type=_probability,
        default=0.95,
        help="sample from tokens that sum up to this (default 0.95)",
    )
    parser.add_argument(
        "--min-p",
        type=_probability,
        default=0.05,
        help="leave out tokens less likely than this times the likeliest (default 0.05)",
    )
    parser.add_argument(
        "--repeat-penalty", type=_penalty, default=1.0, help="divide what was said lately by this (default 1)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=seed,
        help=f"sampling seed (default: {'random' if seed is None else seed})",
    )
    parser.add_argument("-t", "--threads", type=positive, help="threads (default: all cores)")
    parser.add_argument("-ngl", "--gpu-layers", type=int, default=-1, help="layers on the GPU (default: all)")
    parser.add_argument(
        "--rope-scaling",
        choices=("none", *EXTENDING_METHODS),
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
    parser.add_argument("--system", metavar="TEXT", help="the system prompt, for templates that have one")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the native library's log")


class Earlier(NamedTuple):
    """What there is of a session that is gone on with, or nothing."""

    tokens: Sequence[int] = ()
    n_ctx: int = 0  # that it was made with
    has_scaling: bool = False  # that still holds
    scaling: Scaling | None = None  # as Llama takes it; None: the file's


def earlier(args: argparse.Namespace) -> Earlier:
    """What the session's file says, before the model is loaded. Raises SessionError.

    Its scaling holds for the same model. Where that does not reach as far as -c, and --rebuild is given, a
    static one has a larger factor, and in the place of the file's there is what a new session would have.
    """
    if args.rebuild and args.session is None:
        raise YarnGGUFError("--rebuild is about the file of a session: give --session FILE")
    if args.session is None or not args.session.exists():
        return Earlier()
    from yarn_gguf.session.file import read_contents
    from yarn_gguf.session.identity import scaling_of

    contents = read_contents(args.session)
    found = contents.tokens.tolist(), contents.facts["n_ctx"]
    if contents.identity["model"] != fingerprints(args.model):
        return Earlier(*found)
    scaling, wanted = scaling_of(contents), padded(args.ctx_size or 0)
    reach = _reach(args, scaling)
    if args.rebuild and reach is not None and wanted > reach:
        if scaling is None:
            return Earlier(*found)
        scaling = replace(scaling, factor=wanted / scaling.original_max_position_embeddings)
    return Earlier(*found, True, scaling)


def scaling(args: argparse.Namespace, earlier: Earlier) -> str | Scaling | None:
    """What is asked for, or else what the session has, as Llama takes it."""
    if args.dynamic is None:
        return args.rope_scaling or earlier.scaling
    return DynamicScaling.of(args.rope_scaling or "yarn", policy=args.dynamic)


def sampling(args: argparse.Namespace) -> dict[str, float]:
    """As Llama.sample takes it."""
    return {name: getattr(args, name) for name in ("temp", "top_k", "top_p", "min_p", "repeat_penalty")}


def load(args: argparse.Namespace, scaling: str | Scaling | None, n_ctx: int) -> Llama:
    """The model, to be closed."""
    from yarn_gguf.run.llama import Llama  # loads the native library

    return Llama(
        args.model,
        rope_scaling=scaling,
        n_ctx=padded(n_ctx),  # which a factor has to fit
        n_threads=args.threads or os.cpu_count(),
        n_threads_batch=args.threads,
        n_gpu_layers=args.gpu_layers,
        flash_attn=True,
        seed=args.seed or 0,
        verbose=args.verbose,
    )


def open_session(args: argparse.Namespace, llama: Llama, console: Console) -> Session | None:
    """The session that is asked for, restored with a progress bar."""
    if args.session is None:
        return None
    with reading_progress(console, "restoring") as report:
        from yarn_gguf.session import session  # loads the native library

        return session.open_session(llama, args.session, rebuild=args.rebuild, progress=report)


def usable_context(path: Path) -> int | None:
    """Tokens that the file is made for; None if it has no rotary embedding, and nothing to extend."""
    try:
        return read_model(path).usable_context
    except RopeScalingError:
        return None


def warn_beyond_context(args: argparse.Namespace, earlier: Earlier, n_ctx: int, console: Console) -> None:
    """If neither the file nor a session's static scaling is made for `n_ctx` tokens, and none asked for."""
    usable = _reach(args, scaling(args, earlier))
    if usable is None or n_ctx <= usable:
        return
    for_what, way = args.model, "--rope-scaling yarn extends it for this run, yarn-gguf extend for good"
    if earlier.has_scaling:
        for_what, way = args.session, "--rope-scaling yarn --rebuild extends it, and reads its text again"
    console.print(
        f"warning: {n_ctx} tokens are wanted, and {for_what} is made for {usable}; {way}",
        style="yellow",
        markup=False,
    )


def _reach(args: argparse.Namespace, scaling: str | Scaling | None) -> int | None:
    """Tokens that a scaling, or the file's, is made for; None where there is no such limit."""
    if scaling is None:
        return usable_context(args.model)
    if isinstance(scaling, RopeScaling) and scaling.is_extension:
        return scaling.extended_context
    return None


def positive(text: str) -> int:
    """An option's value: a whole number > 0."""
    return _checked(int, text, lambda value: value > 0, "a whole number > 0")


def _number(text: str) -> float:
    return _checked(float, text, lambda value: 0 <= value < math.inf, "a number >= 0")


def _probability(text: str) -> float:
    return _checked(float, text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _penalty(text: str) -> float:
    return _checked(float, text, lambda value: 0 < value < math.inf, "a number > 0")


def _checked(kind: type, text: str, is_right: Callable[[Any], bool], wanted: str) -> Any:
    """`text` as a number of this kind."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not is_right(value):
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text}")
    return value
