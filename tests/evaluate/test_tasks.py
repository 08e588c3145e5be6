"""Short tasks: log-likelihoods against transformers and lm-evaluation-harness, requests, accuracy."""

from __future__ import annotations

import contextlib
import gzip
import json
import runpy
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from yarn_gguf import DynamicScaling, Llama, RopeScaling, YarnGGUFError
from yarn_gguf.cli import main
from yarn_gguf.evaluate.reading.loglikelihood import Score, Scorer, encode_pair
from yarn_gguf.evaluate.reading.losses import token_losses
from yarn_gguf.evaluate.reading.sequences import SequenceContext
from yarn_gguf.evaluate.requests import read_tasks
from yarn_gguf.evaluate.results import Results
from yarn_gguf.evaluate.statistics.accuracy import accuracy
from yarn_gguf.evaluate.tasks import compare_requests, summary
from yarn_gguf.rope.names import Variant

EXAMPLES = (
    "Question: Which animal lays eggs?\nAnswer: the hen\n\n"
    "Question: What do plants take in from the air?\nAnswer: carbon dioxide\n\n"
)
QUESTIONS = [
    ("What is the capital of France?", ["Paris", "London", "a large river", "Berlin"], 0),
    ("What is ice made of?", ["sand", "water", "iron and a little coal"], 1),
    ("What is the opposite of hot?", ["warm", "wet", "cold", "not"], 2),
    ("How many legs has a spider?", ["two", "four", "six", "eight", "none"], 3),
]


def lines() -> list[dict]:
    """OLMES's format, with the choices without a question that it ends in."""
    return [
        {
            "request_type": "loglikelihood",
            "doc": {"query": question},
            "request": {"context": context.format(question), "continuation": f" {choice}"},
            "idx": index,
            "task_name": "tiny",
            "doc_id": number + offset,
            "label": label,
        }
        for offset, context in ((0, EXAMPLES + "Question: {}\nAnswer:"), (1_000_000, "Answer:"))
        for number, (question, choices, label) in enumerate(QUESTIONS)
        for index, choice in enumerate(choices)
    ]


def write(path: Path, values: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(each) + "\n" for each in values)
    return path


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.jsonl.gz", lines())


@pytest.fixture(scope="module")
def exact_llama(smollm2_f32):
    """In batches of 32 tokens: the questions do not fit into one."""
    with closing(Llama(smollm2_f32, n_ctx=512, n_batch=32, type_k=0, type_v=0, verbose=False)) as llama:
        yield llama


@pytest.fixture(scope="module")
def fast_llama(smollm2_q8):
    with closing(Llama(smollm2_q8, n_ctx=512, flash_attn=True, verbose=False)) as llama:
        yield llama


@pytest.fixture
def pairs(exact_llama) -> list[tuple[list[int], list[int]]]:
    requests = [each["request"] for each in lines()]
    return [encode_pair(exact_llama, each["context"], each["continuation"]) for each in requests]


def score(llama: Llama, pairs: list[tuple[list[int], list[int]]]) -> list[Score]:
    with closing(Scorer(llama, max(len(a) + len(b) for a, b in pairs))) as scorer:
        return scorer.score(pairs)


# ---- log-likelihoods -------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_loglikelihoods_are_those_of_transformers(exact_llama, smollm2_torch, pairs, factor: float) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 100000.0, "factor": factor} if factor > 1 else {}
    exact_llama.set_rope_scaling(RopeScaling("yarn", factor) if yarn else "none")
    for (context, continuation), ours in zip(pairs, score(exact_llama, pairs), strict=True):
        logits = smollm2_torch(context + continuation, **yarn)[len(context) - 1 : -1].astype(np.float64)
        chosen = logits[np.arange(len(continuation)), continuation]
        theirs = (chosen - np.logaddexp.reduce(logits, axis=1)).sum()
        assert ours.loglikelihood == pytest.approx(theirs, abs=1e-3)
        assert ours.greedy == (logits.argmax(axis=1).tolist() == continuation)


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """The tokens of each batch that is read."""
    counts: list[int] = []
    decode = SequenceContext.decode
    monkeypatch.setattr(
        SequenceContext,
        "decode",
        lambda self, tokens, *rest: counts.append(len(tokens)) or decode(self, tokens, *rest),
    )
    return counts


def prefixes(pairs: list[tuple[list[int], list[int]]]) -> set[tuple[int, ...]]:
    return {tuple((a + b)[:end]) for a, b in pairs for end in range(1, len(a) + len(b))}


def test_what_inputs_share_is_read_once(fast_llama, pairs, read) -> None:
    fast_llama.set_rope_scaling("none")
    score(fast_llama, pairs)
    assert read == [len(prefixes(pairs))]


def test_a_trunk_stays_in_the_cache_between_batches(exact_llama, pairs, read) -> None:
    exact_llama.set_rope_scaling("none")
    score(exact_llama, pairs)
    assert len(read) > 3
    assert (
        sum(read) < len(prefixes(pairs)) + 40
    )  # a question may be read in two batches, the examples are not


@pytest.mark.parametrize("policy", ["growth", "request"])
def test_a_text_beyond_the_original_context_has_a_dynamic_factor_of_its_own(
    exact_llama, prose_tokens, policy: str
) -> None:
    """Scored beside a longer one, and after it, it would be under that one's."""
    lengths = (58, 90, 150, 40)
    pairs = [(prose_tokens[:length], prose_tokens[length : length + 5]) for length in lengths]
    exact_llama.set_rope_scaling(
        DynamicScaling.of("yarn", policy=policy, original_max_position_embeddings=64)
    )
    for (context, continuation), ours in zip(pairs, score(exact_llama, pairs), strict=True):
        losses = token_losses(exact_llama, context + continuation)
        assert ours.loglikelihood == pytest.approx(-losses[len(context) - 1 :].sum(), abs=2e-2)


def test_a_pair_that_does_not_fit_or_has_no_context_is_refused(exact_llama) -> None:
    with closing(Scorer(exact_llama, 8)) as scorer:
        with pytest.raises(YarnGGUFError, match="context of 6 tokens and its continuation of 3 do not fit 8"):
            scorer.score([([1] * 6, [2] * 3)])
        with pytest.raises(YarnGGUFError, match="a context needs at least one token"):
            scorer.score([([], [2])])


def test_spaces_belong_to_the_continuation_and_an_empty_context_is_the_prefix_token(fast_llama) -> None:
    whole = fast_llama.tokenize(b"The cat sat", add_bos=False)
    assert encode_pair(fast_llama, "The cat ", "sat") == (whole[:2], whole[2:])
    assert encode_pair(fast_llama, "", "The cat sat") == ([fast_llama.token_bos()], whole)


# ---- lm-evaluation-harness -------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(smollm2_folder, smollm2_f32):
    """The harness's own model class on the checkpoint, and ours on the file, for 48 tokens at once."""
    from lm_eval.models.huggingface import HFLM

    from yarn_gguf.evaluate.harness import YarnGGUF

    theirs = HFLM(pretrained=str(smollm2_folder), device="cpu", dtype="float32", max_length=48)
    ours = YarnGGUF(str(smollm2_f32), rope_scaling="none", n_ctx=48, type_k=0, type_v=0, flash_attn=False)
    yield theirs, ours
    ours._llama.close()


def instances(kind: str, *arguments: tuple) -> list:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


def test_loglikelihoods_are_those_of_the_harness_s_own_model(both) -> None:
    """Also of contexts that are too long for it, and of an empty one."""
    choices = [(each["request"]["context"], each["request"]["continuation"]) for each in lines()]
    asked = instances("loglikelihood", *choices, ("", "The cat sat."), ("The cat ", "sat on the mat"))
    theirs, ours = (model.loglikelihood(asked, disable_tqdm=True) for model in both)
    np.testing.assert_allclose([each[0] for each in ours], [each[0] for each in theirs], atol=2e-3)
    assert [each[1] for each in ours] == [each[1] for each in theirs]


def test_rolling_loglikelihoods_are_those_of_the_harness_s_own_model(both) -> None:
    asked = instances("loglikelihood_rolling", (EXAMPLES * 3,), ("The cat sat on the mat.",))
    theirs, ours = (model.loglikelihood_rolling(asked, disable_tqdm=True) for model in both)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_generated_texts_are_those_of_the_harness_s_own_model(both) -> None:
    settings = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    asked = instances("generate_until", ("The capital of France is", settings), ("Once upon a", settings))
    theirs, ours = (model.generate_until(asked, disable_tqdm=True) for model in both)
    assert ours == theirs
    assert all(ours)


def test_chats_are_those_of_the_harness_s_own_model(both) -> None:
    chat = [{"role": "user", "content": "What is ice?"}]
    theirs, ours = (model.apply_chat_template(chat, add_generation_prompt=True) for model in both)
    assert ours == theirs
    for begun in ("The best answer is", "Here it is:\n"):  # what the harness has an answer begin with
        begun_chat = [*chat, {"role": "assistant", "content": begun}]
        theirs, ours = (model.apply_chat_template(begun_chat, add_generation_prompt=False) for model in both)
        assert ours == theirs
        assert ours.endswith(begun)


@pytest.fixture
def tiny_task(tmp_path: Path) -> Path:
    docs = [{"q": question, "choices": choices, "gold": label} for question, choices, label in QUESTIONS]
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in docs))
    return _describe(tmp_path / "tiny_task.yaml", data)


def _describe(path: Path, data: Path) -> Path:
    path.write_text(
        f"task: {path.stem}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_target: gold\ndoc_to_choice: choices\n"
        'doc_to_text: "Question: {{q}}\\nAnswer:"\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n'
    )
    return path


def test_tasks_of_the_harness_on_the_command_line(
    smollm2_q8, tiny_task, tmp_path, monkeypatch, capfd
) -> None:
    from lm_eval import simple_evaluate

    asked: list[str] = []
    shots: list[int | None] = []

    def evaluate(*arguments, tasks, **settings):
        asked.extend(task.config.task for task in tasks)
        shots.append(settings["num_fewshot"])
        return simple_evaluate(*arguments, tasks=tasks, **settings)

    monkeypatch.setattr("lm_eval.simple_evaluate", evaluate)
    out = tmp_path / "out.json"
    arguments = ["eval", "tasks", str(smollm2_q8), "--tasks", str(tiny_task), "-c", "512", "--json", str(out)]
    arguments += ["--scaling", "none", "yarn:4", "--results", str(tmp_path / "results")]
    assert main(arguments) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["scaling"], row["metric"]) for row in rows] == [
        (scaling, metric) for scaling in ("none", "yarn:4") for metric in ("acc", "acc_norm")
    ]
    assert {row["task"] for row in rows} == {"tiny_task"} and {row["questions"] for row in rows} == {4}
    assert "tiny_task" in capfd.readouterr().out
    assert main(arguments) == 0
    assert json.loads(out.read_text())["rows"] == rows
    assert asked == ["tiny_task"] * 2  # the second time nothing is asked again
    data = tiny_task.with_name("docs.jsonl")
    data.write_text(data.read_text().replace("spider", "beetle"))
    assert main(arguments) == 0
    tiny_task.write_text(tiny_task.read_text().replace("Question:", "Q:"))
    assert main(arguments) == 0
    assert asked == ["tiny_task"] * 6  # other data, or other words
    assert main([*arguments, "--limit", "2", "--fewshot", "1"]) == 0
    assert asked == ["tiny_task"] * 8
    assert shots == [None] * 6 + [1] * 2
    assert {row["questions"] for row in json.loads(out.read_text())["rows"]} == {2}


def test_a_group_of_tasks_is_all_their_questions_and_resumes_between_them(
    smollm2_q8, tiny_task, tmp_path, monkeypatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    _describe(tmp_path / "other_task.yaml", tiny_task.with_name("docs.jsonl"))
    (tmp_path / "both.yaml").write_text("group: both\ntask: [tiny_task, other_task]\n")
    manager = lambda: TaskManager(include_path=str(tmp_path))  # noqa: E731
    monkeypatch.setattr("yarn_gguf.evaluate.harness.TaskManager", manager)
    asked: list[str] = []

    def evaluate(*arguments, tasks, **settings):
        asked.extend(task.config.task for task in tasks)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return simple_evaluate(*arguments, tasks=tasks, **settings)

    monkeypatch.setattr("lm_eval.simple_evaluate", evaluate)
    out = tmp_path / "out.json"
    arguments = ["eval", "tasks", str(smollm2_q8), "--tasks", "both", "-c", "512", "--json", str(out)]
    arguments += ["--scaling", "none", "--results", str(tmp_path / "results")]
    with contextlib.suppress(KeyboardInterrupt):
        main(arguments)
    assert main(arguments) == 0
    assert asked == ["other_task", "tiny_task", "tiny_task"]
    assert {(row["task"], row["questions"]) for row in json.loads(out.read_text())["rows"]} == {("both", 8)}


def test_of_a_tag_each_task_has_a_row(smollm2_q8, tiny_task, tmp_path: Path, monkeypatch) -> None:
    """A tag is no group: their questions need have nothing to do with one another."""
    from lm_eval.tasks import TaskManager

    for name in ("one", "other"):
        path = tmp_path / f"{name}.yaml"
        _describe(path, tiny_task.with_name("docs.jsonl"))
        path.write_text(f"tag: some\n{path.read_text()}")
    manager = lambda: TaskManager(include_path=str(tmp_path))  # noqa: E731
    monkeypatch.setattr("yarn_gguf.evaluate.harness.TaskManager", manager)
    out = tmp_path / "out.json"
    arguments = ["eval", "tasks", str(smollm2_q8), "-c", "512", "--json", str(out)]
    assert main([*arguments, "--tasks", "some"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {(row["task"], row["questions"]) for row in rows} == {("one", 4), ("other", 4)}
    assert main([*arguments, "--tasks", "some", "one"]) == 1  # twice


def test_examples_are_as_many_as_in_the_paper_or_as_asked_for(fast_llama, monkeypatch) -> None:
    from yarn_gguf.evaluate import harness

    shots: dict[str, int | None] = {}
    monkeypatch.setattr(harness, "_load", lambda manager, name, fewshot: [(name, [(name, {"task": name})])])
    monkeypatch.setattr(
        harness,
        "_evaluate",
        lambda llama, task, fewshot, limit, manager: shots.update({task: fewshot}) or {"acc": [1.0]},
    )
    names = ["arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2"]
    for asked, expected in ((None, [25, 10, 5, None]), (3, [3, 3, 3, 3])):
        harness.compare_tasks(fast_llama, [Variant("none", RopeScaling())], names, asked, None, Results(None))
        assert shots == dict(zip(names, expected, strict=True))


def test_metrics_that_are_no_mean_over_questions_are_left_out(fast_llama, monkeypatch) -> None:
    """LAMBADA's perplexity, of which a question has a log-likelihood."""
    from lm_eval.api.registry import get_aggregation

    from yarn_gguf.evaluate.harness import _evaluate

    asked = []
    sample = {"metrics": ["perplexity", "acc"], "perplexity": -9.5, "acc": 1.0, "filter": "none"}
    monkeypatch.setattr(
        "lm_eval.simple_evaluate", lambda *_, **__: asked.append(1) or {"samples": {"t": [sample]}}
    )
    kinds = {"perplexity": get_aggregation("perplexity"), "acc": get_aggregation("mean")}
    task = SimpleNamespace(config=SimpleNamespace(task="t"), aggregation=lambda: kinds)
    assert _evaluate(fast_llama, task, None, None, None) == {"acc": [1.0]}
    del kinds["acc"]
    with pytest.raises(YarnGGUFError, match="the task t has no metric that is a mean over its questions"):
        _evaluate(fast_llama, task, None, None, None)
    assert len(asked) == 1  # it is said before anything is read


def test_two_tasks_of_one_name_are_refused(smollm2_q8, tiny_task, tmp_path: Path, capfd) -> None:
    (tmp_path / "more").mkdir()
    again = _describe(tmp_path / "more" / tiny_task.name, tiny_task.with_name("docs.jsonl"))
    arguments = ["eval", "tasks", str(smollm2_q8), "-c", "512", "--tasks", str(tiny_task), str(again)]
    assert main(arguments) == 1
    assert "--tasks: tiny_task is there 2 times" in capfd.readouterr().err


def test_model_args_divide_a_scaling_at_its_commas(smollm2_q8) -> None:
    from yarn_gguf.evaluate.harness import YarnGGUF

    text = f"model={smollm2_q8},n_ctx=64,rope_scaling=yarn:4,beta_fast=16,truncate=False,n_batch=32"
    model = YarnGGUF.create_from_arg_string(text)
    with closing(model._llama):
        assert model._llama.rope_scaling == RopeScaling("yarn", 4.0, 8192, beta_fast=16.0, truncate=False)
        assert model._llama.n_batch == 32
    with pytest.raises(YarnGGUFError, match="'beta_fats' is neither Llama's nor of a scaling"):
        YarnGGUF.create_from_arg_string(f"model={smollm2_q8},rope_scaling=yarn:4,beta_fats=16")


def test_a_task_s_functions_count_by_their_text_and_not_by_their_place_in_memory(tmp_path: Path) -> None:
    """That is another in each process; HellaSwag has such a function."""
    from yarn_gguf.evaluate.harness import _digest

    functions = []

    def key(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        functions.append(runpy.run_path(str(tmp_path / name))["process"])
        config = {"fewshot_config": {"process_docs": functions[-1]}}
        task = SimpleNamespace(dump_config=lambda: config, eval_docs=[{"q": 1}], fewshot_docs=lambda: [])
        return _digest(task)

    one, again = (key(name, "def process(docs):\n    return docs\n") for name in ("a.py", "b.py"))
    assert one == again != key("c.py", "def process(docs):\n    return docs[:1]\n")


def test_an_unknown_task_or_missing_data_is_named(smollm2_q8, tiny_task, capfd) -> None:
    tiny_task.with_name("docs.jsonl").unlink()
    assert main(["eval", "tasks", str(smollm2_q8), "--tasks", str(tiny_task), "-c", "512"]) == 1
    assert "the data of the task" in capfd.readouterr().err
    assert main(["eval", "tasks", str(smollm2_q8), "--tasks", "no_such_task", "-c", "512"]) == 1
    assert "has no task 'no_such_task'" in capfd.readouterr().err


def test_tasks_without_the_harness_say_what_to_install(smollm2_q8, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "yarn_gguf.evaluate.harness", raising=False)
    assert main(["eval", "tasks", str(smollm2_q8), "--tasks", "arc_easy", "-c", "512"]) == 1
    assert 'pip install "lm-eval>=0.4.13"' in capsys.readouterr().err


# ---- requests --------------------------------------------------------------------------------


def test_requests_are_read_without_the_unconditioned_ones(requests: Path) -> None:
    (task,) = read_tasks(requests)
    assert task.name == "tiny"
    found = {each.choices[0][0]: each for each in task.questions}
    assert len(found) == len(QUESTIONS)
    for question, choices, label in QUESTIONS:
        each = found[f"{EXAMPLES}Question: {question}\nAnswer:"]
        assert [continuation for _, continuation in each.choices] == [f" {choice}" for choice in choices]
        assert each.label == label


def test_a_larger_draw_begins_with_a_smaller_one(requests: Path) -> None:
    (three,), (two,) = read_tasks(requests, 3), read_tasks(requests, 2)
    assert three.questions[:2] == two.questions


def test_a_folder_has_a_task_for_each_file_in_it(tmp_path: Path) -> None:
    for name in ("arc/rc_5shot", "arc/mc_5shot"):
        write(tmp_path / name / "requests.jsonl.gz", lines())
    assert [task.name for task in read_tasks(tmp_path)] == ["arc/mc_5shot", "arc/rc_5shot"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-9], "is damaged"),
        (lambda data: gzip.compress(b'{"doc_id": 1'), "line 1 is not a request"),
        (lambda data: gzip.compress(b"[]"), "line 1 is not a request"),
        (
            lambda data: gzip.compress(gzip.decompress(data).replace(b'"label": 1', b'"label": "B"')),
            "line 5 is not a request .*label must be a whole number, got 'B'",
        ),
        (
            lambda data: gzip.compress(gzip.decompress(data).replace(b'"label": 1', b'"label": 7')),
            "doc_id 1: choices .0, 1, 2. with label 7",
        ),
        (
            lambda data: gzip.compress(gzip.decompress(data).replace(b"loglikelihood", b"generate_until")),
            "request_type must be 'loglikelihood', got 'generate_until'",
        ),
        (lambda data: gzip.compress(b""), "has no requests"),
    ],
)
def test_a_bad_file_of_requests_is_refused(requests: Path, change, message: str) -> None:
    requests.write_bytes(change(requests.read_bytes()))
    with pytest.raises(YarnGGUFError, match=f"{requests}.*{message}"):
        read_tasks(requests)


def test_two_files_of_one_name_are_refused(tmp_path: Path, requests: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.jsonl.gz").write_bytes(requests.read_bytes())
    with pytest.raises(YarnGGUFError, match="are both the task same: rename one"):
        read_tasks(tmp_path)


def test_missing_requests_are_named(smollm2_path, tmp_path: Path, capsys) -> None:
    assert main(["eval", "tasks", str(smollm2_path), "--requests", str(tmp_path / "no.jsonl")]) == 1
    assert "no.jsonl" in capsys.readouterr().err
    assert main(["eval", "tasks", str(smollm2_path), "--requests", str(tmp_path)]) == 1
    assert "has no requests" in capsys.readouterr().err


# ---- accuracy --------------------------------------------------------------------------------


def test_the_normalized_answer_is_the_likeliest_per_character() -> None:
    choices, sums = [" a", " abcd"], [-2.0, -6.0]
    assert accuracy(choices, sums, 0) == {"acc": 1.0, "acc_norm": 0.0}
    assert accuracy(choices, sums, 1) == {"acc": 0.0, "acc_norm": 1.0}


def test_differences_are_paired() -> None:
    first, other = np.array([1.0, 0, 1, 0]), np.array([1.0, 0, 1, 1])
    rows = list(summary({"a": {"t": {"acc": first}}, "b": {"t": {"acc": other}}}))
    assert rows[0]["difference"] == rows[0]["difference_high"] == 0
    assert (rows[1]["value"], rows[1]["difference"], rows[1]["questions"]) == (0.75, 0.25, 4)
    assert rows[1]["difference_high"] == pytest.approx(0.25 + 3.182 * 0.5 / 2, abs=1e-3)  # t, 3 degrees
    assert rows[1]["high"] == pytest.approx(0.75 + 3.182 * 0.25, abs=1e-3)


def test_dynamic_scaling_is_none_on_short_tasks_and_an_interrupted_run_resumes(
    fast_llama, requests: Path, tmp_path: Path, monkeypatch
) -> None:
    variants = [Variant("none", RopeScaling()), Variant("dynamic", DynamicScaling.of("yarn"))]
    tasks, folder, label = (
        read_tasks(requests),
        Results(tmp_path / "kept"),
        lambda name: lambda done, total: None,
    )
    whole = compare_requests(fast_llama, variants, tasks, Results(None), label)
    for metric, values in whole["none"]["tiny"].items():
        assert np.array_equal(values, whole["dynamic"]["tiny"][metric])
    calls, scores = [], Scorer.score

    def interrupted(self, pairs, progress=None):
        calls.append(len(pairs))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scores(self, pairs, progress)

    monkeypatch.setattr(Scorer, "score", interrupted)
    monkeypatch.setattr("yarn_gguf.evaluate.tasks._QUESTIONS_KEPT", 2)
    with pytest.raises(KeyboardInterrupt):
        compare_requests(fast_llama, variants, tasks, folder, label)
    resumed = compare_requests(fast_llama, variants, tasks, folder, label)
    assert len(calls) == 5  # two measured, one interrupted, the other two
    assert {name: each["tiny"]["acc"].tolist() for name, each in resumed.items()} == {
        name: each["tiny"]["acc"].tolist() for name, each in whole.items()
    }


def test_requests_on_the_command_line(smollm2_q8, requests: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.json"
    arguments = ["eval", "tasks", str(smollm2_q8), "--requests", str(requests), "--json", str(out)]
    assert main([*arguments, "--csv", str(tmp_path / "out.csv"), "--scaling", "none", "yarn:2"]) == 0
    found = json.loads(out.read_text())
    assert found["kind"] == "tasks"
    assert [(row["scaling"], row["metric"], row["questions"]) for row in found["rows"]] == [
        (scaling, metric, 4) for scaling in ("none", "yarn:2") for metric in ("acc", "acc_norm")
    ]
    assert (tmp_path / "out.csv").read_text().count("\n") == 5
    assert "acc_norm" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--limit", "0"])
    assert "must be a whole number > 0" in capsys.readouterr().err
    assert main([*arguments, "--scaling", "none", "yarn"]) == 1
    assert "--scaling yarn: 4,096 tokens need none: name a factor" in capsys.readouterr().err
