"""Requests of a Conversation to a Llama: other threads, cancelling, Ctrl-C and progress."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest
from conversations import TEXT, N, ask, begun, completed, in_a_thread, opened, witness

from yarn_gguf import Cancelled, DynamicScaling


@pytest.mark.parametrize("is_recurrent", [False, True])
def test_another_threads_request_ends_the_answer_and_the_conversation_goes_on(
    chat_model_of, is_recurrent
) -> None:
    model = chat_model_of(is_recurrent=is_recurrent)
    with closing(opened(model)) as llama, closing(opened(model)) as fresh:
        expected, texts = completed(fresh), []
        conversation = begun(llama)
        conversation.say("Who are you?")
        pieces = conversation.answer()
        said = next(pieces) + next(pieces)
        in_a_thread(lambda: texts.append(completed(llama)))
        with pytest.raises(Cancelled, match="cut off: another request"):
            next(pieces)
        assert texts == [expected]
        assert conversation.messages[-1] == {"role": "assistant", "content": said}
        assert ask(conversation, "Why?") == witness(fresh, conversation.messages[:-1])
        conversation.say("And then?")
        in_a_thread(lambda: texts.append(completed(llama)))  # between question and answer
        assert "".join(conversation.answer()) == witness(fresh, conversation.messages[:-1])
        assert texts == [expected] * 2


def test_another_threads_request_waits_while_a_document_is_read(tiny: Path) -> None:
    with closing(opened(tiny)) as llama:
        events, other = [], threading.Thread(target=lambda: events.append(completed(llama)))

        def report(done: int, total: int) -> None:
            if not events:
                other.start()
            events.append(done)

        begun(llama).load("novel.txt", TEXT, report)
        other.join()
        assert events[:-1] == sorted(set(events[:-1]))
        assert len(events) > 20
        assert len(events[-1].split()) == N


def test_no_request_comes_between_prefix_match_and_reading(tiny: Path, monkeypatch) -> None:
    with closing(opened(tiny)) as llama:
        conversation, events = begun(llama), []
        ask(conversation, "Who are you?")
        other = threading.Thread(target=lambda: events.append(completed(llama)))
        match = llama.cached_text.match

        def match_slowly(tokens: list[int]) -> int:
            found = match(tokens)
            if other.ident is None:
                other.start()
                other.join(1)  # it must not end within this second
            return found

        monkeypatch.setattr(llama.cached_text, "match", match_slowly)
        conversation.say("Why?", lambda done, total: events.append("read"))
        other.join()
        assert events == ["read", events[-1]]
        assert events[-1] != "read"


def test_an_answer_is_cancelled_within_a_token(tiny: Path) -> None:
    with closing(opened(tiny)) as llama, closing(opened(tiny)) as fresh:
        conversation = begun(llama)
        conversation.say("Who are you?")
        pieces = conversation.answer()
        said = next(pieces) + next(pieces)
        in_a_thread(llama.cancel)
        with pytest.raises(Cancelled, match="cancelled: what was read"):
            next(pieces)
        assert (conversation.finish, conversation.messages[-1]["content"]) == ("stopped", said)
        assert ask(conversation, "Why?") == witness(fresh, conversation.messages[:-1])


@pytest.mark.parametrize("is_reading", [False, True])
def test_ctrl_c_in_mid_decode_leaves_no_stale_logits(tiny: Path, monkeypatch, is_reading) -> None:
    """The interrupt comes within a token of an answer or within a document. The next answer is the same."""
    with closing(opened(tiny)) as llama:
        conversation, decode = begun(llama), type(llama._ctx).decode
        expected = ask(conversation, "Who are you?")
        conversation.retry()
        pieces = conversation.answer()
        next(pieces)  # from the question's logits, which are still valid

        def interrupted(context: object, batch: object) -> None:
            decode(context, batch)
            raise KeyboardInterrupt

        if is_reading:
            pieces.close()
            conversation.retry()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(type(llama._ctx), "decode", interrupted)
            conversation.load("novel.txt", TEXT) if is_reading else next(pieces)
        if not is_reading:
            conversation.retry()
        assert "".join(conversation.answer()) == expected


def test_progress_is_reported_for_texts_and_for_no_answer(tiny: Path) -> None:
    with closing(opened(tiny)) as llama:
        seen = []
        llama.progress = lambda *how: seen.append(how)
        conversation = begun(llama)
        conversation.load("novel.txt", TEXT)
        total = conversation.n_tokens
        assert seen == [(min(done, total), total) for done in range(64, total + 64, 64)]
        seen.clear()
        ask(conversation, "Why?")
        assert len(seen) == 1
        completed(llama)
        conversation.retry()
        "".join(conversation.answer())
        assert seen[-1][1] > total  # the whole text, once
        assert len([how for how in seen if how[0] == how[1]]) == 3


def test_by_request_question_and_answer_have_one_factor(tiny: Path) -> None:
    scaling = DynamicScaling.of("yarn", policy="request", original_max_position_embeddings=16)
    with closing(opened(tiny, rope_scaling=scaling)) as llama:
        conversation = begun(llama)
        conversation.say("Who are you?")
        needed = (conversation.n_tokens + N) / 16
        assert llama.dynamic_state.factor == needed > 1
        "".join(conversation.answer())
        assert (llama.dynamic_state.factor, llama.dynamic_state.rotations) == (needed, 0)
        conversation.clear()
        conversation.say("Why?")
        assert llama.dynamic_state.factor == (conversation.n_tokens + N) / 16 < needed
