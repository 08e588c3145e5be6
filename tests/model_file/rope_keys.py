"""The rope keys of small files, as the tests name them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_gguf import contents

PADDING_KEYS = ("yarn_gguf.spare", "yarn_gguf.pad")  # room that extend leaves in the header


def rope_keys(path: Path, arch: str = "llama") -> dict[str, object]:
    """Return the keys of a file about its rope, context and scaling, without the architecture's prefix."""
    prefix = f"{arch}."
    chosen = (f"{prefix}rope", f"{prefix}context_length", "yarn_gguf.")
    return {
        key.removeprefix(prefix): value
        for key, value in contents(path)[0].items()
        if key.startswith(chosen) and key not in PADDING_KEYS
    }


def scaling_keys(keys: dict[str, object]) -> dict[str, object]:
    """Return the arguments of write_tiny for keys below rope.scaling."""
    return {f"rope__scaling__{key}": value for key, value in keys.items()}


def f32(value: float) -> float:
    """Return `value` rounded to float32."""
    return float(np.float32(value))
