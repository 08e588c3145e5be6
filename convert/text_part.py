"""The text model within a multimodal checkpoint."""

from __future__ import annotations

import re

from yarn_gguf.convert.checkpoint import Checkpoint
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

# Each puts images or sounds into the text as embeddings, and its text model is not changed otherwise.
# PaliGemma is none of them: tokens of its prompt see those after them.
_MULTIMODAL = (
    *("llava", "llava_next", "llava_next_video", "llava_onevision", "vipllava", "video_llava"),
    *("mistral3", "gemma3", "idefics2", "idefics3", "smolvlm", "internvl", "got_ocr2", "lighton_ocr"),
    *("ovis2", "voxtral", "qwen2_audio", "audioflamingo3"),
)
_INSIDE = re.compile(r"(?:model\.)?(?:language_model|text_model)\.(?:model\.)?(.+)")
_HEAD = "lm_head."


def text_name(name: str) -> str:
    """Return the name that a tensor has in a text model alone; "" if it belongs to another part.

    Both namings of transformers are known: language_model.model.X, and model.language_model.X.
    """
    if name.startswith(_HEAD):
        return name
    inside = _INSIDE.fullmatch(name)
    if not inside:
        return ""
    return inside[1] if inside[1].startswith(_HEAD) else f"model.{inside[1]}"


def text_part(checkpoint: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """Return the text model of a checkpoint, and a note that names the parts left out.

    A checkpoint that is not multimodal is returned as it is. Raises ConversionError for a multimodal one that
    may compute text in another way than its text model.
    """
    config = checkpoint.config
    if not config.around:
        return checkpoint, []
    check_multimodal(config)
    names = {name: text_name(name) for name in checkpoint.tensors}
    if not any(name.startswith("model.") for name in names.values()):
        return checkpoint, []  # somebody has taken the text model out of it
    parts = {name.removeprefix("model.").split(".")[0] for name, text in names.items() if not text}
    tensors = {names[name]: tensor for name, tensor in checkpoint.tensors.items() if names[name]}
    left_out = f" (without {', '.join(sorted(parts))})" if parts else ""
    note = (
        f"{config.path.parent}: only the text model of this {config.around} checkpoint is converted{left_out}"
    )
    return Checkpoint(config, tensors), [note]


def check_multimodal(config: Config) -> None:
    """Raise ConversionError if a checkpoint is multimodal in a way that is not known to leave text alone."""
    if config.around and config.around not in _MULTIMODAL:
        raise ConversionError(
            f"{config.path}: model_type {config.around!r} may compute text in another way than its "
            f"{config.values.get('model_type')} text model; known are {', '.join(_MULTIMODAL)}: convert it "
            "with llama.cpp"
        )
