"""The command yarn-gguf. One module a subcommand, each with HELP, configure(parser) and main(args).

main returns the exit status, or nothing for 0.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType

from yarn_gguf import _version
from yarn_gguf.cli import advise, chat, convert, evaluate, extend, inspect, plan, run, verify
from yarn_gguf.errors import ReplacedScalingWarning, YarnGGUFError, message_of

COMMANDS = {
    "advise": advise,
    "chat": chat,
    "convert": convert,
    "eval": evaluate,
    "extend": extend,
    "inspect": inspect,
    "plan": plan,
    "run": run,
    "verify": verify,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own). Returns the exit status."""
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _exit)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", ReplacedScalingWarning)
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            return args.main(args) or 0
    except BrokenPipeError:  # whoever read our output has gone: nobody is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (YarnGGUFError, OSError) as error:
        print(f"yarn-gguf: {message_of(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"yarn-gguf: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="yarn-gguf", description="Extend the context of GGUF models, and run them."
    )
    parser.add_argument("--version", action="version", version=f"yarn-gguf {_version.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.__doc__)
        command.configure(subparser)
        subparser.set_defaults(main=command.main)
    return parser


def _exit(number: int, frame: FrameType | None) -> None:
    """An exception rather than a sudden end, so that temporary files are removed."""
    sys.exit(128 + number)
