"""Llama: llama_cpp.Llama on the patched library, plus rope scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf import gguf_rope, native, rope
from yarn_gguf.errors import RopeScalingError
from yarn_gguf.gguf_file import read_header
from yarn_gguf.rope import RopeScaling

llama_cpp = native.load()

# llama_cpp.Llama passes 1.0, 32 and 1 unless told otherwise, which would override the file's values.
_FROM_THE_FILE = {"yarn_attn_factor": -1.0, "yarn_beta_fast": -1.0, "yarn_beta_slow": -1.0}

# the arguments of llama_cpp.Llama that `rope_scaling` stands for
_ROPE_ARGUMENTS = (
    "rope_scaling_type",
    "rope_freq_base",
    "rope_freq_scale",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_orig_ctx",
)


class Llama(llama_cpp.Llama):
    """A drop-in for llama_cpp.Llama that takes `rope_scaling`.

    rope_scaling: a RopeScaling, of any method; or the name "yarn", "linear", "ntk" or "by-parts", with
        the factor that makes `n_ctx` fit, or "none"; or None for what the file says. What the file lacks,
        such as the original context, comes from its metadata. The caller goes before the file, and
        the file before the defaults.

    All other arguments are llama_cpp.Llama's, among them its own rope_* and yarn_* ones, of which
    `yarn_attn_factor` is ggml's operand: it multiplies 0.1 ln(factor) + 1. They and `rope_scaling`
    exclude each other.

    Raises GGUFError, RopeScalingError or ModelLoadError (all are ValueErrors); never ends the process.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        rope_scaling: RopeScaling | str | None = None,
        n_ctx: int = 512,
        **kwargs: Any,
    ) -> None:
        read_header(model_path)  # a damaged file is refused here, with a clear message
        self.rope_scaling: RopeScaling | None = None
        if rope_scaling is not None:
            model = gguf_rope.read_model(model_path)
            given = [name for name in _ROPE_ARGUMENTS if name in kwargs]
            if given:
                raise RopeScalingError(f"give rope_scaling or {', '.join(given)}, not both")
            self.rope_scaling = _resolve(rope_scaling, model, n_ctx)
            kwargs |= context_arguments(self.rope_scaling, model)
            table = self.rope_scaling.frequencies(
                model.dim, model.rope_theta, seq_len=n_ctx or model.context_length
            )
        with native.native_reasons(model_path):
            super().__init__(str(model_path), n_ctx=n_ctx, **(_FROM_THE_FILE | kwargs))
        if self.rope_scaling is not None and not rope.rope_op_has(self.rope_scaling):
            factor = self.rope_scaling.factor
            native.set_rope_frequencies(self._ctx.ctx, table.inv_freq, factor, table.attention_factor)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.rope_scaling is not None:
            state = {name: value for name, value in state.items() if name not in _ROPE_ARGUMENTS}
        return state | {"rope_scaling": self.rope_scaling}

    def close(self) -> None:
        """Free model and context. May be called again; also after a failed start."""
        if hasattr(self, "_stack"):
            super().close()

    def read_logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Read `tokens` after what is in the cache and yield the logits of each, a batch at a time.

        Each array is float32 (tokens of the batch, n_vocab): row i predicts the token after token i. It
        is a view of the library's buffer, which the next batch overwrites.
        """
        self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1)
        for start in range(0, len(tokens), self.n_batch):
            batch = tokens[start : start + self.n_batch]
            self._batch.set_batch(batch=batch, n_past=self.n_tokens, logits_all=True)
            self._ctx.decode(self._batch)
            self.input_ids[self.n_tokens : self.n_tokens + len(batch)] = batch
            self.n_tokens += len(batch)
            self._requires_eval = False
            yield np.ctypeslib.as_array(self._ctx.get_logits(), shape=(len(batch), self._n_vocab))

    def prefill(self, tokens: Sequence[int], progress: Callable[[int, int], None] | None = None) -> None:
        """Read `tokens` into the cache after what is there, calling progress(done, total) a batch."""
        for start in range(0, len(tokens), self.n_batch):
            self.eval(tokens[start : start + self.n_batch])
            if progress is not None:
                progress(min(start + self.n_batch, len(tokens)), len(tokens))


def context_arguments(scaling: RopeScaling, model: gguf_rope.RopeModel) -> dict[str, Any]:
    """The arguments of llama_cpp.Llama that ask for `scaling`; for plain rope, if none can express it."""
    arguments = {
        "rope_scaling_type": llama_cpp.LLAMA_ROPE_SCALING_TYPE_NONE,
        "rope_freq_base": model.rope_theta,
        "rope_freq_scale": 1.0,
        "yarn_ext_factor": 0.0,
        "yarn_attn_factor": 1.0,
    }
    if not rope.rope_op_has(scaling):
        return arguments
    arguments["yarn_attn_factor"] = scaling.temperature()
    if scaling.method == "ntk":
        arguments["rope_freq_base"] = rope.ntk_base(model.rope_theta, scaling.factor, model.dim)
    if scaling.method == "linear":
        arguments["rope_scaling_type"] = llama_cpp.LLAMA_ROPE_SCALING_TYPE_LINEAR
        arguments["rope_freq_scale"] = 1 / scaling.factor
    if scaling.method in ("by-parts", "yarn"):
        arguments |= {
            "rope_scaling_type": llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN,
            "rope_freq_scale": 1 / scaling.factor,
            "yarn_orig_ctx": scaling.original_max_position_embeddings,
            "yarn_ext_factor": 1.0,
            "yarn_attn_factor": rope.ggml_attn_factor(scaling.temperature(), scaling.factor),
            "yarn_beta_fast": scaling.beta_fast,
            "yarn_beta_slow": scaling.beta_slow,
        }
    return arguments


def _resolve(rope_scaling: RopeScaling | str, model: gguf_rope.RopeModel, n_ctx: int) -> RopeScaling:
    if isinstance(rope_scaling, RopeScaling):
        return rope_scaling.with_original_context(model.original_context)
    if rope_scaling == "none":
        return RopeScaling("none")
    if n_ctx <= 0:
        raise RopeScalingError(f"rope_scaling={rope_scaling!r} takes its factor from n_ctx: give n_ctx")
    factor = max(1.0, n_ctx / model.original_context)
    return RopeScaling(rope_scaling, factor=factor, original_max_position_embeddings=model.original_context)
