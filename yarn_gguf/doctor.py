"""What is likely to bite whoever runs a file: keys that are missing, or that disagree."""

from __future__ import annotations

from yarn_gguf.gguf_rope import RopeModel, extended_context

_REMEDY = "yarn-gguf extend writes a sound set"


def warnings(model: RopeModel) -> list[str]:
    """One line for each thing that looks wrong in a file whose scaling is sound. Raises RopeScalingError."""
    scaling = model.scaling
    original = model.key("rope.scaling.original_context_length")
    context = model.key("context_length")
    lines = []
    if scaling.method in ("by-parts", "yarn", "llama3") and original not in model.header.entries:
        lines.append(
            f"{original} is missing: {context} = {model.context_length} is taken for what it was trained "
            f"with; {_REMEDY}"
        )
    elif scaling.original_max_position_embeddings is not None:
        expected = extended_context(scaling.factor, scaling.original_max_position_embeddings)
        if scaling.method != "longrope" and model.context_length != expected:
            lines.append(
                f"{context} = {model.context_length}, but factor x original context = {expected}; {_REMEDY}"
            )
    return lines
