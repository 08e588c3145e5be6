"""What is likely to bite whoever runs a file: keys that are missing, or that disagree."""

from __future__ import annotations

from yarn_gguf.gguf_rope import RopeModel
from yarn_gguf.gguf_scaling import FREQ_FACTORS, LONG_FACTORS

_REMEDY = "yarn-gguf extend writes a sound set"

# What llama.cpp does with the tensors of rope factors (load_arch_tensors and the graphs in src/models): these
# use them, these load and ignore them, and the loaders of all others refuse a file that has one.
_USES_FACTORS = frozenset(
    (
        *("apertus", "arcee", "deci", "dflash", "eagle3", "exaone", "exaone-moe", "exaone4", "gemma4"),
        *("gemma4-assistant", "granite", "granite_swa", "granitehybrid", "granitemoe", "llama", "llama4"),
        *("minicpm", "minicpm3", "mistral3", "nanbeige", "phi3", "phimoe", "step35"),
    )
)
_IGNORES_FACTORS = frozenset(("cogvlm", "falcon-h1", "llada", "pangu-embedded"))


def warnings(model: RopeModel) -> list[str]:
    """One line for each thing that looks wrong in a file whose scaling is sound. Raises RopeScalingError."""
    scaling = model.scaling
    original = model.key("rope.scaling.original_context_length")
    context = model.key("context_length")
    lines = _factor_tensors(model)
    if scaling.method in ("by-parts", "yarn", "llama3") and original not in model.header.entries:
        lines.append(
            f"{original} is missing: {context} = {model.context_length} is taken for what it was trained "
            f"with; {_REMEDY}"
        )
    elif model.context_length != model.usable_context:
        usable = f"factor x original context = {model.usable_context}"
        lines.append(f"{context} = {model.context_length}, but {usable}; {_REMEDY}")
    return lines


def _factor_tensors(model: RopeModel) -> list[str]:
    found = [name for name in (FREQ_FACTORS, LONG_FACTORS) if name in model.header.tensors]
    if not found or model.arch in _USES_FACTORS:
        return []
    does = "ignores" if model.arch in _IGNORES_FACTORS else "refuses a file with"
    return [
        f"llama.cpp {does} the tensor {found[0]} in a {model.arch} model: convert it without, and "
        "give it the checkpoint's scaling with yarn-gguf extend --from-hf"
    ]
