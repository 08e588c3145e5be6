"""Multiple-choice questions, and requests for them in the format of OLMES."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

EXAMPLES = (
    "Question: Which animal lays eggs?\nAnswer: the hen\n\n"
    "Question: What do plants take in from the air?\nAnswer: carbon dioxide\n\n"
)

QUESTIONS = [
    ("What is the capital of France?", ["Paris", "London", "a large river", "Berlin"], 0),
    ("What is ice made of?", ["sand", "water", "iron and a little coal"], 1),
    ("What is the opposite of hot?", ["warm", "wet", "cold", "not"], 2),
    ("How many legs has a spider?", ["two", "four", "six", "eight", "none"], 3),
]


def request_lines() -> list[dict]:
    """Return requests in OLMES's format, which ends with the choices without their questions."""
    return [
        {
            "request_type": "loglikelihood",
            "doc": {"query": question},
            "request": {"context": context.format(question), "continuation": f" {choice}"},
            "idx": index,
            "task_name": "tiny",
            "doc_id": number + offset,
            "label": label,
        }
        for offset, context in ((0, EXAMPLES + "Question: {}\nAnswer:"), (1_000_000, "Answer:"))
        for number, (question, choices, label) in enumerate(QUESTIONS)
        for index, choice in enumerate(choices)
    ]


def write_requests(path: Path, values: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(each) + "\n" for each in values)
    return path
