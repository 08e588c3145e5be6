"""Llama: llama_cpp.Llama on the patched library, plus rope scaling."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.disk import fingerprint
from yarn_gguf.errors import (
    Cancelled,
    ModelLoadError,
    NoRoomError,
    RopeScalingError,
    SessionError,
    YarnGGUFError,
)
from yarn_gguf.gguf.header import ValueType, read_header
from yarn_gguf.native.library import load
from yarn_gguf.native.log import native_reasons, native_refusals
from yarn_gguf.native.prototypes import DynamicState
from yarn_gguf.native.sampling import check_grammar
from yarn_gguf.native.scaling import reserve_context, set_dynamic_scaling, set_rope_frequencies
from yarn_gguf.progress import Progress
from yarn_gguf.rope.dynamic import DynamicScaling, Scaling, dynamic_of
from yarn_gguf.rope.llama_cpp import FrequencyTable, context_arguments, frequency_table
from yarn_gguf.rope.read import RopeModel, dynamic_in, model_of, read_model
from yarn_gguf.rope.scaling import RopeScaling, rope_op_has
from yarn_gguf.run import arguments, sampling
from yarn_gguf.run.arguments import CACHE_TYPES, ROPE_ARGUMENTS
from yarn_gguf.run.handles import Batch, Closed, Context, Further, Model, close_all
from yarn_gguf.run.turns import NESTED, Turns

llama_cpp = load()


class Llama(llama_cpp.Llama):
    """A drop-in for llama_cpp.Llama that takes `rope_scaling`.

    rope_scaling: a RopeScaling, of any method; or the name "yarn", "linear", "ntk" or "by-parts", with
        the factor that makes `n_ctx` fit, or "none"; or None for what the file says. A DynamicScaling, or
        "dynamic-yarn" and the like, follows the length of the text. What the scaling lacks,
        such as the original context, comes from its metadata. The caller goes before the file, and
        the file before the defaults.

    All other arguments are llama_cpp.Llama's, among them its own rope_* and yarn_* ones, of which
    `yarn_attn_factor` is ggml's operand: it multiplies 0.1 ln(factor) + 1. They and `rope_scaling`
    exclude each other.

    progress: called as progress(done, total) after each n_ubatch tokens of a prompt that is read, by whatever
        method: `done` of the `total` that were not in the cache. What it raises ends the request. May be set
        anew at any time: it is an attribute.

    Several threads may use one Llama: requests wait for one another, and `cancel` ends the one under way.

    Raises GGUFError, RopeScalingError or ModelLoadError (all are ValueErrors); never ends the process.
    """

    @arguments.as_of(llama_cpp.Llama.__init__)
    def __init__(
        self,
        model_path: str | Path,
        *,
        rope_scaling: Scaling | str | None = None,
        n_ctx: int = 512,
        progress: Progress | None = None,
        **kwargs: Any,
    ) -> None:
        self.progress = progress
        self._turns = Turns()
        kwargs = arguments.checked(kwargs | {"n_ctx": n_ctx})
        self._status = fingerprint.statuses(model_path)
        header = read_header(model_path)  # a damaged file is refused here, with a clear message
        self.rope_scaling: Scaling | None = None
        self._table: FrequencyTable | None = None  # where the parameters cannot express it
        if rope_scaling is None and not kwargs.keys() & set(ROPE_ARGUMENTS):
            rope_scaling = dynamic_in(header)
        if rope_scaling is not None:
            model = model_of(header)
            given = [name for name in ROPE_ARGUMENTS if name in kwargs]
            if given:
                raise RopeScalingError(f"give rope_scaling or {', '.join(given)}, not both")
            self.rope_scaling = _resolve(rope_scaling, model, n_ctx)
            static = self._static_scaling(model)
            kwargs |= context_arguments(static, model)
            if not rope_op_has(static):
                self._table = frequency_table(static, model, n_ctx or model.context_length)
        if (
            isinstance(self.rope_scaling, DynamicScaling)
            and self.rope_scaling.needs_float32_keys
            and kwargs.get("type_k") is None
        ):
            kwargs["type_k"] = CACHE_TYPES["F32"]  # in fewer bits, rounding undoes small rotations
        if kwargs.get("lora_path"):
            _check_adapter(kwargs["lora_path"])
            self._adapter_status = fingerprint.statuses(kwargs["lora_path"])
        self._reserved = 0  # tokens
        self._lacks_scores = False  # of tokens that are cached, under logits_all
        self.last_sampled: int | None = None  # token; not in the cache before the next one is
        try:
            with native_reasons(model_path):
                super().__init__(str(model_path), **arguments.with_defaults(kwargs))
                if self._lora_adapter is not None and not self._lora_adapter:  # a null pointer
                    raise ValueError(f"{self.lora_path} is no adapter for this model (lora_path)")
            self._take_over()
            self._scale(self._ctx, self._table)
        except BaseException:
            self.close()
            raise

    def _take_over(self) -> None:
        """What llama_cpp.Llama made: with our checks, and room for n_ctx, which the library rounds up."""
        self._model.__class__, self._ctx.__class__, self._batch.__class__ = Model, Context, Batch
        self._model.turns = self._ctx.turns = self._turns
        self._further: set[Further] = set()
        self._model._exit_stack.callback(close_all, self._further)  # before the weights are freed
        self.input_ids = np.empty(self.n_ctx(), np.intc)
        if self._logits_all and len(self.scores) < self.n_ctx():
            self.scores = np.empty((self.n_ctx(), self._n_vocab), np.single)

    def set_rope_scaling(self, rope_scaling: Scaling | str | None) -> None:
        """Scale otherwise from now on, on the weights that are loaded; the cache is emptied.

        rope_scaling: as the constructor's. Raises RopeScalingError, with the scaling as it was.
        """
        model = read_model(self.model_path)
        if rope_scaling is None:
            rope_scaling = model.dynamic or model.scaling
        with self._turns.take():
            before = self.rope_scaling, self._table
            self.rope_scaling = _resolve(rope_scaling, model, self.n_ctx())
            try:
                self._check_base(model)
                self._table = frequency_table(self._static_scaling(model), model, self.n_ctx())
                self.reset()
                self._ctx.kv_cache_clear()
                self._scale(self._ctx, self._table)
            except RopeScalingError:
                self.rope_scaling, self._table = before
                raise

    def _check_base(self, model: RopeModel) -> None:
        """Dynamic scaling builds on the base that the context was made with."""
        base = model.get("rope.freq_base", ValueType.FLOAT32, model.rope_theta)
        base = self.context_params.rope_freq_base or base
        if isinstance(self.rope_scaling, DynamicScaling) and np.float32(base) != np.float32(model.rope_theta):
            raise RopeScalingError(
                f"{self.model_path}: opened with a rotary base of {base:g}, where the model's is "
                f"{model.rope_theta:g}: open it with the dynamic scaling, or with rope_scaling='none'"
            )

    def make_context(
        self, n_ctx: int, n_seq_max: int = 1, *, unified: bool = False, longest: int | None = None
    ) -> Further:
        """A further context, of the same weights, adapter and scaling, for `n_seq_max` texts of `n_ctx` each.

        unified: the texts share a cache of `n_ctx` tokens in all, and what they have in common is there once.
        longest: tokens of the longest text, if that is less. It closes with this Llama at the latest. Raises
        ModelLoadError, RopeScalingError.
        """
        params = type(self.context_params).from_buffer_copy(self.context_params)
        params.n_ctx = n_ctx if unified else n_ctx * n_seq_max
        params.n_seq_max, params.kv_unified = n_seq_max, unified
        with self._turns.aside():
            with native_reasons(self.model_path):
                context = Further(self._model, params, self._further)
            table = self._table
            if table is not None:  # LongRoPE's depends on the length
                model = read_model(self.model_path)
                table = frequency_table(self._static_scaling(model), model, longest or n_ctx)
            self._scale(context, table)
            if self._lora_adapter:
                adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._lora_adapter)
                scales = (ctypes.c_float * 1)(self.lora_scale)
                llama_cpp.llama_set_adapters_lora(context.ctx, adapters, 1, scales)
        return context

    def _scale(self, context: Context | Further, table: FrequencyTable | None) -> None:
        """What a context's parameters cannot express."""
        if isinstance(self.rope_scaling, DynamicScaling):
            set_dynamic_scaling(context.ctx, self.rope_scaling)
        elif table is not None:
            set_rope_frequencies(context.ctx, *table)

    @property
    def dynamic_state(self) -> DynamicState:
        """Of dynamic scaling: the factor in force, and the rotations of cached keys so far."""
        return self._ctx.dynamic_state()

    def reserve(self, tokens: int) -> None:
        """Under dynamic scaling: let s suffice for at least `tokens` from now on.

        Under the policy "request", until the next request or reset. No more than n_ctx is reserved. Raises
        YarnGGUFError for less than 0.
        """
        if tokens < 0:
            raise YarnGGUFError(f"tokens to reserve must be a whole number >= 0, got {tokens}")
        with self._turns.aside():
            self._reserved = min(tokens, self.n_ctx())
            reserve_context(self._ctx.ctx, self._reserved)

    @property
    def _is_by_request(self) -> bool:
        return isinstance(self.rope_scaling, DynamicScaling) and self.rope_scaling.reserves_for_request

    def _keep_reserved(self) -> None:
        """Under the policy "request", of a state that was saved before a request's end: the s that it has."""
        if self._is_by_request:
            original = self.rope_scaling.original_max_position_embeddings
            self.reserve(round(self.dynamic_state.factor * original))

    def _drop_drafts(self) -> None:
        """Of an answer that was left midway: tokens that were proposed, and not yet accepted or refused."""
        self.n_tokens = min(self.n_tokens, self._turns.request.certain)

    def _cover(self, tokens: int) -> None:
        """Under the policy "request": reserve what is about to be read."""
        if self._is_by_request and tokens > self._reserved:
            self.reserve(tokens)

    def cancel(self) -> None:
        """End the request under way, from any thread, before the next n_ubatch tokens or the answer's next.

        Its call, or the next step of its stream, raises Cancelled. The cache stays right and what was read
        stays read: the same prompt goes on where it was. Without a request under way nothing happens.
        """
        self._turns.cancel()

    @arguments.as_of(llama_cpp.Llama.create_chat_completion)
    def create_chat_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As llama_cpp.Llama's. All that a `chat_handler` does, such as reading pictures, is one request."""
        if self.chat_handler is None:
            return super().create_chat_completion(*args, **kwargs)
        with self._turns.take() as request:
            answer = super().create_chat_completion(*args, **kwargs)
        return answer if isinstance(answer, dict) else self._turns.through((part for part in answer), request)

    def _create_completion(self, *args: Any, max_tokens: int | None = 16, **kwargs: Any) -> Any:
        def steps() -> Any:
            request = self._turns.request
            request.answer = max(0, max_tokens or 0)  # not known where there is no limit
            request.is_completion = True
            if kwargs.get("echo") and kwargs.get("logprobs") is not None and self._lacks_scores:
                self.reset()  # the prompt is read again, for its logits
            for part in super(Llama, self)._create_completion(*args, max_tokens=max_tokens, **kwargs):
                choice = part["choices"][0]
                if request.is_cut_short and choice["finish_reason"]:
                    choice["finish_reason"] = "length"
                yield part

        return self._turns.through(steps())

    @arguments.as_of(llama_cpp.Llama.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As llama_cpp.Llama's."""

        def steps() -> Any:
            request = self._turns.request
            if request.is_generating:
                raise YarnGGUFError(NESTED)
            request.is_generating = request.is_prompt_next = True
            try:
                return (yield from super(Llama, self).generate(*args, **kwargs))
            except NoRoomError:
                if request.is_prompt_next or not request.is_completion or self.token_eos() < 0:
                    raise
                request.is_cut_short = True  # within a letter of several bytes: completions go on to its last
                yield self.token_eos()
            finally:
                request.is_generating = False

        return self._turns.through(steps())

    def _init_sampler(
        self, *args: Any, logits_processor: Any = None, grammar: Any = None, **kwargs: Any
    ) -> sampling.Sampler:
        raised: list[BaseException] = []
        if logits_processor is not None:
            logits_processor = sampling.watched(logits_processor, raised)
        if grammar is not None:
            check_grammar(self._model.vocab, grammar._grammar, grammar._root)
        sampler = super()._init_sampler(*args, logits_processor=logits_processor, grammar=grammar, **kwargs)
        sampler.__class__, sampler.raised = sampling.Sampler, raised
        return sampler

    @arguments.as_of(llama_cpp.Llama.sample)
    def sample(self, *args: Any, **kwargs: Any) -> int:
        """As llama_cpp.Llama's. Raises YarnGGUFError if nothing was read, and what a logits processor did."""
        with self._turns.take() as request:
            if self.n_tokens == 0:
                raise YarnGGUFError("there is nothing to go on from: the prompt is empty")
            before = self._sampler
            try:
                self.last_sampled = super().sample(*args, **kwargs)
            except BaseException:
                self._sampler = before
                raise
            if self.draft_model is not None and kwargs.get("idx") is not None:
                request.certain = kwargs["idx"] + 1
            return self.last_sampled

    def eval(self, tokens: Sequence[int]) -> None:
        """As llama_cpp.Llama's. Raises YarnGGUFError, with nothing read, if the tokens do not fit."""
        with self._turns.take() as request:
            self._require_room(len(tokens))
            if self._is_by_request and request.is_prompt_next:
                self.reserve(self.n_tokens + len(tokens) + request.answer)
            if request.is_generating and not request.is_prompt_next:
                self._read_answer(tokens)
            else:
                self._read(tokens, self.progress)
            request.is_prompt_next = False

    def prefill(self, tokens: Sequence[int], progress: Progress | None = None) -> None:
        """Read `tokens` into the cache after what is there, calling progress(done, total) each n_ubatch.

        progress: None for that of the Llama. Raises YarnGGUFError, with nothing read, if the tokens do not
        fit; Cancelled; and what `progress` raises, with what it was told of read.
        """
        with self._turns.take():
            self._require_room(len(tokens))
            self._cover(self.n_tokens + len(tokens))
            self._read(tokens, progress or self.progress)

    def _read_answer(self, tokens: Sequence[int]) -> None:
        """A token, and those that a draft model proposes: the logits of all are looked at together."""
        lost = self._lost()
        if lost:
            self._read(lost, None)
        with self._counting_what_is_left():
            super().eval(tokens)

    def _read(self, tokens: Sequence[int], progress: Progress | None) -> None:
        tokens, done = [*self._lost(), *tokens], 0
        for piece in self._pieces(tokens):
            with self._counting_what_is_left():
                super().eval(piece)
            done += len(piece)
            if progress is not None:
                with self._turns.reporting():
                    progress(done, len(tokens))

    def _lost(self) -> list[int]:
        """All tokens so far, to be read again, where the cache, cut to n_tokens, lacks what it should hold.

        That is so of recurrent layers, which cannot be cut, and of a cache of a window's size, which forgets.
        """
        if self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1):
            return []
        earlier = self.input_ids[: self.n_tokens].tolist()
        self.n_tokens = 0
        self._ctx.kv_cache_clear()
        return earlier

    def _pieces(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """As many as the library computes at once: between them a request can end."""
        size = self.n_batch
        if not self._ctx.is_at_once:
            size = min(size, llama_cpp.llama_n_ubatch(self._ctx.ctx))
        for start in range(0, len(tokens), size):
            yield tokens[start : start + size]

    @arguments.as_of(llama_cpp.Llama.tokenize)
    def tokenize(self, text: bytes, *args: Any, **kwargs: Any) -> list[int]:
        """As llama_cpp.Llama's. Raises YarnGGUFError for a model without a vocabulary."""
        self._require_vocabulary()
        return super().tokenize(text, *args, **kwargs)

    @arguments.as_of(llama_cpp.Llama.detokenize)
    def detokenize(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> bytes:
        """As llama_cpp.Llama's. Raises YarnGGUFError for what is no token of the vocabulary."""
        self._require_vocabulary()
        if len(tokens) and not 0 <= min(tokens) <= max(tokens) < self.n_vocab():
            raise YarnGGUFError(
                f"tokens are whole numbers from 0 to {self.n_vocab() - 1}, got {min(tokens)} to {max(tokens)}"
            )
        return super().detokenize(tokens, *args, **kwargs)

    def _require_vocabulary(self) -> None:
        if self._model.vocab_type() == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            raise YarnGGUFError(f"{self.model_path} has no vocabulary: give tokens, and take them")

    def n_embd(self) -> int:
        """As llama_cpp.Llama's; of a model that ranks (`pooling_type` 4), of how many scores."""
        if self.pooling_type() == llama_cpp.LLAMA_POOLING_TYPE_RANK:
            return llama_cpp.llama_model_n_cls_out(self._model.model)
        return super().n_embd()

    @arguments.as_of(llama_cpp.Llama.embed)
    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """As llama_cpp.Llama's: nothing that was read before is cached any more, however it ends."""
        with self._turns.take():
            try:
                return super().embed(*args, **kwargs)
            finally:
                self._ctx.kv_cache_clear()
                self.reset()

    def reset(self) -> None:
        """As llama_cpp.Llama's: the next token is the first. A stream that has not ended is cut off."""
        with self._turns.take():
            super().reset()
            self._lacks_scores = False
            if self._is_by_request:
                self.reserve(0)

    def save_state(self) -> Any:
        """As llama_cpp.Llama's."""
        with self._turns.aside():
            return super().save_state()

    def load_state(self, state: Any) -> None:
        """As llama_cpp.Llama's. Raises RopeScalingError for a state that was saved under another scaling."""
        before = self.n_tokens, self.input_ids, self._seed
        with self._turns.take(), native_refusals(), self._counting_what_is_left():
            try:
                super().load_state(state)
            except BaseException as error:
                self.n_tokens, self.input_ids, self._seed = before
                if not isinstance(error, Exception):  # a signal: whose cache it is by now is not known
                    self._ctx.kv_cache_clear()
                raise
        self.input_ids = np.resize(self.input_ids, self.n_ctx())  # it had the length of the other's
        self._keep_reserved()

    @cached_property
    def fingerprints(self) -> list[str]:
        """Of the files of the model. Raises SessionError if they are no longer those that were loaded."""
        return self._fingerprints_of(self.model_path, self._status)

    @cached_property
    def adapter_fingerprint(self) -> str | None:
        """Of the LoRA adapter. As `fingerprints`."""
        return self._fingerprints_of(self.lora_path, self._adapter_status)[0] if self.lora_path else None

    @staticmethod
    def _fingerprints_of(path: str, loaded: list[tuple[int, int, int]]) -> list[str]:
        found = fingerprint.fingerprints(path)
        if fingerprint.statuses(path) != loaded:
            raise SessionError(f"{path} was changed since it was loaded: make a new Llama for a session")
        return found

    @contextmanager
    def _counting_what_is_left(self) -> Iterator[None]:
        """Where the library fails, or a signal comes: what was begun is not read, and may be cut.

        The library empties its cache where a rotation or a state was begun and not finished.
        """
        before = self.n_tokens
        try:
            yield
        except Cancelled:  # nothing was begun
            raise
        except BaseException:
            memory = llama_cpp.llama_get_memory(self._ctx.ctx)
            self.n_tokens = min(before, llama_cpp.llama_memory_seq_pos_max(memory, 0) + 1)
            self._requires_eval = True
            raise

    def _static_scaling(self, model: RopeModel) -> RopeScaling:
        """What the context is made with."""
        if not isinstance(self.rope_scaling, DynamicScaling):
            return self.rope_scaling
        if model.scaling.is_trained_in:
            raise RopeScalingError(
                f"{model.path}: the model was trained with {model.scaling.method} scaling, which dynamic "
                "scaling would replace: leave rope_scaling out, or extend it by a static method"
            )
        return RopeScaling("none")

    def _require_room(self, count: int) -> None:
        room = self.n_ctx() - self.n_tokens
        if count > room:
            raise NoRoomError(
                f"{count} tokens do not fit: {self.n_tokens} of {self.n_ctx()} are used (n_ctx)"
            )

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.rope_scaling is not None:
            state = {name: value for name, value in state.items() if name not in ROPE_ARGUMENTS}
        return state | {"rope_scaling": self.rope_scaling}

    def close(self) -> None:
        """Free model and context. May be called again; any other use then raises YarnGGUFError.

        A request under way in another thread is cancelled first. From within a request, such as in its
        progress callback, this raises YarnGGUFError: `cancel` it, and close thereafter.
        """
        with self._turns.last():
            if hasattr(self, "_stack"):  # absent after a failed start
                super().close()
            self._sampler = self._candidates = None
            self.input_ids, self.scores = np.empty(0, np.intc), np.empty((0, 0), np.single)
            self._model = self._ctx = self._batch = self.tokenizer_ = Closed()

    def read_logits(self, tokens: Sequence[int], *, copy: bool = True) -> Iterator[np.ndarray]:
        """Read `tokens` after what is in the cache and yield the logits of each, n_ubatch tokens at a time.

        Each array is float32 (tokens, n_vocab): row i predicts the token after token i. It is a view of one
        buffer, which the next overwrites. copy: False for the library's own, where nobody can close this
        Llama meanwhile. Raises NoRoomError, with nothing read, if the tokens do not fit.
        """
        return self._turns.through(self._logits(tokens, copy))

    def _logits(self, tokens: Sequence[int], copy: bool) -> Iterator[np.ndarray]:
        self._require_room(len(tokens))
        self._cover(self.n_tokens + len(tokens))
        self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1)
        buffer = None
        for piece in self._pieces(tokens):
            self._batch.set_batch(batch=piece, n_past=self.n_tokens, logits_all=True)
            with self._counting_what_is_left():
                self._ctx.decode(self._batch)
            self.input_ids[self.n_tokens : self.n_tokens + len(piece)] = piece
            self.n_tokens += len(piece)
            self._requires_eval = False
            logits = np.ctypeslib.as_array(self._ctx.get_logits(), shape=(len(piece), self._n_vocab))
            if self._logits_all:
                self.scores[self.n_tokens - len(piece) : self.n_tokens] = logits
            if copy:  # the library's are freed by whoever closes this Llama before the next step
                buffer = np.empty_like(logits) if buffer is None else buffer
                buffer[: len(piece)] = logits
                logits = buffer[: len(piece)]
            yield logits


def _check_adapter(path: str) -> None:
    """llama_cpp.Llama takes the null pointer that the library gives for any other file for an adapter."""
    if read_header(path).get("general.type", ValueType.STRING) != "adapter":
        raise ModelLoadError(f"{path} is no LoRA adapter: its general.type is not adapter (lora_path)")


def _resolve(rope_scaling: Scaling | str, model: RopeModel, n_ctx: int) -> Scaling:
    if isinstance(rope_scaling, str):
        rope_scaling = dynamic_of(rope_scaling) or rope_scaling
    if not isinstance(rope_scaling, str):
        return rope_scaling.with_original_context(model.original_context)
    if rope_scaling == "none":
        return RopeScaling("none")
    if n_ctx <= 0:
        raise RopeScalingError(f"rope_scaling={rope_scaling!r} takes its factor from n_ctx: give n_ctx")
    factor = max(1.0, n_ctx / model.original_context)
    return RopeScaling(rope_scaling, factor=factor, original_max_position_embeddings=model.original_context)
