"""Small random multimodal checkpoints that transformers saves."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from conformance import use_ggml_gelu

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN = {
    "mistral": {"sliding_window": 64},
    "gemma3_text": {"sliding_window": 64, "query_pre_attn_scalar": 16},
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
AUDIO = {
    **{"hidden_size": 32, "d_model": 32, "intermediate_size": 32, "encoder_ffn_dim": 32},
    **{"encoder_layers": 1, "num_hidden_layers": 1},
    **{"encoder_attention_heads": 2, "num_attention_heads": 2},
}


def save_multimodal(folder: Path, name: str, text_type: str) -> transformers.PreTrainedModel:
    """Save a tiny checkpoint of transformers' NAMEForConditionalGeneration, and return the model."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model_class = getattr(transformers, f"{name}ForConditionalGeneration")
    fields = model_class.config_class.sub_configs
    parts = {"vision_config": VISION, "audio_config": AUDIO}
    parts = {part: values for part, values in parts.items() if part in fields}
    text = {"model_type": text_type, **TEXT, **OWN.get(text_type, {})}
    values = model_class.config_class(text_config=text, **parts)
    torch.manual_seed(0)
    model = model_class(values).eval()
    use_ggml_gelu(model)
    model.save_pretrained(folder)
    return model
