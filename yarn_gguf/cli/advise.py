"""yarn-gguf advise: which rope scaling suits this model, this context and your own texts?

Reads the texts without scaling, under YaRN and under many other scalings, as long as the budget allows.
Advises the simplest scaling whose loss does not differ significantly from the smallest.
"""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from yarn_gguf.cli.options import evaluation as common
from yarn_gguf.cli.screen.progress import labelled_progress
from yarn_gguf.cli.screen.results import finish
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.evaluate.reading.documents import Document, read_pieces
from yarn_gguf.evaluate.search.candidates import Role
from yarn_gguf.evaluate.show.tables import percent
from yarn_gguf.evaluate.statistics.estimate import TAIL_95, Estimate
from yarn_gguf.model_file.extend import extend
from yarn_gguf.model_file.extend_options import options_of
from yarn_gguf.model_file.extensible import read_extensible
from yarn_gguf.rope.dynamic import DynamicScaling

if TYPE_CHECKING:
    from yarn_gguf.evaluate.search.advise import Advice, Finding
    from yarn_gguf.rope.read import RopeModel

HELP = "which rope scaling suits a model, a context and your own texts?"

_ROLES = {  # as the JSON file names them
    Role.FILE: "reference",
    Role.UNSCALED: "unscaled",
    Role.DEFAULT: "default",
    Role.DYNAMIC: "reference",
    Role.SEARCHED: "finalist",
}


def configure(parser: argparse.ArgumentParser) -> None:
    common.configure_model(parser)
    parser.add_argument("-c", "--context", type=int, required=True, metavar="N", help="tokens that must fit")
    parser.add_argument(
        "-f",
        "--text",
        type=Path,
        nargs="+",
        required=True,
        metavar="BOOK",
        help="texts like those that the model will read, each of N tokens or more",
    )
    parser.add_argument(
        "--budget", type=float, default=15.0, metavar="MINUTES", help="time for reading (default 15)"
    )
    parser.add_argument(
        "--original-context", type=int, metavar="TOKENS", help="default: what the model itself says"
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "-o", "--output", type=Path, metavar="OUT.gguf", help="write the advised scaling here"
    )
    target.add_argument("--in-place", action="store_true", help="write the advised scaling into the file")
    parser.add_argument("--force", action="store_true", help="replace OUT.gguf if it exists")


def main(args: argparse.Namespace) -> None:
    model = read_extensible(args.model, args.output, args.force)
    common.check_outputs(args, args.text)
    advice, documents = _search(args, model)
    texts = [{"name": each.name, "tokens": len(each.tokens)} for each in documents[: advice.documents]]
    try:
        finish(args, "advise", _facts(args, advice) | {"texts": texts}, _rows(advice))
    finally:  # show the advice even if a file cannot be written
        words = [*_words(advice), *_what_to_do(args, advice)]
        Console(highlight=False, soft_wrap=True).print("\n".join(["", *words]), markup=False)
    if args.output or args.in_place:
        _write(args, advice)


def _search(args: argparse.Namespace, model: RopeModel) -> tuple[Advice, list[Document]]:
    if not 0 < args.budget < math.inf:
        raise YarnGGUFError(f"--budget {args.budget:g}: give a number of minutes above 0")
    from yarn_gguf.evaluate.search.advise import advise, space_of  # loads the native library

    space = space_of(model, args.context, args.original_context)
    documents = read_pieces(args.model, args.text, args.context)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    errors.print(f"{_count(len(documents))} of {args.context:,} tokens")
    results, budget = common.results_of(args), 60 * args.budget
    with common.loaded(args, args.context) as llama, labelled_progress(errors) as label:
        return advise(llama, space, documents, budget, results, label, errors.print), documents


def _words(advice: Advice) -> list[str]:
    choice, best, space = advice.choice, advice.best, advice.space
    measured = len(advice.finalists) + len(advice.dropped)
    default, unscaled = _reference(advice, Role.DEFAULT), _reference(advice, Role.UNSCALED)
    lines = [
        f"{measured} scalings were tried in {advice.readings} readings, {advice.seconds / 60:.1f} minutes; "
        f"{len(advice.finalists)} of them have read {_count(advice.documents)} of {space.context:,} tokens.",
        f"The score is the geometric mean of two perplexities: at positions up to {space.original:,}, the "
        f"trained context, and at positions from there to {space.context:,}.",
        *["For evidence from more documents: a longer text or a larger --budget."] * (advice.documents == 1),
        *(f"Not tried: {name}: {reason}" for name, reason in list(advice.refused.items())[:1]),
        "",
        f"Advice: {choice.candidate.name}",
    ]
    if best is not choice:
        lines.append(
            f"{best.candidate.name} has the best score, but no better than by chance: "
            f"{choice.candidate.name} is {_percent(advice.lead)} above it, and is the simpler one."
        )
    if choice is not default:
        lines.append(f"Against the default, {default.candidate.name}: {_percent(choice.against_default)}.")
    if choice is not unscaled:
        lines.append(
            f"Against the unscaled model: {_percent(choice.cost)} up to {space.original:,} tokens; beyond, "
            f"perplexity {math.exp(choice.beyond):.2f} instead of {math.exp(unscaled.beyond):.2f}."
        )
    return lines


def _what_to_do(args: argparse.Namespace, advice: Advice) -> list[str]:
    role = advice.choice.candidate.role
    if role is Role.FILE:
        return ["", "The file has this scaling already: no change is needed."]
    lines = ["", "    " + shlex.join(_command(args, advice))]
    if role is Role.UNSCALED:
        lines.append(f"Give -c {advice.space.context} when you run it: the file states a shorter context.")
    asked = advice.choice.candidate.scaling
    if isinstance(asked, DynamicScaling) and asked.policy == "growth":
        lines += [
            "For questions about one long prompt, --dynamic request may find more. "
            "Losses do not show it, pass keys do:",
            "",
            f"    {_passkeys(args, advice)}",
        ]
    return lines


def _passkeys(args: argparse.Namespace, advice: Advice) -> str:
    name, given = advice.choice.candidate.name, args.original_context
    name += "" if given is None else f",original_max_position_embeddings={given}"
    command = ["yarn-gguf", "eval", "passkey", str(args.model), "--lengths", str(advice.space.context)]
    return shlex.join([*command, "--scaling", name, f"{name},policy=request"])


def _command(args: argparse.Namespace, advice: Advice) -> list[str]:
    target = ["--in-place"] if args.in_place else ["-o", str(args.output or "OUT.gguf")]
    given = args.original_context
    original = [] if given is None else ["--original-context", str(given)]
    return ["yarn-gguf", "extend", str(args.model), *target, *_options(advice), *original]


def _options(advice: Advice) -> list[str]:
    asked = advice.choice.candidate.scaling
    policy = asked.policy if isinstance(asked, DynamicScaling) else None
    return options_of(advice.space.static_of(asked), policy)


def _write(args: argparse.Namespace, advice: Advice) -> None:
    if advice.choice.candidate.role is Role.FILE:
        return
    asked = advice.choice.candidate.scaling
    extend(
        args.model,
        advice.space.static_of(asked),
        output=args.output,
        dynamic=asked if isinstance(asked, DynamicScaling) else None,
        force=args.force,
    )
    print(f"{args.output or args.model}: written")


def _reference(advice: Advice, role: Role) -> Finding:
    return next(each for each in advice.finalists if each.candidate.role == role)


def _role(advice: Advice, finding: Finding) -> str:
    """Return the role of a finding in the JSON file."""
    return _ROLES[finding.candidate.role] if finding in advice.finalists else "dropped"


def _count(documents: int) -> str:
    return f"{documents} document{'s' if documents > 1 else ''}"


def _percent(change: Estimate) -> str:
    return percent(change.mean, change.standard_error)


def _facts(args: argparse.Namespace, advice: Advice) -> dict[str, Any]:
    return {
        "trained_context": advice.space.original,
        "context": advice.space.context,
        "advice": advice.choice.candidate.name,
        "best": advice.best.candidate.name,
        "lead": advice.lead.mean,
        "lead_error": advice.lead.standard_error,
        "extend": shlex.join(_command(args, advice)),
        "documents": advice.documents,
        "readings": advice.readings,
        "seconds": advice.seconds,
        "not_tried": ", ".join(advice.refused),
    }


def _rows(advice: Advice) -> list[dict[str, Any]]:
    return [
        {
            "scaling": each.candidate.name,
            "role": _role(advice, each),
            "advised": each is advice.choice,
            "documents": each.documents,
            "loss": each.loss,
            "within": each.within,
            "beyond": each.beyond,
            "end": each.end,
            "against_default": each.against_default.mean,
            "against_default_error": each.against_default.standard_error,
            "against_default_reach": each.against_default.margin(TAIL_95),
            "cost": each.cost.mean,
            "cost_error": each.cost.standard_error,
        }
        for each in advice.finalists + advice.dropped
    ]
