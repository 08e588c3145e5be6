"""Write a rope scaling as options of yarn-gguf extend, for the commands that we propose."""

from __future__ import annotations

from dataclasses import fields

from yarn_gguf.rope.scaling import RopeScaling

# fields of RopeScaling that have an option of the same name, except method and factor
OPTION_FIELDS = (
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "ramp",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
)


def options_of(scaling: RopeScaling, policy: str | None = None) -> list[str]:
    """Return the options that ask for `scaling` from the model's own original context.

    policy: of dynamic scaling; None for a static scaling.
    """
    options = ["--method", scaling.method]
    if scaling.method != "none":
        options += ["--factor", f"{scaling.factor:.9g}"]
    for each in fields(scaling):
        value = getattr(scaling, each.name)
        if each.name not in OPTION_FIELDS or value == each.default:
            continue
        option = "--" + each.name.replace("_", "-")
        options += ["--no-truncate"] if each.name == "truncate" else [option, _text(value)]
    if policy is not None:
        options += ["--dynamic"] if policy == "growth" else ["--dynamic", policy]
    return options


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.9g}"
