"""Sessions of a Conversation: it goes on in another process as if it had never been left."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from chat_models import chat_prompt
from conversations import (
    ALTERNATES,
    REWRITES_ANSWERS,
    TEXT,
    N,
    ask,
    begun,
    cached,
    completed,
    in_a_thread,
    opened,
)

from yarn_gguf import YarnGGUFError
from yarn_gguf.session.conversation import SaveTimer
from yarn_gguf.session.file import read_contents
from yarn_gguf.session.session import open_session

DATED = "It is {{ strftime_now('%Y') }}.\n" + REWRITES_ANSWERS.replace("| upper ", "")


def test_a_reopened_session_goes_on_as_if_never_left(tiny: Path, tmp_path: Path, read_tokens) -> None:
    path = tmp_path / "chat.session"
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        ask(conversation, "Who are you?")
        conversation.load("novel.txt", TEXT)
        conversation.save()
        messages, used = list(conversation.messages), conversation.n_tokens
        expected = ask(conversation, "What was that?"), ask(conversation, "Why?")
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        assert (conversation.messages, conversation.n_tokens) == (messages, used)
        read_tokens.clear()
        assert ask(conversation, "What was that?") == expected[0]
        assert len(read_tokens) < 20 + N
        assert ask(conversation, "Why?") == expected[1]
        conversation.save()
        assert read_contents(path).tokens.tolist() == conversation.tokens  # the answer's last token too
        conversation.retry()
        assert "".join(conversation.answer()) == expected[1]


def test_a_recurrent_models_session_goes_on_too(chat_model_of, tmp_path: Path) -> None:
    model, path = chat_model_of(is_recurrent=True), tmp_path / "chat.session"
    with closing(opened(model)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        ask(conversation, "Who are you?")
        conversation.save()
        conversation.clear()
        conversation.save()  # other notes on the same tokens
        assert not read_contents(path).facts["notes"]["messages"]
        ask(conversation, "Who are you?")
        conversation.save()
        expected = ask(conversation, "Why?")
    with closing(opened(model)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        assert ask(conversation, "Why?") == expected


def test_a_question_that_was_never_answered_has_an_empty_answer(chat_model_of, tmp_path: Path) -> None:
    """The program was killed before the answer. Many templates refuse two questions in a row."""
    path, model = tmp_path / "chat.session", chat_model_of(template=ALTERNATES)
    with closing(opened(model)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        conversation.say("Who are you?")
        conversation.save()
    with closing(opened(model)) as llama:
        again = begun(llama)
        again.open(open_session(llama, path))
        again.say("Why?")
        assert [each["content"] for each in again.messages] == ["Who are you?", "", "Why?"]
        assert "".join(again.answer())


def test_a_session_without_messages_goes_on_as_a_chat(tiny: Path, tmp_path: Path, read_tokens) -> None:
    """A program saved its tokens without a Conversation."""
    path = tmp_path / "run.session"
    tokens = chat_prompt(tiny, "Who are you?")
    with closing(opened(tiny)) as llama:
        session = open_session(llama, path)
        llama.prefill(tokens)
        session.notes = ["of somebody else"]
        session.save()
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        with pytest.raises(YarnGGUFError, match="nothing yet to answer anew"):
            conversation.retry()
        read_tokens.clear()
        conversation.say("Why?")
        text = llama.detokenize(read_tokens, special=True).decode()
        assert text == "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
        assert cached(llama) == [*tokens, *read_tokens]
        assert "".join(conversation.answer())


def test_messages_saved_with_other_tokens_count_as_unknown(tiny: Path, tmp_path: Path) -> None:
    """Somebody may have saved as many other tokens with the old messages."""
    path = tmp_path / "chat.session"
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        ask(conversation, "Who are you?")
        conversation.save()
    with closing(opened(tiny)) as llama:
        session = open_session(llama, path)
        tokens = session.tokens
        llama.n_tokens -= N
        llama.prefill([token + 1 for token in tokens[-N:]])
        session.save()
        assert (session.notes["messages"], len(session.tokens)) == (conversation.messages, len(tokens))
        again = begun(llama)
        again.open(open_session(llama, path))
        assert (again.has_unknown, again.known_messages, again.n_tokens) == (True, [], len(tokens))
        ask(again, "Why?")
        assert cached(llama)[: len(tokens)] == [*tokens[:-N], *(token + 1 for token in tokens[-N:])]


def test_a_session_without_messages_is_refused_if_the_template_rewrites(
    chat_model_of, tmp_path: Path
) -> None:
    model = chat_model_of(template=REWRITES_ANSWERS)
    with closing(opened(model)) as llama:
        llama.prefill(chat_prompt(model, "Who are you?"))
        open_session(llama, tmp_path / "run.session").save()
        conversation = begun(llama)
        with pytest.raises(YarnGGUFError, match=r"rewrites earlier turns.*/clear"):
            conversation.open(open_session(llama, tmp_path / "run.session"))
            conversation.say("Why?")
        conversation.clear()
        assert ask(conversation, "Why?")


def test_a_long_text_is_saved_while_it_is_read(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.session"

    def fail(done: int, total: int) -> None:
        if done > 300:
            raise MemoryError

    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        conversation.save_seconds = 0.0
        conversation.open(open_session(llama, path))
        with pytest.raises(MemoryError):
            conversation.load("novel.txt", TEXT, fail)
        assert len(read_contents(path).tokens) >= 64
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        assert (conversation.messages, conversation.n_tokens) == ([], 0)
        seen = []
        conversation.load("novel.txt", TEXT, lambda *how: seen.append(how))
        assert seen[-1][1] == conversation.n_tokens - len(read_contents(path).tokens)


def test_a_conversation_puts_off_a_save_that_takes_long(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    """By its own clock, a save takes 10 seconds and a piece of the text one second."""
    now, saves = 1000.0, []
    monkeypatch.setattr("yarn_gguf.session.conversation.time.monotonic", lambda: now)

    def save(replace: bool) -> None:
        nonlocal now
        now += 10.0
        saves.append(now)

    def tick(done: int, total: int) -> None:
        nonlocal now
        now += 1.0

    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        conversation.save_seconds = 2.0
        conversation.open(open_session(llama, tmp_path / "chat.session"))
        monkeypatch.setattr(conversation.session, "save", save)
        conversation.load("novel.txt", TEXT, tick)  # fewer than 200 pieces
        assert len(saves) == 1


def test_saving_takes_no_more_than_a_twentieth_of_the_time(monkeypatch) -> None:
    """A save of 10 seconds is put off until 200 others have passed."""
    now = 1000.0
    monkeypatch.setattr("yarn_gguf.session.conversation.time.monotonic", lambda: now)
    timer = SaveTimer()
    with timer.saving():
        now += 10.0
    for since, is_due in ((199, False), (201, True)):
        now = 1010.0 + since
        assert timer.is_due(60.0) is is_due


def test_a_reopened_session_keeps_the_date_of_its_template(
    chat_model_of, tmp_path: Path, read_tokens
) -> None:
    path = tmp_path / "chat.session"
    model = chat_model_of(template=DATED)
    with closing(opened(model)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        conversation.transcript.began = conversation.transcript.began.replace(year=2001)
        ask(conversation, "Who are you?")
        conversation.save()
    with closing(opened(model)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        read_tokens.clear()
        ask(conversation, "Why?")
        assert len(read_tokens) < 20 + N
        assert llama.detokenize(cached(llama)).decode().startswith("It is 2001.")


def test_a_session_is_never_saved_with_the_text_of_another_request(
    tiny: Path, tmp_path: Path, read_tokens
) -> None:
    path = tmp_path / "chat.session"
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        completed(llama)
        conversation.save()  # nothing was said
        assert not path.exists()
        conversation.load("novel.txt", TEXT)
        ask(conversation, "Who are you?")
        in_a_thread(lambda: completed(llama))
        read_tokens.clear()
        conversation.save()
        assert len(read_tokens) == conversation.n_tokens
    with closing(opened(tiny)) as llama:
        again = begun(llama)
        again.open(open_session(llama, path))
        assert (again.messages, cached(llama)) == (conversation.messages, conversation.tokens)


def test_a_save_in_mid_answer_saves_the_question_and_the_answer_goes_on(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.session"
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        conversation.say("Who are you?")
        answer = ""
        for piece in conversation.answer():
            answer += piece
            conversation.save()
        assert len(answer.split()) == N
        question = conversation.messages[:1]
    with closing(opened(tiny)) as llama:
        again = begun(llama)
        again.open(open_session(llama, path))
        assert again.messages == question
        assert "".join(again.answer()) == answer
