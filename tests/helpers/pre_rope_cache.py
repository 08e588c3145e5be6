"""The oracle of dynamic scaling: transformers with a cache of K before RoPE, as the paper describes it.

Every forward pass rotates all cached keys anew, by the present frequencies. It shares no code with ours.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import transformers


class PreRopeCache(transformers.DynamicCache):
    """A cache that keeps K unrotated and returns it rotated. tables: (inv_freq, magnitude) of each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[tuple[torch.Tensor, float]] = []

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        inv_freq, magnitude = self.tables[layer_idx]
        return rotate(keys, inv_freq, magnitude), values


def rotate(x: torch.Tensor, inv_freq: torch.Tensor, magnitude: float, first: int = 0) -> torch.Tensor:
    """Rotate x, of shape (batch, heads, tokens, head_dim), at positions first, first + 1, …

    The rotary pairs are (i, i + dim/2).
    """
    positions = torch.arange(first, first + x.shape[2], dtype=torch.float64)
    angles = positions[:, None] * inv_freq.double()
    cos, sin = (magnitude * f(angles).float() for f in (torch.cos, torch.sin))
    half = inv_freq.shape[0]
    one, two, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((one * cos - two * sin, two * cos + one * sin, rest), dim=-1)


class Oracle:
    """A tiny transformers model that reads chunks of a text, each under its own frequencies.

    windows_are_scaled: whether layers with a sliding window are scaled like the others.
    """

    def __init__(self, model: transformers.PreTrainedModel, *, windows_are_scaled: bool) -> None:
        self._model = model
        self._cache = PreRopeCache()
        self._length = 0
        types = getattr(model.config, "layer_types", None)
        count = model.config.num_hidden_layers
        self._is_scaled = [windows_are_scaled or not types or "full" in types[i] for i in range(count)]
        self._module = sys.modules[type(model).__module__]

    def read(
        self, tokens: list[int], inv_freq: np.ndarray, magnitude: float, plain: np.ndarray
    ) -> np.ndarray:
        """Read `tokens` and return their logits: float32 (len(tokens), n_vocab).

        inv_freq, magnitude: for scaled layers. plain: inv_freq for the others.
        """
        scaled, unscaled = (torch.tensor(inv_freq), magnitude), (torch.tensor(plain), 1.0)
        self._cache.tables = [scaled if is_scaled else unscaled for is_scaled in self._is_scaled]
        layers = iter(self._cache.tables)
        first = self._length

        def rotate_query_alone(q, k, cos, sin, *args, **kwargs):
            return rotate(q, *next(layers), first), k

        original = self._module.apply_rotary_pos_emb
        self._module.apply_rotary_pos_emb = rotate_query_alone
        try:
            with torch.no_grad():
                positions = torch.arange(first, first + len(tokens))[None]
                done = self._model(
                    torch.tensor([tokens]),
                    past_key_values=self._cache,
                    position_ids=positions,
                    use_cache=True,
                )
        finally:
            self._module.apply_rotary_pos_emb = original
        self._length += len(tokens)
        return done.logits[0].float().numpy()
