"""Operations on the cache, under every kind of rope scaling, on small models of every architecture.

The models are those of upstream's test-llama-archs.cpp; tests/cpp/programs/cache_ops.cpp examines them.
This program writes the page with the results:

    python tests/helpers/cache_ops.py docs/cache-operations.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import small_models

SCALINGS = ("none", "file", "caller", "table", "dynamic")
ERRORS = ("f32", "logits", "q8_0")


@dataclass(frozen=True)
class Outcome:
    """The outcome of cache_ops.cpp for one scaling of a model.

    verdict: right, refused, none (there is no such scaling), wrong.
    reason: why it is not right.
    errors: the largest relative L2 errors by name, None where there is nothing to compare. "f32", "q8_0": of
        cached keys of that type. "logits": of the next token's logits.
    """

    verdict: str
    reason: str = ""
    errors: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """The outcomes for one form of an architecture, by scaling; none if there is no such model.

    reason: why there is no such model, or how the program ended.
    """

    name: str
    form: str
    reason: str = ""
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.name} ({self.form})"

    @property
    def verdicts(self) -> set[str]:
        return {outcome.verdict for outcome in self.outcomes.values()}


def examine(names: Iterable[str] = ()) -> list[Line]:
    """Run cache_ops.cpp on these architectures, or on all. Return its lines, sorted by name."""
    lines = map(_line, small_models.examine("cache_ops", names))
    return sorted(lines, key=lambda line: (line.name, line.form))


def _line(fields: list[str]) -> Line:
    name, form, *rest = fields
    if len(rest) != len(SCALINGS):
        return Line(name, form, ": ".join(rest[1:] if rest[0] == "none" else rest))
    return Line(name, form, outcomes=dict(zip(SCALINGS, map(_outcome, rest), strict=True)))


def _outcome(text: str) -> Outcome:
    verdict, _, rest = text.partition(": ")
    if verdict != "right":
        return Outcome(verdict, rest)
    numbers = (None if each == "-" else float(each) for each in rest.split())
    return Outcome(verdict, errors=dict(zip(ERRORS, numbers, strict=True)))


# ---- the page --------------------------------------------------------------------------------

_INTRODUCTION = """\
# Operations on the cache, architecture by architecture

## Use it

`llama_memory_seq_add` moves a sequence to other positions (a context shift). `llama_memory_seq_div` divides
positions (self-extend). `llama_memory_seq_cp` copies a sequence, and `llama_memory_seq_rm` removes a part.
`llama_memory_can_shift` says whether positions can change.

`make cache-operations` makes this page; do not edit it. `tests/run/test_cache_ops.py` runs the same.

## What it promises

- After an operation, the cached keys are those of a fresh context that reads the same tokens at their new
  positions. So are the logits of the next token.
- That holds without scaling and with each kind: from the file, by the caller, by a table of frequencies,
  and with a factor that follows the text.
- An operation that cannot be right is refused, and changes nothing. `seq_add`, `seq_div` and `seq_cp` log
  an error; `seq_rm` returns false. Methods of a `Llama`'s context raise an exception.
- Where positions cannot change, copies and cuts are right all the same.

Operations that are refused for every model, or for a kind of cache:

| operation | where | reason |
|---|---|---|
| `seq_add`, `seq_div` | where `llama_memory_can_shift` is false | the table below |
| `seq_add`, `seq_div` | on cells of several sequences | a cell has one position: use `kv_unified = false` |
| `seq_div` | by 0 or less | no such positions |
| `seq_cp`, `seq_rm` | of a part, with a recurrent state | the state is that after the last token |
| `seq_cp` | of a part, in DeepSeek 4 | it caches groups of positions |

## How it was measured

The models are llama.cpp's own small random ones of every architecture (upstream's
`test-llama-archs.cpp`). A text of 40 tokens is read under YaRN of factor 8 from a context of 16. The table
of frequencies is arbitrary, with a temperature of 1.2. Dynamic scaling grows s from 1 as the text grows.

Attention counts in the last layer alone. So the keys of every layer depend on the tokens and their
positions, and not on what the tokens see.

These operations are tried:

- a shift of all positions; a cut in the middle, and a shift of the rest;
- a shift and a division;
- copies within a stream and to another one, of the whole and of a part;
- a copy while a shift is pending, and a further shift of the copy;
- a cut at the end.

Numbers are relative L2 errors, the largest of all operations: of keys in f32, of logits in f32, and of keys
in q8_0. Rounding to q8_0 makes 9e-3. A dash means that there is no such scaling, or no such type.
"""


def page(lines: list[Line]) -> str:
    """Return the text of docs/cache-operations.md."""
    right = [line for line in lines if "right" in line.verdicts]
    refused = [line for line in lines if line.outcomes and "right" not in line.verdicts]
    missing = [line for line in lines if not line.outcomes]
    text = [
        _INTRODUCTION,
        f"### Right: {len(right)}",
        "",
        "| | " + " | ".join(SCALINGS) + " |",
        "|---|" + "---|" * len(SCALINGS),
        *(f"| {line.title} | " + " | ".join(map(_cell, line.outcomes.values())) + " |" for line in right),
        *_section("Positions cannot change", {line.title: _reason(line) for line in refused}),
        *_section("Not tried, for lack of a model or a cache", {line.title: line.reason for line in missing}),
    ]
    return "\n".join(text) + "\n"


def _section(title: str, reasons: dict[str, str]) -> list[str]:
    head = ["", f"### {title}: {len(reasons)}", "", "| | reason |", "|---|---|"]
    return [*head, *(f"| {name} | {reason} |" for name, reason in reasons.items())]


def _cell(outcome: Outcome) -> str:
    if outcome.verdict != "right":
        return "-" if outcome.verdict == "none" else f"{outcome.verdict}: {outcome.reason}"
    return ", ".join(_number(outcome.errors[what]) for what in ERRORS)


def _number(error: float | None) -> str:
    return "-" if error is None else "0" if error == 0.0 else f"{error:.0e}".replace("e-0", "e-")


def _reason(line: Line) -> str:
    reasons = {each.reason for each in line.outcomes.values() if each.verdict != "none"}
    return "; ".join(sorted(reason.removeprefix("positions cannot change: ") for reason in reasons))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the page to write")
    parser.parse_args().output.write_text(page(examine()))


if __name__ == "__main__":
    main()
