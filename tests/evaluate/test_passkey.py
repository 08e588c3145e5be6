"""Pass keys: their place in a prompt, which answers are right, and the grid of lengths and depths."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path

import pytest
from chat_models import write_chat_model

from yarn_gguf import Llama, RopeScaling, YarnGGUFError
from yarn_gguf.cli import main
from yarn_gguf.evaluate.compare import Cell, compare_passkey
from yarn_gguf.evaluate.passkey import ANSWER_TOKENS, FILLER, TASK, Style, answer, is_right, trials
from yarn_gguf.evaluate.results import Results
from yarn_gguf.rope.names import Variant


@pytest.mark.parametrize("style", [Style(), Style(keys=3), Style(chat=True)], ids=str)
def test_a_pass_key_lies_at_the_wanted_depth(fast_llama, style) -> None:
    made = list(trials(fast_llama, [512], [0.0, 0.5, 1.0], 2, style))
    assert [(each.length, each.depth) for each in made] == [
        (512, d) for d in (0.0, 0.5, 1.0) for _ in range(2)
    ]
    assert len({each.key for each in made}) == 6
    for each in made:
        text = fast_llama.detokenize(each.prompt, special=True).decode()
        places = [found.start() for found in re.finditer(rf"pass key( of \w+)? is {each.key}\.", text)]
        assert len(places) == 1
        first, last = text.index(FILLER), text.rindex(FILLER) + len(FILLER)
        assert (places[0] - first) / (last - first) == pytest.approx(each.depth, abs=0.2)
        assert len(re.findall(r"Remember it\.", text)) == style.keys
        assert 512 - 60 < len(each.prompt) + ANSWER_TOKENS <= 512
        assert text.endswith(" is")


def test_a_prompt_begins_as_the_model_s_texts_do(fast_llama, monkeypatch) -> None:
    (without,) = trials(fast_llama, [256], [0.5], 1, Style())
    monkeypatch.setattr(fast_llama._model, "add_bos_token", lambda: True)
    (plain,) = trials(fast_llama, [256], [0.5], 1, Style())
    (chat,) = trials(fast_llama, [256], [0.5], 1, Style(chat=True))
    bos = fast_llama.token_bos()
    assert without.prompt[0] != bos
    assert plain.prompt[:2] == [bos, without.prompt[0]]
    assert chat.prompt[0] == bos != chat.prompt[1]  # the template's own


def test_a_prompt_made_of_pieces_has_no_extra_space(smollm2_path, tmp_path: Path) -> None:
    """SentencePiece tokenizers put a space in front of each text that is tokenized separately."""
    path = write_chat_model(
        tmp_path / "pieces.gguf", smollm2_path, template="{{ messages }}", has_pieces=True
    )
    with closing(Llama(path, n_ctx=256, verbose=False)) as llama:
        (trial,) = trials(llama, [1024], [0.5], 1, Style())
        text = llama.detokenize(trial.prompt[1:]).decode()
    before, after = f"{TASK}\n", "\nWhat is the pass key? The pass key is"
    needle = f"\nThe pass key is {trial.key}. Remember it. {trial.key} is the pass key.\n"
    head, _, rest = text.strip().partition(needle)
    units = head.count(FILLER), rest.count(FILLER)
    assert head == before + f" {FILLER}" * units[0]
    assert rest == f" {FILLER}" * units[1] + after


def test_the_key_that_is_asked_for_is_the_one_at_the_depth(fast_llama) -> None:
    (trial,) = trials(fast_llama, [512], [0.3], 1, Style(keys=4))
    text = fast_llama.detokenize(trial.prompt).decode()
    name = re.search(r"What is the pass key of (\w+)\?", text)[1]
    assert f"The pass key of {name} is {trial.key}. Remember it." in text


def test_pass_keys_are_the_same_for_the_same_seed(fast_llama) -> None:
    one, again, other = (
        [each.prompt for each in trials(fast_llama, [256], [0.5], 2, Style(), seed)] for seed in (1, 1, 2)
    )
    assert one == again != other


def test_a_model_that_reads_a_short_text_finds_its_key(fast_llama) -> None:
    fast_llama.set_rope_scaling("none")
    (trial,) = trials(fast_llama, [400], [0.3], 1, Style())
    assert is_right(answer(fast_llama, trial.prompt), trial.key)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (" 12345. Remember it.", True),
        (" the number\n12345", True),
        (" 12345 67890", True),
        (" 67890, no, 12345", False),
        (" 123456", False),
        (" 1234", False),
        (" 1 2345", False),
        (" none", False),
    ],
)
def test_an_answer_is_right_if_its_first_number_is_the_key(said: str, right: bool) -> None:
    assert is_right(said, "12345") is right


def test_answers_are_counted_at_the_depth_of_their_key(fast_llama, monkeypatch) -> None:
    made = list(trials(fast_llama, [400], [0.0, 0.5, 1.0], 2, Style()))
    known = {tuple(each.prompt): each.key for each in made if each.depth == 0.5 or each is made[-1]}
    monkeypatch.setattr(
        "yarn_gguf.evaluate.compare.answer", lambda llama, prompt: known.get(tuple(prompt), "0")
    )
    label = lambda name: lambda done, total: None  # noqa: E731
    variants = [Variant("none", RopeScaling())]
    cells = compare_passkey(fast_llama, variants, 400, [0.0, 0.5, 1.0], 2, Style(), 0, Results(None), label)
    assert [(each.depth, each.found, each.trials) for each in cells] == [(0, 0, 2), (0.5, 2, 2), (1, 1, 2)]


def test_the_other_keys_have_random_places(fast_llama) -> None:
    places = []
    for each in trials(fast_llama, [512], [0.5], 10, Style(keys=2)):
        text = fast_llama.detokenize(each.prompt).decode()
        (other,) = {key for key in re.findall(r"(\d{5}) is the pass key", text) if key != each.key}
        places.append(text.index(other) / len(text))
    assert min(places) < 0.3 and max(places) > 0.7


@pytest.mark.parametrize(
    ("style", "length", "message"),
    [
        (lambda: Style(keys=0), 512, "0 pass keys: from 1 to 8"),
        (lambda: Style(), 60, "60 tokens have no room for a text"),
    ],
)
def test_a_pass_key_that_cannot_be_hidden_is_refused(fast_llama, style, length: int, message: str) -> None:
    with pytest.raises(YarnGGUFError, match=message):
        list(trials(fast_llama, [length], [0.5], 1, style()))


def test_a_length_without_room_for_a_text_is_refused_before_anything_is_read(
    smollm2_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("yarn_gguf.evaluate.compare.answer", lambda *_: pytest.fail("it was read"))
    assert main(["eval", "passkey", str(smollm2_path), "--lengths", "300", "60"]) == 1
    assert "60 tokens have no room for a text" in capsys.readouterr().err
    assert main(["eval", "passkey", str(smollm2_path), "--lengths", "300", "300"]) == 1
    assert "--lengths: 300 is there 2 times" in capsys.readouterr().err


def test_pass_keys_on_the_command_line(smollm2_q8, tmp_path: Path, capsys) -> None:
    options = ["--lengths", "256", "--depths", "2", "--scaling", "none", "yarn:2"]
    files = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    assert main(["eval", "passkey", str(smollm2_q8), *options, *files]) == 0
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [(row["scaling"], row["depth"]) for row in rows] == [
        ("none", 0.0),
        ("none", 1.0),
        ("yarn:2", 0.0),
        ("yarn:2", 1.0),
    ]
    assert all(row["found"] in (0, 1) and row["trials"] == 1 for row in rows)
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert "pass keys found" in capsys.readouterr().out


def test_the_options_on_the_command_line_are_measured(smollm2_q8, monkeypatch) -> None:
    asked = []

    def compare(llama, variants, length, depths, count, style, seed, *_) -> list[Cell]:
        asked.append((length, depths, count, style, seed))
        return [Cell("file", length, 0.0, 1, 1)]

    monkeypatch.setattr("yarn_gguf.evaluate.compare.compare_passkey", compare)
    options = ["--depths", "3", "--trials", "2", "--keys", "4", "--chat", "--seed", "7"]
    assert main(["eval", "passkey", str(smollm2_q8), "--lengths", "300", *options]) == 0
    assert asked == [(300, [0.0, 0.5, 1.0], 2, Style(keys=4, chat=True), 7)]
