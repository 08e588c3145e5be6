"""yarn-gguf eval: how well does a model do, under its own rope scaling or others?"""

from __future__ import annotations

import argparse

from yarn_gguf.cli.evaluate import passkey, perplexity, report, tasks

HELP = "how well a model does on texts and tasks, under any rope scaling"

COMMANDS = {"passkey": passkey, "perplexity": perplexity, "report": report, "tasks": tasks}


def configure(parser: argparse.ArgumentParser) -> None:
    subparsers = parser.add_subparsers(title="evaluations", metavar="EVALUATION", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.__doc__)
        command.configure(subparser)
        subparser.set_defaults(evaluation=command.main)


def main(args: argparse.Namespace) -> None:
    args.evaluation(args)
