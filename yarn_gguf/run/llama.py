"""Llama: llama_cpp.Llama on the patched library, plus rope scaling."""

from __future__ import annotations

import ctypes
from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from yarn_gguf.disk import fingerprint
from yarn_gguf.errors import NoRoomError, RopeScalingError, SessionError, YarnGGUFError
from yarn_gguf.gguf.header import read_header
from yarn_gguf.native.log import native_reasons, native_refusals
from yarn_gguf.native.prototypes import DynamicState
from yarn_gguf.native.sampling import check_grammar
from yarn_gguf.native.scaling import reserve_context
from yarn_gguf.native.signals import deferred_exceptions, load_progress
from yarn_gguf.progress import Progress
from yarn_gguf.rope.dynamic import DynamicScaling, Scaling
from yarn_gguf.rope.read import RopeModel, model_of
from yarn_gguf.rope.requested import RequestedScaling
from yarn_gguf.run import arguments, sampling
from yarn_gguf.run.adapter import check_adapter
from yarn_gguf.run.arguments import ROPE_ARGUMENTS, signature_of
from yarn_gguf.run.cached_text import CachedText
from yarn_gguf.run.context_scaling import (
    scaling_at_load,
    scaling_to_change,
    warn_of_replaced,
)
from yarn_gguf.run.embedding import batches_of
from yarn_gguf.run.grammar.response_format import require_obeyed, with_grammar
from yarn_gguf.run.handles import Batch, Closed, Context, Further, Model, close_all, llama_cpp
from yarn_gguf.run.overrides import overridden, taken_by_the_library
from yarn_gguf.run.reader import Reader
from yarn_gguf.run.state_cache import StateCache
from yarn_gguf.run.turns import NESTED, Request, Turns

from llama_cpp import llama_types  # isort: skip  (after handles)
from llama_cpp.llama_cache import BaseLlamaCache  # isort: skip
from llama_cpp.llama_chat_format import LlamaChatCompletionHandler  # isort: skip
from llama_cpp.llama_speculative import LlamaDraftModel  # isort: skip
from llama_cpp.llama_tokenizer import BaseLlamaTokenizer  # isort: skip

_OWN_ARGUMENTS = ("self", "__class__", "model_path", "rope_scaling", "progress")  # not llama_cpp.Llama's


class Llama(llama_cpp.Llama):
    """A drop-in for llama_cpp.Llama that takes `rope_scaling`.

    rope_scaling: one of
        a RopeScaling, of any method, or a DynamicScaling, which follows the length of the text;
        the name "yarn", "linear", "ntk" or "by-parts", with the factor that makes `n_ctx` fit;
        "dynamic-yarn" and the like; "none";
        Hugging Face's rope_parameters, a dict such as {"rope_type": "yarn", "factor": 4.0};
        None, for the scaling that the file asks for.
        Values that the scaling lacks, such as the original context, come from the file's metadata. The
        caller goes before the file, and the file before the defaults.

    All other arguments are llama_cpp.Llama's. Its own rope_* and yarn_* arguments and `rope_scaling` exclude
    each other. `yarn_attn_factor` is ggml's operand: it multiplies 0.1 ln(factor) + 1. The default of a rope
    argument leaves the value to the file, and so does llama_cpp.Llama's default. Another value overrides the
    file's, and replaces its dynamic scaling with a warning.

    Where None stands for a value that suits a long context:

    n_ubatch: 512; with `embedding`, n_batch.
    flash_attn: on, unless K or V is float32.
    type_k, type_v: f16; K is float32 under the policy "exact".

    progress: called as progress(done, total) after each n_ubatch tokens of a prompt. `total` counts the
        tokens that were not in the cache. An exception in it ends the request. It is an attribute, too.

    Several threads may use one Llama: requests wait for one another, and `cancel` ends the one under way.

    cached_text: the text in the cache. turns: the turns that requests take.

    Raises GGUFError, RopeScalingError or ModelLoadError (all are ValueErrors); never ends the process.
    """

    _model: Model
    _ctx: Context
    _batch: Batch

    def __init__(
        self,
        model_path: str | Path,
        *,
        rope_scaling: RequestedScaling | None = None,
        progress: Progress | None = None,
        n_gpu_layers: int = 0,
        split_mode: int = llama_cpp.LLAMA_SPLIT_MODE_LAYER,
        main_gpu: int = 0,
        tensor_split: list[float] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: dict[str, bool | int | float | str] | None = None,
        seed: int = llama_cpp.LLAMA_DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int | None = None,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | None = llama_cpp.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED,
        pooling_type: int = llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED,
        attention_type: int = llama_cpp.LLAMA_ATTENTION_TYPE_UNSPECIFIED,
        rope_freq_base: float | None = 0.0,
        rope_freq_scale: float | None = 0.0,
        yarn_ext_factor: float | None = -1.0,
        yarn_attn_factor: float | None = -1.0,
        yarn_beta_fast: float | None = -1.0,
        yarn_beta_slow: float | None = -1.0,
        yarn_orig_ctx: int | None = 0,
        logits_all: bool = False,
        embedding: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool | None = None,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        lora_base: str | None = None,
        lora_scale: float = 1.0,
        lora_path: str | None = None,
        numa: bool | int = False,
        chat_format: str | None = None,
        chat_handler: LlamaChatCompletionHandler | None = None,
        draft_model: LlamaDraftModel | None = None,
        tokenizer: BaseLlamaTokenizer | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
        mul_mat_q: bool = True,  # llama-cpp-python's server passes it, and nothing reads it
        rpc_servers: str | None = None,  # the same
    ) -> None:
        given = {name: each for name, each in locals().items() if name not in _OWN_ARGUMENTS}
        self.progress = progress
        self.turns = Turns()
        self.cached_text = CachedText()  # of no context yet
        self._reserved = 0  # tokens
        given = arguments.checked(given)
        self._status = fingerprint.statuses(model_path)
        overrides = given.get("kv_overrides")
        header = overridden(read_header(model_path), overrides)  # refuses a damaged file with a clear message
        self._scaling, chosen = scaling_at_load(rope_scaling, header, given)
        given |= chosen
        if lora_path:
            check_adapter(lora_path, header)
            self._adapter_status = fingerprint.statuses(lora_path)
        try:
            with taken_by_the_library(header, overrides), native_reasons(model_path):
                try:
                    super().__init__(str(model_path), **arguments.with_defaults(given))
                except jinja2.TemplateError as error:
                    raise ValueError(f"its chat template cannot be used: {error}") from error
                if self._lora_adapter is not None and not self._lora_adapter:  # a null pointer
                    raise ValueError(f"{self.lora_path} is no adapter for this model (lora_path)")
            self._take_over()
            self._scaling = self._scaling.applied(self._ctx.ctx)
        except BaseException:
            self.close()
            raise

    @property
    def model_params(self) -> llama_cpp.llama_model_params:
        """llama.cpp's parameters of the model. A signal's exception ends a load with them."""
        return self._model_params

    @model_params.setter
    def model_params(self, params: llama_cpp.llama_model_params) -> None:
        params.progress_callback = load_progress
        self._model_params = params

    def _take_over(self) -> None:
        """Give our checks to the parts that llama_cpp.Llama made, and room for the library's n_ctx."""
        self._model.__class__, self._ctx.__class__, self._batch.__class__ = Model, Context, Batch
        self._model.turns = self._ctx.turns = self.turns
        self._further: set[Further] = set()
        self._model._exit_stack.callback(close_all, self._further)  # before the weights are freed
        if self._logits_all and len(self.scores) < self.n_ctx():
            self.scores = np.empty((self.n_ctx(), self._n_vocab), np.single)
        self.cached_text = CachedText(self._ctx, self.n_ctx())
        scores = self.scores if self._logits_all else None
        self._reader = Reader(self._ctx, self._batch, self.cached_text, self.n_batch, scores)

    # ---- the cached text, by the names of llama_cpp.Llama --------------------------------------

    @property
    def n_tokens(self) -> int:
        """Tokens in the cache. A smaller number cuts the text."""
        return len(self.cached_text)

    @n_tokens.setter
    def n_tokens(self, count: int) -> None:
        if count <= len(self.cached_text):
            self.cached_text.cut(count)
        else:  # input_ids has them already
            self.cached_text.restore(count)

    @property
    def input_ids(self) -> np.ndarray:
        """A buffer of n_ctx tokens, int32. The first n_tokens are in the cache."""
        return self.cached_text.buffer

    @input_ids.setter
    def input_ids(self, tokens: np.ndarray) -> None:
        count = min(len(tokens), self.cached_text.capacity)
        self.cached_text.buffer[:count] = tokens[:count]

    @property
    def _requires_eval(self) -> bool:
        return not self.cached_text.has_logits

    @_requires_eval.setter
    def _requires_eval(self, value: bool) -> None:
        self.cached_text.has_logits = not value

    @property
    def cache(self) -> StateCache | None:
        """The cache of states that `set_cache` gave.

        Entries of another model, scaling or context are not found.
        """
        return self._cache

    @cache.setter
    def cache(self, states: BaseLlamaCache | None) -> None:
        if isinstance(states, StateCache):  # of another Llama
            states = states.states
        self._cache = None if states is None else StateCache(states, self)

    # ---- rope scaling --------------------------------------------------------------------------

    @property
    def rope_scaling(self) -> Scaling | None:
        """The scaling in force; None where the file, or llama_cpp.Llama's own arguments, decide."""
        return self._scaling.scaling

    def set_rope_scaling(self, rope_scaling: RequestedScaling | None) -> None:
        """Take another scaling from now on, on the weights that are loaded. The cache is emptied.

        rope_scaling: as for the constructor. Raises RopeScalingError, with the scaling as it was.
        """
        model, base = self._rope_model(), self.context_params.rope_freq_base
        with self.turns.take():
            before = self._scaling
            self._scaling = scaling_to_change(rope_scaling, model, self.n_ctx(), base)
            warn_of_replaced(model, self._scaling.scaling)
            try:
                self.empty()
                self._scaling.apply(self._ctx.ctx)
            except RopeScalingError:
                self._scaling = before
                raise

    def _rope_model(self) -> RopeModel:
        """Return the rotary embedding in the file, under the overrides that this Llama was loaded with."""
        return model_of(overridden(read_header(self.model_path), self.kv_overrides))

    def make_context(
        self, n_ctx: int, n_seq_max: int = 1, *, unified: bool = False, longest: int | None = None
    ) -> Further:
        """Make a further context for `n_seq_max` texts of `n_ctx` tokens each.

        It has the weights, adapter and scaling of this Llama, and closes with it at the latest. unified: the
        texts share a cache of `n_ctx` tokens in all, which has their common beginnings once. longest: tokens
        of the longest text, if that is less than n_ctx. Raises ModelLoadError, RopeScalingError.
        """
        params = type(self.context_params).from_buffer_copy(self.context_params)
        params.n_ctx = n_ctx if unified else n_ctx * n_seq_max
        params.n_seq_max, params.kv_unified = n_seq_max, unified
        with self.turns.between():
            with native_reasons(self.model_path):
                context = Further(self._model, params, self._further)
            scaling = self._scaling
            if scaling.table is not None:
                scaling = scaling.for_length(self._rope_model(), longest or n_ctx)
            scaling.apply(context.ctx)
            if self._lora_adapter:
                adapter: Any = self._lora_adapter
                adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
                scales = (ctypes.c_float * 1)(self.lora_scale)
                llama_cpp.llama_set_adapters_lora(context.ctx, adapters, 1, scales)
        return context

    @property
    def dynamic_state(self) -> DynamicState:
        """The state of dynamic scaling: the factor in force, and the rotations of cached keys so far."""
        return self._ctx.dynamic_state()

    @property
    def reserves_for_request(self) -> bool:
        """Whether s is set for prompt and answer before the prompt is read (policy "request")."""
        return self._scaling.is_for_request

    def reserve(self, tokens: int) -> None:
        """Under dynamic scaling: let s suffice for at least `tokens` from now on.

        Under the policy "request" this holds until the next request or reset. No more than n_ctx is reserved.
        Raises YarnGGUFError for less than 0.
        """
        if tokens < 0:
            raise YarnGGUFError(f"tokens to reserve must be a whole number >= 0, got {tokens}")
        with self.turns.between():
            self._reserved = min(tokens, self.n_ctx())
            reserve_context(self._ctx.ctx, self._reserved)

    def reserve_for_request(self, tokens: int) -> None:
        """Under the policy "request": let s suffice for `tokens`, prompt and answer together."""
        if self.reserves_for_request:
            self.reserve(tokens)

    def keep_factor(self) -> None:
        """Under the policy "request": reserve for the s of a state that was restored."""
        if isinstance(self.rope_scaling, DynamicScaling):
            original = self.rope_scaling.scaling.original_context
            self.reserve_for_request(round(self.dynamic_state.factor * original))

    def _cover(self, count: int) -> None:
        """Under the policy "request": reserve for `count` more tokens, if that is more than is reserved."""
        tokens = len(self.cached_text) + count
        if tokens > self._reserved:
            self.reserve_for_request(tokens)

    # ---- requests ------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Cancel the request under way, from any thread.

        It ends before the next n_ubatch tokens of the prompt, or before the answer's next token: its call, or
        the next step of its stream, raises Cancelled. The cache stays right and the tokens stay read, so that
        the same prompt goes on from there. Without a request under way nothing happens.
        """
        self.turns.cancel()

    @signature_of(llama_cpp.Llama.create_chat_completion)
    def create_chat_completion(
        self, *args: Any, **kwargs: Any
    ) -> llama_types.CreateChatCompletionResponse | Iterator[llama_types.CreateChatCompletionStreamResponse]:
        """Answer messages, as llama_cpp.Llama does. All work of a `chat_handler` is one request.

        response_format: OpenAI's, {"type": "json_schema", ...} too. Raises YarnGGUFError for a schema that
        cannot be obeyed.
        """
        given = signature(super().create_chat_completion).bind(*args, **kwargs).arguments
        asked = with_grammar(given)
        if self.chat_handler is None:
            return super().create_chat_completion(**asked)
        with self.turns.take() as request:
            answer = super().create_chat_completion(**asked)
        return answer if isinstance(answer, dict) else self.turns.through((part for part in answer), request)

    def _create_completion(self, *args: Any, **kwargs: Any) -> Any:
        def steps() -> Any:
            request = self.turns.request
            request.answer = max(0, kwargs.get("max_tokens", 16) or 0)  # unknown where there is no limit
            request.is_completion = True
            wants_scores = kwargs.get("echo") and kwargs.get("logprobs") is not None
            if wants_scores and not self.cached_text.has_scores:
                self.reset()  # the prompt is read again, for its logits
            for part in super(Llama, self)._create_completion(*args, **kwargs):
                choice = part["choices"][0]
                if request.is_cut_short and choice["finish_reason"]:
                    choice["finish_reason"] = "length"
                yield part

        return self.turns.through(steps())

    @signature_of(llama_cpp.Llama.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        """Generate tokens after a prompt, as llama_cpp.Llama does."""

        def steps() -> Any:
            request = self.turns.request
            if request.is_generating:
                raise YarnGGUFError(NESTED)
            request.is_generating = request.is_prompt_next = True
            try:
                return (yield from super(Llama, self).generate(*args, **kwargs))
            except NoRoomError:
                if request.is_prompt_next or not request.is_completion or self.token_eos() < 0:
                    raise
                request.is_cut_short = True  # completions go on to the last byte of a character
                yield self.token_eos()
            finally:
                request.is_generating = False

        return self.turns.through(steps())

    def _init_sampler(self, *args: Any, **kwargs: Any) -> sampling.Sampler:
        raised: list[BaseException] = []
        if (processors := kwargs.get("logits_processor")) is not None:
            kwargs["logits_processor"] = sampling.watched(processors, raised)
        if (grammar := kwargs.get("grammar")) is not None:
            require_obeyed(grammar._grammar)
            check_grammar(self._model.vocab, grammar._grammar, grammar._root)
        sampler: Any = super()._init_sampler(*args, **kwargs)
        sampler.__class__, sampler.raised = sampling.Sampler, raised
        return sampler

    @signature_of(llama_cpp.Llama.sample)
    def sample(self, *args: Any, **kwargs: Any) -> int:
        """Sample a token, as llama_cpp.Llama does.

        Raises YarnGGUFError if nothing was read, and the exceptions of logits processors.
        """
        with self.turns.take():
            if not len(self.cached_text):
                raise YarnGGUFError("there is nothing to go on from: the prompt is empty")
            before = self._sampler
            try:
                token = super().sample(*args, **kwargs)
            except BaseException:
                self._sampler = before
                raise
            if kwargs.get("idx") is not None:
                self.cached_text.accept(kwargs["idx"] + 1)
            return token

    # ---- reading -------------------------------------------------------------------------------

    def eval(self, tokens: Sequence[int]) -> None:
        """Read `tokens` after the cached text. Raises NoRoomError, with nothing read, if they do not fit."""
        with self.turns.take() as request:
            self._reader.require_room(len(tokens))
            if request.is_generating and not request.is_prompt_next:
                self._reader.read_answer(tokens[: self._covered(len(tokens))])
                return
            self._begin_reading(request, len(tokens))
            self._read(tokens, self.progress)
            request.is_prompt_next = False

    def _covered(self, count: int) -> int:
        """Return how many of `count` tokens are read together: a sampled one, and draft tokens after it.

        A draft token must not move s before it is accepted, so s in force has to suffice for it.
        """
        if not isinstance(self.rope_scaling, DynamicScaling):
            return count
        suffices_for = int(self.dynamic_state.factor * self.rope_scaling.scaling.original_context)
        return max(1, min(count, suffices_for - len(self.cached_text)))

    def _begin_reading(self, request: Request, count: int) -> None:
        """Settle draft tokens of an earlier answer, and s, before `count` tokens are read."""
        if request.is_prompt_next:
            self.cached_text.accept(len(self.cached_text))  # the prompt begins with these tokens
            self.reserve_for_request(len(self.cached_text) + count + request.answer)
        else:
            self.cached_text.drop_drafts()

    def prefill(self, tokens: Sequence[int], progress: Progress | None = None) -> None:
        """Read `tokens` after the cached text, calling progress(done, total) each n_ubatch tokens.

        progress: None for that of the Llama. Raises NoRoomError, with nothing read, if the tokens do not fit;
        Cancelled; and exceptions of `progress`, with the tokens read that it was told of.
        """
        with self.turns.take():
            self._prepare_prefill(len(tokens))
            self._read(tokens, progress or self.progress)

    def prefill_steps(self, tokens: Sequence[int]) -> Generator[tuple[int, int], None, None]:
        """Read `tokens` as prefill does, and yield (done, total) after each n_ubatch tokens.

        The caller may do other work in between, such as saving. It is one request.
        """

        def steps() -> Generator[tuple[int, int], None, None]:
            self._prepare_prefill(len(tokens))
            yield from self._reader.read(tokens)

        return self.turns.through(steps())

    def _prepare_prefill(self, count: int) -> None:
        self.cached_text.drop_drafts()
        self._reader.require_room(count)
        self._cover(count)

    def _read(self, tokens: Sequence[int], progress: Progress | None) -> None:
        for done, total in self._reader.read(tokens):
            if progress is not None:
                with self.turns.reporting():
                    progress(done, total)

    def read_logits(self, tokens: Sequence[int], *, copy: bool = True) -> Iterator[np.ndarray]:
        """Read `tokens` after the cached text and yield the logits of each, n_ubatch tokens at a time.

        Each array is float32 (tokens, n_vocab): row i predicts the token after token i. It is a view of one
        buffer, which the next overwrites. copy: False for the library's own memory, where nobody can close
        this Llama meanwhile. Raises NoRoomError, with nothing read, if the tokens do not fit.
        """

        def steps() -> Generator[np.ndarray, None, None]:
            self._prepare_prefill(len(tokens))
            yield from self._reader.read_logits(tokens, copy)

        return self.turns.through(steps())

    @signature_of(llama_cpp.Llama.embed)
    def embed(
        self, *args: Any, **kwargs: Any
    ) -> list[Any] | tuple[list[Any], int]:  # the second where return_count is given
        """Embed texts, as llama_cpp.Llama does. Nothing is cached after it, however it ends.

        Under dynamic scaling each text has the s of its own length.
        """
        with self.turns.take():
            try:
                return self._embed(**signature(super().embed).bind(*args, **kwargs).arguments)
            finally:
                self._ctx.kv_cache_clear()
                self.reset()

    def _embed(
        self, input: str | list[str], return_count: bool = False, truncate: bool = True, **options: Any
    ) -> Any:
        texts = [input] if isinstance(input, str) else input
        counts = [len(self.tokenize(text.encode())) for text in texts]
        if truncate:
            counts = [min(count, self.n_batch) for count in counts]
        found: list[Any] = [None] * len(texts)
        for batch in batches_of(counts, self._ctx.pooling_type(), self.rope_scaling):
            self.reserve_for_request(max(counts[i] for i in batch))
            embeddings = super().embed([texts[i] for i in batch], truncate=truncate, **options)
            for i, embedding in zip(batch, embeddings, strict=True):
                found[i] = embedding
        result = found[0] if isinstance(input, str) else found
        return (result, sum(counts)) if return_count else result

    def reset(self) -> None:
        """Let the next token be the first. A stream that has not ended is cut off."""
        with self.turns.take():
            super().reset()
            self.cached_text.has_scores = True
            self.reserve_for_request(0)

    def empty(self) -> None:
        """Reset, and remove every token from the cache: the next prompt finds nothing to go on from."""
        with self.turns.take():
            self.reset()
            self.cached_text.forget()

    # ---- text ----------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> Model:
        """The model as its vocabulary, for tokens and their texts."""
        return self._model

    @signature_of(llama_cpp.Llama.tokenize)
    def tokenize(self, text: bytes, *args: Any, **kwargs: Any) -> list[int]:
        """Return tokens, as llama_cpp.Llama does. Raises YarnGGUFError for a model without a vocabulary."""
        self._require_vocabulary()
        return super().tokenize(text, *args, **kwargs)

    @signature_of(llama_cpp.Llama.detokenize)
    def detokenize(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> bytes:
        """Return text, as llama_cpp.Llama does. Raises YarnGGUFError for numbers that are no tokens."""
        self._require_vocabulary()
        if len(tokens) and not 0 <= min(tokens) <= max(tokens) < self.n_vocab():
            raise YarnGGUFError(
                f"tokens are whole numbers from 0 to {self.n_vocab() - 1}, got {min(tokens)} to {max(tokens)}"
            )
        return super().detokenize([*tokens], *args, **kwargs)

    def _require_vocabulary(self) -> None:
        if self._model.vocab_type() == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            raise YarnGGUFError(f"{self.model_path} has no vocabulary: give tokens, and take them")

    def n_embd(self) -> int:
        """Return the size of an embedding; the number of scores for a model that ranks (`pooling_type` 4)."""
        if self._ctx.pooling_type() == llama_cpp.LLAMA_POOLING_TYPE_RANK:
            return llama_cpp.llama_model_n_cls_out(self._model.model)
        return super().n_embd()

    # ---- states and files ----------------------------------------------------------------------

    def save_state(self) -> llama_cpp.LlamaState:
        """Return the state of the cache, as llama_cpp.Llama does."""
        with self.turns.between():
            return super().save_state()

    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """Take a state, as llama_cpp.Llama does. Raises RopeScalingError for one of another scaling.

        Raises NoRoomError for one of a text that does not fit.
        """
        text = self.cached_text
        before = text.tokens.copy(), self._seed
        with self.turns.take(), native_refusals(), self._reader.recounting():
            try:
                if state.n_tokens > text.capacity:
                    raise NoRoomError(f"the state has {state.n_tokens} tokens, and n_ctx is {text.capacity}")
                super().load_state(state)
                text.accept(len(text))
            except BaseException as error:
                tokens, self._seed = before
                self.input_ids = tokens
                text.restore(len(tokens))
                if not isinstance(error, Exception):  # a signal: the cache may be of either state
                    text.forget()
                raise
        self.keep_factor()

    @cached_property
    def fingerprints(self) -> list[str]:
        """Fingerprints of the model's files. Raises SessionError if these are no longer the loaded ones."""
        return self._fingerprints_of(self.model_path, self._status)

    @cached_property
    def adapter_fingerprint(self) -> str | None:
        """The fingerprint of the LoRA adapter; None without one. Raises as `fingerprints` does."""
        return self._fingerprints_of(self.lora_path, self._adapter_status)[0] if self.lora_path else None

    @staticmethod
    def _fingerprints_of(path: str, loaded: list[tuple[int, int, int]]) -> list[str]:
        found = fingerprint.fingerprints(path)
        if fingerprint.statuses(path) != loaded:
            raise SessionError(f"{path} was changed since it was loaded: make a new Llama for a session")
        return found

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.rope_scaling is not None:
            state = {name: value for name, value in state.items() if name not in ROPE_ARGUMENTS}
        return state | {"rope_scaling": self.rope_scaling}

    def __del__(self) -> None:
        if hasattr(self, "turns"):  # absent after a TypeError for the arguments
            self.close()

    def close(self) -> None:
        """Free model and context. May be called again; any other use then raises YarnGGUFError.

        A request under way in another thread is cancelled first. From within a request, such as in its
        progress callback, this raises YarnGGUFError: `cancel` it, and close after it.
        """
        with self.turns.last():
            if hasattr(self, "_stack"):  # absent after a failed start
                with deferred_exceptions():
                    super().close()
            self._sampler = None
            self.cached_text, self.scores = CachedText(), np.empty((0, 0), np.single)
            closed: Any = Closed()
            self._model = self._ctx = self._batch = self._reader = self.tokenizer_ = closed
            self._candidates = closed
