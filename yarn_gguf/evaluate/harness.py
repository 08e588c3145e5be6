r"""The model in a GGUF file for EleutherAI's lm-evaluation-harness.

python -m yarn_gguf.evaluate.harness is the command lm_eval with the additional model yarn_gguf:

    python -m yarn_gguf.evaluate.harness --model yarn_gguf --model_args model=M.gguf,rope_scaling=yarn:4 \
        --tasks hellaswag

The import raises YarnGGUFError if lm-evaluation-harness is missing.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from functools import cached_property, partial
from inspect import getsource, signature
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.disk.fingerprint import text_digest
from yarn_gguf.errors import YarnGGUFError, require_once
from yarn_gguf.evaluate.compare import require_scalings
from yarn_gguf.evaluate.reading.loglikelihood import Scorer, prefix_token, tokenize
from yarn_gguf.evaluate.results import Results, model_key, scaling_key
from yarn_gguf.evaluate.tasks import Values
from yarn_gguf.rope.names import FIELDS, Variant, parse_variant, with_settings
from yarn_gguf.rope.read import read_model
from yarn_gguf.run.chat_template import ChatTemplate
from yarn_gguf.run.llama import Llama

try:
    import lm_eval
    from lm_eval.api.metrics import mean
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.api.task import Task
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    reason = f'tasks by name need lm-evaluation-harness ({error}): pip install "lm-eval>=0.4.13"'
    if __name__ == "__main__":
        sys.exit(f"error: {reason}")
    raise YarnGGUFError(reason) from error

# examples before each question, as in the paper's Table 3; TruthfulQA's own number is 0
_FEWSHOT = {"arc_challenge": 25, "hellaswag": 10, "mmlu": 5}
_LLAMA_ARGUMENTS = {
    name for name, each in signature(Llama.__init__).parameters.items() if each.kind is each.KEYWORD_ONLY
}
_LOG = logging.getLogger(__name__)


@register_model("yarn_gguf")
class YarnGGUF(TemplateLM):
    """The harness's interface to a model.

    model: a GGUF file, or a Llama, whose scaling is left unchanged. n_ctx: tokens. A longer input loses its
    beginning, with a warning, as in the harness's own models. rope_scaling: as on the command line of
    yarn-gguf eval. --model_args splits it at its commas, so factor, beta_fast and so on arrive as separate
    arguments. Other arguments are Llama's. Raises YarnGGUFError for an unknown argument, GGUFError,
    RopeScalingError, ModelLoadError.
    """

    def __init__(
        self,
        model: str | Path | Llama,
        rope_scaling: str = "file",
        n_ctx: int = 4096,
        batch_size: Any = None,  # the harness passes these three; Scorer makes its own batches
        max_batch_size: Any = None,
        device: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if not isinstance(model, Llama):
            model = _load_model(model, rope_scaling, n_ctx, kwargs)
        self._llama, self._length = model, n_ctx  # the native library rounds the context up

    @property
    def max_length(self) -> int:
        return self._length

    @property
    def eot_token_id(self) -> int:
        return self._llama.token_eos()

    @property
    def prefix_token_id(self) -> int:
        return prefix_token(self._llama)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of `string`. A text that begins with BOS gets no second one."""
        tokens = tokenize(self._llama, string)
        bos = self._llama.token_bos()
        is_twofold = tokens[:2] == [bos, bos]
        is_unasked = (
            add_special_tokens is False and tokens[:1] == [bos] and self._llama.vocabulary.add_bos_token()
        )
        return tokens[1:] if is_twofold or is_unasked else tokens

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        return [tuple(score) for score in self._scores(pairs)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        return [self._rolling(self.tok_encode(request.args[0], False)) for request in requests]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [self._generate(*request.args) for request in requests]

    @cached_property
    def _template(self) -> ChatTemplate:
        if not self.chat_template(True):
            raise YarnGGUFError(
                f"{self._llama.model_path} has no chat template: leave --apply_chat_template out"
            )
        return ChatTemplate(self._llama.vocabulary)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the chat as text. Without `add_generation_prompt` it ends with the last message."""
        if add_generation_prompt:
            return self._template.render(chat_history)
        halves = self._template.divide(chat_history, answers=False)
        return halves.before.rstrip() if halves.strips else halves.before

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self._llama.metadata.get("tokenizer.chat_template", "")

    @property
    def tokenizer_name(self) -> str:
        return Path(self._llama.model_path).name

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Return both, with the beginning of the context cut off if they do not fit."""
        over = len(context) + len(continuation) - 1 - self.max_length
        if over <= 0:
            return context, continuation
        if over >= len(context):
            raise YarnGGUFError(f"a continuation of {len(continuation)} tokens does not fit: raise n_ctx")
        _LOG.warning("%d tokens do not fit n_ctx=%d: the first ones are left out", over, self.max_length)
        return context[over:], continuation

    def _scores(self, pairs: list[tuple[list[int], list[int]]]) -> list[Any]:
        if not pairs:
            return []
        with closing(Scorer(self._llama, max(len(a) + len(b) for a, b in pairs))) as scorer:
            return scorer.score(pairs)

    def _rolling(self, tokens: list[int]) -> float:
        windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
        return sum(
            score.loglikelihood for score in self._scores([make_disjoint_window(each) for each in windows])
        )

    def _generate(self, context: str, gen_kwargs: dict[str, Any]) -> str:
        settings = normalize_gen_kwargs(gen_kwargs)
        room = self.max_length - settings["max_gen_toks"]
        if room < 1:
            raise YarnGGUFError(f"max_gen_toks={settings['max_gen_toks']} leaves no room: raise n_ctx")
        sampling = {name: settings[name] for name in ("top_k", "top_p", "min_p") if name in settings}
        answer = self._llama.create_completion(
            self.tok_encode(context)[-room:],
            max_tokens=settings["max_gen_toks"],
            stop=[text for text in settings["until"] if text],
            temperature=settings.get("temperature", 0.0),
            repeat_penalty=1.0,
            **sampling,
        )
        assert isinstance(answer, dict)  # no stream
        return answer["choices"][0]["text"]


def compare_tasks(
    llama: Llama,
    variants: Sequence[Variant],
    names: Sequence[str],
    fewshot: int | None,
    limit: int | None,
    results: Results,
) -> Values:
    """Return the value of each metric for each question, by variant and task; see compare_requests.

    names: tasks, groups, tags, or files that describe tasks. The tasks of a group are one row, those of a tag
    are separate rows. fewshot: examples before each question; None for the paper's number, or else the
    task's own. A task made for no examples has none. Each task of a group is a measurement. Raises
    YarnGGUFError for an unknown task or missing data, OSError.
    """
    require_scalings(llama, variants)
    manager = TaskManager()
    values: Values = {}
    for name in names:
        if not (manager.match_tasks([name]) or Path(name).is_file()):
            raise YarnGGUFError(
                f"lm-evaluation-harness has no task {name!r}: lm_eval ls tasks lists its tasks"
            )
    shots = {name: _FEWSHOT.get(name) if fewshot is None else fewshot for name in names}
    rows = [(name, row) for name in names for row in _load(manager, name, shots[name])]
    require_once([row for _, (row, _) in rows], "--tasks")
    model = {"kind": "harness", "limit": limit, "harness": lm_eval.__version__, **model_key(llama, results)}
    for variant in variants:
        llama.set_rope_scaling(variant.scaling)
        base = {**model, **scaling_key(llama)}
        values[variant.name] = {}
        for name, (row, parts) in rows:
            found: dict[str, list[float]] = defaultdict(list)
            for task, key in parts:
                evaluate = partial(_evaluate, llama, task, shots[name], limit, manager)
                for metric, each in results.get({**base, **key}, evaluate).items():
                    found[metric] += each
            values[variant.name][row] = {metric: np.array(each) for metric, each in found.items()}
    return values


# ----------------------------------------------------------------------------------------------


def _load_model(path: str | Path, rope_scaling: str, n_ctx: int, arguments: dict[str, Any]) -> Llama:
    """Load the model. arguments: those of Llama, and fields of the scaling."""
    settings = {name: arguments.pop(name) for name in FIELDS if name in arguments}
    if unknown := arguments.keys() - _LLAMA_ARGUMENTS:
        raise YarnGGUFError(
            f"--model_args: {min(unknown)!r} is neither an argument of Llama nor a field of a scaling"
        )
    factor = max(1.0, n_ctx / read_model(path).original_context)
    scaling = parse_variant(with_settings(rope_scaling, settings), factor).scaling
    return Llama(
        path, n_ctx=n_ctx, rope_scaling=scaling, **{"flash_attn": True, "verbose": False} | arguments
    )


_Parts = list[tuple[Task, dict[str, Any]]]


def _load(manager: TaskManager, name: str, fewshot: int | None) -> list[tuple[str, _Parts]]:
    """Return the rows that a name stands for, each with its tasks.

    A task comes with its part of the measurement's key: its name, its examples and a digest of its data.
    """
    try:
        found = manager.load([name])
    except OSError as error:  # from datasets and huggingface_hub: no network, no cache, HF_HUB_OFFLINE
        raise YarnGGUFError(
            f"the data of the task {name} is not at hand ({error}): run it once where the Hugging Face hub "
            "can be reached, and bring its cache (HF_HOME) along; or name a file that describes a task with "
            "data of its own"
        ) from error
    parts = {
        each: (task, {"task": each, "fewshot": fewshot, "data": _digest(task)})
        for each, task in sorted(found["tasks"].items())
    }
    if found["groups"] or len(parts) == 1:
        return [(Path(name).stem, list(parts.values()))]
    return [(each, [part]) for each, part in parts.items()]  # a tag: a mean over its tasks has no meaning


def _digest(task: Task) -> str:
    """Return a digest of a task's configuration, functions, questions and examples."""
    parts = (task.dump_config(), *task.eval_docs, *task.fewshot_docs())
    return text_digest(*(json.dumps(each, default=_source) for each in parts))


def _source(value: Any) -> str:
    """Return the source of a function: its repr has an address, which differs between processes."""
    try:
        return getsource(value)
    except (TypeError, OSError):
        return re.sub(" at 0x[0-9a-f]+", "", str(value))


def _evaluate(
    llama: Llama, task: Task, fewshot: int | None, limit: int | None, manager: TaskManager
) -> dict[str, list[float]]:
    others = {metric for metric, each in task.aggregation().items() if each is not mean}  # such as perplexity
    if others == task.aggregation().keys():
        raise _without_means(task)
    found = lm_eval.simple_evaluate(
        YarnGGUF(llama, n_ctx=llama.n_ctx()),
        tasks=[task],
        num_fewshot=fewshot,
        limit=limit,
        bootstrap_iters=0,
        task_manager=manager,
    )
    values: dict[str, list[float]] = defaultdict(list)
    (samples,) = found["samples"].values()
    for sample in samples:
        for metric in sample["metrics"]:
            if metric not in others and isinstance(sample[metric], int | float):
                values[_label(metric, sample["filter"])].append(float(sample[metric]))
    if not values:
        raise _without_means(task)
    return dict(values)


def _without_means(task: Task) -> YarnGGUFError:
    return YarnGGUFError(
        f"the task {task.config.task} has no metric that is a mean over its questions: run it with lm_eval"
    )


def _label(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric}, {filter_name}"


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
