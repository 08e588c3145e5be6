"""lm-evaluation-harness: against its own model class, and its tasks on the command line."""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from questions import EXAMPLES, QUESTIONS, request_lines

from yarn_gguf import RopeScaling, YarnGGUFError
from yarn_gguf.cli import main
from yarn_gguf.evaluate.results import Results
from yarn_gguf.rope.names import Variant


@pytest.fixture(scope="module")
def both(smollm2_folder, smollm2_f32):
    """The harness's own model class on the checkpoint, and ours on the file, with a context of 48 tokens."""
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
    """Contexts that are too long, and an empty one, included."""
    choices = [(each["request"]["context"], each["request"]["continuation"]) for each in request_lines()]
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
    for begun in ("The best answer is", "Here it is:\n"):  # the beginning of an answer, from the harness
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
    assert asked == ["tiny_task"] * 2  # the second run asks nothing again
    data = tiny_task.with_name("docs.jsonl")
    data.write_text(data.read_text().replace("spider", "beetle"))
    assert main(arguments) == 0
    tiny_task.write_text(tiny_task.read_text().replace("Question:", "Q:"))
    assert main(arguments) == 0
    assert asked == ["tiny_task"] * 6  # other data, other words
    assert main([*arguments, "--limit", "2", "--fewshot", "1"]) == 0
    assert asked == ["tiny_task"] * 8
    assert shots == [None] * 6 + [1] * 2
    assert {row["questions"] for row in json.loads(out.read_text())["rows"]} == {2}


def test_a_group_pools_the_questions_of_its_tasks_and_resumes_between_them(
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


def test_each_task_of_a_tag_has_a_row(smollm2_q8, tiny_task, tmp_path: Path, monkeypatch) -> None:
    """Unlike a group, a tag may hold unrelated tasks."""
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


def test_the_number_of_examples_is_the_paper_s_or_the_option_s(fast_llama, monkeypatch) -> None:
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


def test_metrics_that_are_not_means_over_questions_are_left_out(fast_llama, monkeypatch) -> None:
    """Such as LAMBADA's perplexity: the value of a question is a log-likelihood."""
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
    assert len(asked) == 1  # the error comes before anything is read


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
    with pytest.raises(
        YarnGGUFError, match="'beta_fats' is neither an argument of Llama nor a field of a scaling"
    ):
        YarnGGUF.create_from_arg_string(f"model={smollm2_q8},rope_scaling=yarn:4,beta_fats=16")


def test_a_task_s_functions_are_digested_by_their_source_not_their_address(tmp_path: Path) -> None:
    """The address differs between processes. HellaSwag has such a function."""
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
