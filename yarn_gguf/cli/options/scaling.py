"""The options that ask for a rope scaling, shared by the subcommands that write one into a file."""

from __future__ import annotations

import argparse

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.model_file.extend_options import OPTION_FIELDS
from yarn_gguf.rope.dynamic import POLICIES
from yarn_gguf.rope.scaling import METHODS, RAMPS, RopeScaling

_RAMP, _LLAMA3 = ("by-parts", "yarn"), ("llama3",)
_METHODS_WITH = {  # methods that a parameter belongs to; all, if it is not here
    "beta_fast": _RAMP,
    "beta_slow": _RAMP,
    "ramp": _RAMP,
    "truncate": _RAMP,
    "low_freq_factor": _LLAMA3,
    "high_freq_factor": _LLAMA3,
}


def configure(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options."""
    methods = [method for method in METHODS if method not in ("explicit", "longrope")]  # they take lists
    parser.add_argument("--method", choices=methods, help="default: yarn")
    parser.add_argument("--factor", type=float, help="extended context / original context")
    parser.add_argument(
        "--original-context",
        type=int,
        metavar="TOKENS",
        help="tokens that the model was trained with (default: what the model says)",
    )
    parser.add_argument("--beta-fast", type=float, help="rotations at which blending begins (default 32)")
    parser.add_argument("--beta-slow", type=float, help="rotations at which blending ends (default 1)")
    parser.add_argument("--attention-factor", type=float, help="temperature (default: the method's own)")
    parser.add_argument("--ramp", choices=RAMPS, help="blend by index (default) or by rotations")
    parser.add_argument(
        "--no-truncate",
        dest="truncate",
        action="store_const",
        const=False,
        help="do not round the ramp's bounds",
    )
    parser.add_argument("--low-freq-factor", type=float, help="llama3: rotations at which blending ends")
    parser.add_argument("--high-freq-factor", type=float, help="llama3: rotations at which blending begins")
    parser.add_argument(
        "--dynamic",
        nargs="?",
        const="growth",
        choices=POLICIES,
        help="let the factor follow the length of the text, up to --factor (default policy: growth)",
    )


def is_asked_for(args: argparse.Namespace) -> bool:
    """Return whether any option that describes a scaling was given."""
    return bool(given_options(args)) or args.original_context is not None


def given_options(args: argparse.Namespace) -> list[str]:
    """Return the options for method, factor and their parameters that were given, as they are typed."""
    names = ("method", "factor", *OPTION_FIELDS)
    return [_typed(name) for name in names if getattr(args, name) is not None]


def scaling(args: argparse.Namespace) -> RopeScaling:
    """Return the scaling that the options describe. Raises RopeScalingError."""
    method = args.method or "yarn"
    if args.factor is None and method != "none":
        raise RopeScalingError(f"the method {method} needs --factor, the extended / the original context")
    values = {name: getattr(args, name) for name in OPTION_FIELDS if getattr(args, name) is not None}
    for name in values:
        methods = _METHODS_WITH.get(name, METHODS)
        if method not in methods:
            raise RopeScalingError(f"{_typed(name)} is for the method {' or '.join(methods)}: leave it out")
    return RopeScaling(method, 1.0 if args.factor is None else args.factor, **values)


def _typed(name: str) -> str:
    """Return the option for a field of RopeScaling."""
    return "--no-truncate" if name == "truncate" else f"--{name.replace('_', '-')}"
