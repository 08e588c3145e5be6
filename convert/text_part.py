"""The text model within a multimodal checkpoint."""

from __future__ import annotations

import re

from yarn_gguf.convert.arch import architecture
from yarn_gguf.convert.arch.config_keys import check_model_class, own_code_note
from yarn_gguf.convert.checkpoint import Checkpoint
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

# model_type: the name of transformers' class before ForConditionalGeneration, and whether it ties the output
# layer to the embedding if config.json does not say.
# Each puts images or sounds into the text as embeddings, and its text model is not changed otherwise.
# PaliGemma is none of them: tokens of its prompt see those after them.
MULTIMODAL = {
    "llava": ("Llava", False),
    "llava_next": ("LlavaNext", False),
    "llava_next_video": ("LlavaNextVideo", False),
    "llava_onevision": ("LlavaOnevision", False),
    "vipllava": ("VipLlava", False),
    "video_llava": ("VideoLlava", False),
    "mistral3": ("Mistral3", True),
    "gemma3": ("Gemma3", True),
    "idefics2": ("Idefics2", False),
    "idefics3": ("Idefics3", False),
    "smolvlm": ("SmolVLM", False),
    "internvl": ("InternVL", True),
    "got_ocr2": ("GotOcr2", True),
    "lighton_ocr": ("LightOnOcr", True),
    "ovis2": ("Ovis2", True),
    "voxtral": ("Voxtral", False),
    "qwen2_audio": ("Qwen2Audio", False),
    "audioflamingo3": ("AudioFlamingo3", False),
}
# what their config.json has beside the values of the text model: nothing of it changes what a text gives
WITHOUT_EFFECT = frozenset(
    {
        *("text_config", "vision_config", "audio_config", "perceiver_config"),
        *("image_token_id", "image_token_index", "image_seq_length", "image_grid_pinpoints"),
        *("video_token_id", "video_token_index", "video_seq_length"),
        *("audio_token_id", "audio_token_index", "visual_indicator_token_ids", "mm_tokens_per_image"),
        *("boi_token_id", "boi_token_index", "eoi_token_id", "eoi_token_index"),
        *("projector_hidden_act", "projector_bias", "projector_layernorm_eps", "multimodal_projector_bias"),
        *("vision_feature_layer", "vision_feature_layers", "vision_feature_select_strategy"),
        *("vision_aspect_ratio", "spatial_pool_mode", "spatial_pool_stride", "spatial_merge_size"),
        *("scale_factor", "downsample_ratio"),
    }
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
    """Return the text model of a checkpoint, and notes: of the parts left out, and of code of its own.

    A checkpoint that is not multimodal is returned as it is. Raises what text_config raises.
    """
    around = checkpoint.config.around
    if around is None:
        return checkpoint, []
    config, notes = text_config(checkpoint.config), own_code_note(around)
    names = {name: text_name(name) for name in checkpoint.tensors}
    if not any(name.startswith("model.") for name in names.values()):
        return Checkpoint(config, checkpoint.tensors), notes  # somebody has taken the text model out of it
    parts = {name.removeprefix("model.").split(".")[0] for name, text in names.items() if not text}
    tensors = {names[name]: tensor for name, tensor in checkpoint.tensors.items() if names[name]}
    left_out = f" (without {', '.join(sorted(parts))})" if parts else ""
    note = (
        f"{config.path.parent}: only the text model of this {around.values['model_type']} checkpoint is "
        f"converted{left_out}"
    )
    return Checkpoint(config, tensors), [*notes, note]


def text_config(config: Config) -> Config:
    """Return a config.json with the tie of a multimodal checkpoint's output layer; another one as it is.

    Raises ConversionError for a checkpoint that is not known to leave text alone, or that names a class with
    another head, and the errors of architecture().
    """
    around = config.around
    if around is None:
        return config
    model_type = around.values.get("model_type")
    if model_type not in MULTIMODAL:
        raise ConversionError(
            f"{config.path}: model_type {model_type!r} may compute text in another way than its "
            f"{config.values.get('model_type')} text model; known are {', '.join(MULTIMODAL)}: convert it "
            "with llama.cpp"
        )
    name, is_tied = MULTIMODAL[model_type]
    arch = architecture(config)
    check_model_class(around, (f"{name}ForConditionalGeneration", *arch.model_classes))
    key = "tie_word_embeddings"  # of the whole, or of the text model alone: transformers takes either
    return config.with_values(
        tie_word_embeddings=bool(around.values.get(key, is_tied) or arch.config.values.get(key))
    )
