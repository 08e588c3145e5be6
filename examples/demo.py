"""Extend a real model and answer from beyond its trained context.

    python examples/demo.py SmolLM2-135M-Instruct.Q4_1.gguf

SmolLM2-135M-Instruct was trained on 8192 tokens. It reads 13,000 tokens of Mansfield Park with a pass key
hidden near the end, once as it is and once extended by YaRN, and is asked for the key. Its loss on the
prose itself, by position, shows where it gets lost.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from yarn_gguf import RopeScaling, extend
from yarn_gguf.cli.screen.progress import reading_progress
from yarn_gguf.evaluate.reading.losses import token_losses
from yarn_gguf.evaluate.statistics.positions import bucket_perplexities
from yarn_gguf.native.library import load
from yarn_gguf.run.llama import Llama

llama_cpp = load()

PROSE = Path(__file__).with_name("mansfield-park.txt")
DOCUMENT_TOKENS = 13_000
KEY_POSITION = 12_500
KEY = "71432"
FACTOR = 2.0
EDGES = (0, 4096, 8192, 10_000, 11_500, KEY_POSITION)

INSTRUCTION = "<|im_start|>user\nThere is important information hidden in the text below. Memorize it.\n\n"
NEEDLE = f"\n\nThe pass key is {KEY}. Remember it. {KEY} is the pass key.\n\n"
QUESTION = "\n\nWhat is the pass key mentioned in the text?<|im_end|>\n<|im_start|>assistant\nThe pass key is"


@dataclass(frozen=True)
class Outcome:
    """The result of a model on the document."""

    answer: str
    perplexities: list[float]
    seconds: float


def requantize(source: Path, target: Path) -> None:
    """Q8_0 has a fast kernel on every CPU; Q4_1, in which the model is published, has none."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise SystemExit(f"{source} could not be requantized")


def read_and_ask(model: Path, console: Console) -> Outcome:
    n_ctx = DOCUMENT_TOKENS + 256
    with closing(
        Llama(model, n_ctx=n_ctx, flash_attn=True, n_threads=os.cpu_count(), verbose=False)
    ) as llama:

        def tokens_of(text: str) -> list[int]:
            return llama.tokenize(text.encode(), add_bos=False, special=True)

        instruction, prose = tokens_of(INSTRUCTION), tokens_of(PROSE.read_text(encoding="utf-8"))
        before = KEY_POSITION - len(instruction)
        document = instruction + prose[:before] + tokens_of(NEEDLE)
        document += prose[before : before + DOCUMENT_TOKENS - len(document)]

        start = time.monotonic()
        with reading_progress(console, model.name) as report:
            losses = token_losses(llama, document, report)
        seconds = time.monotonic() - start
        prompt = document + tokens_of(QUESTION)
        answer = llama.create_completion(prompt, max_tokens=8, temperature=0.0)["choices"][0]["text"]
        return Outcome(answer.strip().splitlines()[0], bucket_perplexities(losses, EDGES), seconds)


def show(outcomes: dict[str, Outcome], console: Console) -> None:
    table = Table(title=f"SmolLM2-135M-Instruct, trained on 8192 tokens, reads {DOCUMENT_TOKENS}")
    table.add_column("")
    for name in outcomes:
        table.add_column(name, justify="right")
    for i, (low, high) in enumerate(itertools.pairwise(EDGES)):
        row = (f"{outcome.perplexities[i]:.1f}" for outcome in outcomes.values())
        table.add_row(f"perplexity of the prose at {low}–{high}", *row)
    table.add_row(
        f'"The pass key is …" (hidden at {KEY_POSITION}: {KEY})', *(o.answer for o in outcomes.values())
    )
    table.add_row("found", *("yes" if KEY in o.answer else "no" for o in outcomes.values()))
    table.add_row("time to read", *(f"{o.seconds:.0f} s" for o in outcomes.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    source = parser.parse_args().model
    console = Console(width=110)

    plain, extended = source.with_name("smollm2-plain.gguf"), source.with_name("smollm2-yarn-x2.gguf")
    console.print(f"1. Requantize {source.name} to Q8_0")
    requantize(source, plain)
    console.print(
        f"2. Extend it: yarn-gguf extend {plain.name} -o {extended.name} --method yarn --factor {FACTOR:g}"
    )
    extend(plain, RopeScaling("yarn", factor=FACTOR), output=extended, force=True)
    console.print(
        f"3. Read {DOCUMENT_TOKENS} tokens of prose with each, and ask for the pass key (some minutes)"
    )
    outcomes = {}
    for name, model in (("as it is", plain), ("extended", extended)):
        outcomes[name] = read_and_ask(model, console)
        console.print(f"   {name}: read in {outcomes[name].seconds:.0f} s")
    show(outcomes, console)


if __name__ == "__main__":
    main()
