"""The model and the session that the options of run and chat ask for."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from yarn_gguf.cli.screen.progress import reading_progress
from yarn_gguf.disk.fingerprint import fingerprints
from yarn_gguf.errors import RopeScalingError, YarnGGUFError
from yarn_gguf.rope.dynamic import DynamicScaling, Scaling
from yarn_gguf.rope.read import read_model
from yarn_gguf.rope.scaling import RopeScaling
from yarn_gguf.run.arguments import padded

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama
    from yarn_gguf.session.session import Session


class Earlier(NamedTuple):
    """A session of an earlier run; empty if there is none.

    notes: of exactly these tokens. n_ctx: of the earlier run. has_scaling: whether its scaling still holds.
    scaling: as Llama takes it; None for the file's.
    """

    tokens: list[int] = []  # noqa: RUF012  (never changed)
    notes: dict[str, Any] = {}  # noqa: RUF012
    n_ctx: int = 0
    has_scaling: bool = False
    scaling: Scaling | None = None


def earlier_session(args: argparse.Namespace) -> Earlier:
    """Read the session's file, before the model is loaded. Raises SessionError.

    Its scaling holds for the same model. If it does not reach as far as -c, and --rebuild is given, a static
    scaling gets a larger factor, and the file's scaling is replaced by that of a new session.
    """
    if args.rebuild and args.session is None:
        raise YarnGGUFError("--rebuild is about the file of a session: give --session FILE")
    if args.session is None or not args.session.exists():
        return Earlier()
    from yarn_gguf.session.file import notes_of_text, read_contents
    from yarn_gguf.session.identity import scaling_of

    contents = read_contents(args.session)
    tokens = contents.tokens.tolist()
    found = tokens, notes_of_text(contents.facts.get("notes"), tokens), contents.facts["n_ctx"]
    if contents.identity["model"] != fingerprints(args.model):
        return Earlier(*found)
    scaling, wanted = scaling_of(contents), padded(args.ctx_size or 0)
    reach = _reach(args, scaling)
    if args.rebuild and reach is not None and wanted > reach:
        if not isinstance(scaling, RopeScaling):
            return Earlier(*found)
        scaling = replace(scaling, factor=wanted / scaling.original_context)
    return Earlier(*found, True, scaling)


def requested_scaling(args: argparse.Namespace, earlier: Earlier) -> str | Scaling | None:
    """Return the scaling of the options, or else the session's, as Llama takes it."""
    if args.dynamic is None:
        return args.rope_scaling or earlier.scaling
    return DynamicScaling.of(args.rope_scaling or "yarn", policy=args.dynamic)


def reach_of_session(earlier: Earlier) -> int | None:
    """Return the tokens that a session's static scaling is made for; None if nothing limits it."""
    return _extended_context(earlier.scaling)


def load(args: argparse.Namespace, scaling: str | Scaling | None, n_ctx: int) -> Llama:
    """Load the model. Close it after use."""
    from yarn_gguf.run.llama import Llama  # loads the native library

    return Llama(
        args.model,
        rope_scaling=scaling,
        n_ctx=padded(n_ctx),  # the factor has to fit this
        n_threads=args.threads or os.cpu_count(),
        n_threads_batch=args.threads,
        n_gpu_layers=args.gpu_layers,
        flash_attn=True,
        seed=args.seed or 0,
        verbose=args.verbose,
    )


def open_session(args: argparse.Namespace, llama: Llama, console: Console) -> Session | None:
    """Restore the session of --session, with a progress bar."""
    if args.session is None:
        return None
    from yarn_gguf.session import session  # loads the native library

    with reading_progress(console, "restoring") as report:
        return session.open_session(llama, args.session, rebuild=args.rebuild, progress=report)


def usable_context(path: Path) -> int | None:
    """Return the tokens that the file is made for; None if it has no rotary embedding to extend."""
    try:
        return read_model(path).usable_context
    except RopeScalingError:
        return None


def warn_beyond_context(args: argparse.Namespace, earlier: Earlier, n_ctx: int, console: Console) -> None:
    """Warn if `n_ctx` tokens are more than the file, or a session's static scaling, is made for."""
    usable = _reach(args, requested_scaling(args, earlier))
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
    """Return the tokens that a scaling, or the file's, is made for; None if there is no such limit."""
    return usable_context(args.model) if scaling is None else _extended_context(scaling)


def _extended_context(scaling: str | Scaling | None) -> int | None:
    """Return the tokens that a static scaling extends to; None for anything else."""
    if isinstance(scaling, RopeScaling) and scaling.is_extension:
        return scaling.extended_context
    return None
