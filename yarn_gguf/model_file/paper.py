"""Measure on paper: ask the library for the memory of a model and a context, without allocating it.

The library loads the model without its weights and makes a context whose buffers have no memory. The sizes
are those that it would allocate, for every architecture.
"""

from __future__ import annotations

from pathlib import Path

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.model_file.memory_plan import CacheUse, MemoryUse, ModelMemory
from yarn_gguf.native.cache_types import CACHE_TYPES
from yarn_gguf.native.memory import PaperModel, memory_of
from yarn_gguf.native.prototypes import ContextMemory, PlacedBytes
from yarn_gguf.native.scaling import set_dynamic_scaling
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.run.arguments import PADDING, padded


class Paper:
    """A model on paper, loaded once for each number of GPU layers that is measured. Close it after use.

    has_gpu: there is a GPU, whether or not a layer is put on it.
    keys: the type of K; None for the KV type.
    params: fields of llama_context_params. n_seq_max is the number of texts.
    """

    def __init__(self, path: Path, has_gpu: bool, keys: str | None, params: dict[str, int]) -> None:
        self.path = path
        self._has_gpu, self._keys, self._params = has_gpu, keys, params
        self._models: dict[int, PaperModel] = {}

    def close(self) -> None:
        """Free the library's objects."""
        for model in self._models.values():
            model.close()

    @property
    def layers(self) -> int:
        """The number of layers that -ngl counts."""
        return self._model(0).layers

    @property
    def parallel(self) -> int:
        """The number of texts."""
        return self._params["n_seq_max"]

    def memory(self, kv_type: str, context: int, gpu_layers: int) -> ModelMemory:
        """Measure the model with a cache of `kv_type` for texts of `context` tokens each.

        Raises ModelLoadError for a KV type that the model cannot have.
        """
        n_ctx = padded(context) * self.parallel
        types = types_of_cache(kv_type, self._keys)
        with self._model(gpu_layers).context(n_ctx=n_ctx, **types, **self._params) as paper:
            return _model_memory(memory_of(paper))

    def can_be_dynamic(self, dynamic: DynamicScaling) -> bool:
        """Return whether the library supports this dynamic scaling for the model."""
        f32 = CACHE_TYPES["f32"]  # the policy "exact" needs it
        with self._model(0).context(n_ctx=PADDING, type_k=f32, type_v=f32) as context:
            try:
                set_dynamic_scaling(context, dynamic)
            except RopeScalingError:
                return False
        return True

    def _model(self, gpu_layers: int) -> PaperModel:
        if gpu_layers not in self._models:
            self._models[gpu_layers] = PaperModel(self.path, gpu_layers if self._has_gpu else None)
        return self._models[gpu_layers]


def types_of_cache(kv_type: str, keys: str | None) -> dict[str, int]:
    """Return type_k and type_v of llama_context_params. keys: the type of K; None for `kv_type`."""
    return {"type_k": CACHE_TYPES[keys or kv_type], "type_v": CACHE_TYPES[kv_type]}


# ----------------------------------------------------------------------------------------------


def _model_memory(memory: ContextMemory) -> ModelMemory:
    attention = "compressed attention (MLA)" if memory.compressed else "full attention"
    kinds = {
        attention: memory.attention,
        "sliding window": memory.window,
        "recurrent states": memory.recurrent,
    }
    caches = [CacheUse(kind, each.layers, each.cells, _use(each.bytes)) for kind, each in kinds.items()]
    caches.append(CacheUse("other", 0, 0, _use(memory.other)))
    used = tuple(each for each in caches if each.use.total)
    return ModelMemory(_use(memory.weights), used, _use(memory.compute))


def _use(value: PlacedBytes) -> MemoryUse:
    return MemoryUse(ram=value.host, gpu=value.device)
