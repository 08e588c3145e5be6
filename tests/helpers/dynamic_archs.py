"""Compare dynamic with static scaling on small random models of every architecture of llama.cpp.

The models are those of upstream's test-llama-archs.cpp; tests/cpp/programs/dynamic_archs.cpp makes them.
This program writes the page with the results:

    python tests/helpers/dynamic_archs.py docs/dynamic-architectures.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import small_models

KINDS = ("grown", "unscaled", "shifted")
ERRORS = (*(f"{type_} {kind}" for type_ in ("f32", "f16", "q8_0") for kind in KINDS), "logits", "below")


@dataclass(frozen=True)
class Line:
    """The outcome of dynamic_archs.cpp for one form of an architecture.

    verdict: accepted, refused, none (there is no such model), failed or aborted.
    reason: why it is not accepted.
    goes_on: whether the context works as before after a refusal.
    is_reached: whether static scaling changes the logits.
    scaled, unscaled: layers with cached keys that static scaling changes, and those it does not change.
    errors: relative L2 errors by name, None where there is nothing to compare.
        "TYPE grown", "TYPE unscaled", "TYPE shifted": of cached keys of that type, of the keys in unscaled
        layers, and of both after a context shift. "logits": of logits. "below": 0 if a text that fits the
        original context has bit for bit the logits of the model without scaling.
    """

    name: str
    form: str
    verdict: str
    reason: str = ""
    goes_on: bool = True
    is_reached: bool = True
    scaled: tuple[int, ...] = ()
    unscaled: tuple[int, ...] = ()
    errors: dict[str, float | None] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.name} ({self.form})"


def examine(names: Iterable[str] = ()) -> list[Line]:
    """Run dynamic_archs.cpp on these architectures, or on all. Return its lines, sorted by name."""
    lines = map(_line, small_models.examine("dynamic_archs", names))
    return sorted(lines, key=lambda line: (line.name, line.form))


def _line(fields: list[str]) -> Line:
    name, form, verdict, *rest = fields
    if verdict == "refused":
        return Line(name, form, verdict, rest[0], goes_on=rest[1] == "yes", is_reached=rest[2] == "yes")
    if verdict != "accepted":
        return Line(name, form, verdict, *rest)
    scaled, unscaled = (tuple(map(int, layers.replace("-", "").split())) for layers in rest[:2])
    errors = {what: None if each == "-" else float(each) for what, each in zip(ERRORS, rest[2:], strict=True)}
    return Line(name, form, verdict, scaled=scaled, unscaled=unscaled, errors=errors)


# ---- the page --------------------------------------------------------------------------------

_INTRODUCTION = """\
# Dynamic scaling, architecture by architecture

## Use it

`make dynamic-architectures` makes this page; do not edit it. `tests/run/dynamic/test_dynamic_archs.py`
runs the same.

## What it promises

- An accepted model has the cached keys and the logits that static scaling of the same factor would
  give, within the rounding of the cache's type.
- Layers that static scaling does not reach keep their keys, bit for bit.
- A text that fits the original context has the logits of the model without scaling, bit for bit.
- A model that cannot be scaled so is refused with a reason. Its context then works as before.

## How it was measured

The models are llama.cpp's own small random ones of every architecture (upstream's
`test-llama-archs.cpp`). The original context is 16 tokens. The text is read to 128 tokens while s grows
from 1 to 8. The same models under static YaRN of factor 8, by the rope op's own operands and without a
rotation, are the witness.

Attention counts in no layer, or in the last scaled one alone. So the cached keys come from the same
inputs.

Columns are relative L2 errors. The first number of a K column is against keys of the same type that were
written once; the second is after a further context shift and a rotation. Logits are the last token's.
"""


def page(lines: list[Line]) -> str:
    """Return the text of docs/dynamic-architectures.md."""
    accepted = [line for line in lines if line.verdict == "accepted"]
    text = [
        _INTRODUCTION,
        f"### Accepted: {len(accepted)}",
        "",
        "| | scaled layers | K f32, shifted | K f16, shifted | K q8_0, shifted | logits f32 |",
        "|---|---|---|---|---|---|",
        *map(_row, accepted),
    ]
    for verdict, title in (("refused", "Refused"), ("none", "Not tried, for lack of a model")):
        chosen = [line for line in lines if line.verdict == verdict]
        text += ["", f"### {title}: {len(chosen)}", ""]
        if verdict == "refused":
            text += ["The context then works as before.", ""]
        text += ["| | reason |", "|---|---|", *(f"| {line.title} | {line.reason} |" for line in chosen)]
    return "\n".join(text) + "\n"


def _row(line: Line) -> str:
    layers = f"{len(line.scaled)} of {len(line.scaled) + len(line.unscaled)}"
    cells = [
        ", ".join(_number(line.errors[f"{type_} {kind}"]) for kind in ("grown", "shifted"))
        for type_ in ("f32", "f16", "q8_0")
    ]
    return f"| {line.title} | {layers} | " + " | ".join([*cells, _number(line.errors["logits"])]) + " |"


def _number(error: float | None) -> str:
    return "-" if error is None else f"{error:.0e}".replace("e-0", "e-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the page to write")
    parser.parse_args().output.write_text(page(examine()))


if __name__ == "__main__":
    main()
