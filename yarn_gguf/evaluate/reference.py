"""Logits that transformers computes from a checkpoint: the reference for a file made from it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.rope.formulas import ntk_base
from yarn_gguf.rope.hf_parameters import rope_parameters
from yarn_gguf.rope.read import RopeModel
from yarn_gguf.rope.scaling import RopeScaling

if TYPE_CHECKING:
    import transformers

# rope types whose frequencies follow the length of the input: the text must be read in one batch
_BY_LENGTH = ("longrope", "dynamic")


def require_transformers() -> None:
    """Raise YarnGGUFError that says how to install them, if torch or transformers are missing."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise YarnGGUFError(
            f"{' and '.join(missing)} compute the logits of a checkpoint, and are not installed: "
            f"pip install {' '.join(missing)}"
        )


class Reference:
    """A checkpoint's model in float32 on the CPU.

    model: of a GGUF file, whose rope scaling replaces the checkpoint's own; None to keep that.
    Raises YarnGGUFError if torch or transformers are missing, RopeScalingError for a scaling that
    transformers does not support, OSError.
    """

    def __init__(self, folder: str | Path, model: RopeModel | None) -> None:
        require_transformers()
        import torch  # these two are slow to import
        import transformers

        self._torch = torch
        transformers.logging.disable_progress_bar()
        config = transformers.AutoConfig.from_pretrained(folder)
        text = config.get_text_config()
        if model is not None:
            _set_scaling(text, model)
        model_class = transformers.AutoModelForCausalLM
        if text is not config:  # a multimodal checkpoint, of which only the text model is asked
            model_class = getattr(transformers, config.architectures[0])
        self._model = model_class.from_pretrained(folder, config=config, dtype=torch.float32).eval()

    def read_logits(self, tokens: Sequence[int], n_batch: int) -> Iterator[np.ndarray]:
        """Yield the logits of each token, `n_batch` tokens at a time: float32 (tokens, vocabulary)."""
        torch, cache = self._torch, None
        at_once = len(tokens) if _reads_at_once(self._model.config.get_text_config()) else n_batch
        for start in range(0, len(tokens), at_once):
            batch = torch.tensor([tokens[start : start + at_once]])
            with torch.no_grad():
                done = self._model(batch, past_key_values=cache, use_cache=True)
            cache, logits = done.past_key_values, done.logits[0].float().numpy()
            for row in range(0, len(logits), n_batch):
                yield logits[row : row + n_batch]


# ----------------------------------------------------------------------------------------------


def _set_scaling(config: transformers.PretrainedConfig, model: RopeModel) -> None:
    """Set the rope parameters: the flat ones, or those of the layers with full attention."""
    own = config.rope_parameters
    asked = _parameters(model.scaling, model)
    if "full_attention" in own:
        config.rope_parameters = own | {"full_attention": own["full_attention"] | asked}
    else:
        config.rope_parameters = own | asked
    config.max_position_embeddings = model.context_length


def _parameters(scaling: RopeScaling, model: RopeModel) -> dict[str, Any]:
    if scaling.method == "ntk":
        base = ntk_base(model.rope_theta, scaling.factor, model.dim)
        return {"rope_type": "default", "rope_theta": base}
    return rope_parameters(scaling, model.rope_theta)


def _reads_at_once(config: transformers.PretrainedConfig) -> bool:
    parameters = config.rope_parameters
    return parameters.get("full_attention", parameters).get("rope_type") in _BY_LENGTH
