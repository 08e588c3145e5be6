"""Documents of a Conversation, and the end of its context."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from conversations import TEXT, ask, begun, cached, cancelling, first, opened, witness

from yarn_gguf import Cancelled
from yarn_gguf.session.conversation import ContextFullError


def test_a_document_is_read_ahead_of_the_question_about_it(tiny: Path, read_tokens) -> None:
    with closing(opened(tiny)) as llama, closing(opened(tiny)) as fresh:
        conversation = begun(llama)
        ask(conversation, "Who are you?")
        seen = []
        conversation.load("novel.txt", TEXT, lambda *how: seen.append(how))
        assert seen[-1][0] == seen[-1][1] > 1000
        assert len(seen) > 10
        read_tokens.clear()
        conversation.load("2.txt", "A second one.")
        conversation.load("3.txt", "3")
        conversation.say("What was that?")
        assert len(read_tokens) < 100
        content = f"novel.txt:\n\n{TEXT}\n\n2.txt:\n\nA second one.\n\n3.txt:\n\n3\n\nWhat was that?"
        assert conversation.messages[-1] == {"role": "user", "content": content}
        assert "".join(conversation.answer()) == witness(fresh, conversation.messages[:-1])


def test_a_cancelled_document_keeps_its_cached_tokens_and_adds_no_message(tiny: Path, read_tokens) -> None:
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        ask(conversation, "Who are you?")
        before = list(conversation.messages), conversation.n_tokens
        with pytest.raises(Cancelled):
            conversation.load("novel.txt", TEXT, cancelling(llama, 3))
        assert (conversation.messages, conversation.n_tokens) == before
        assert conversation.draft == ""
        assert llama.n_tokens == before[1] - 1 + 3 * 64
        whole = list(read_tokens)
        conversation.load("novel.txt", TEXT)
        assert cached(llama) == read_tokens  # it went on from the cached tokens
        assert read_tokens[: len(whole)] == whole
        with pytest.raises(Cancelled):
            conversation.say("Why? " * 500, cancelling(llama, 2))
        assert conversation.messages == before[0]
        assert conversation.draft.startswith("novel.txt")


@pytest.mark.parametrize("is_recurrent", [False, True])
def test_after_a_cancelled_document_a_question_is_answered_without_it(chat_model_of, is_recurrent) -> None:
    model = chat_model_of(is_recurrent=is_recurrent)
    with closing(opened(model)) as llama, closing(opened(model)) as fresh:
        conversation = begun(llama)
        ask(conversation, "Who are you?")
        with pytest.raises(Cancelled):
            conversation.load("novel.txt", TEXT, cancelling(llama, 3))
        assert ask(conversation, "Why?") == witness(fresh, conversation.messages[:-1])


def test_a_text_that_does_not_fit_is_refused_and_changes_nothing(tiny: Path) -> None:
    with closing(opened(tiny, n_ctx=512)) as llama:
        conversation = begun(llama)
        ask(conversation, "Who are you?")
        before = list(conversation.messages), cached(llama)
        for say in (lambda: conversation.load("novel.txt", TEXT), lambda: conversation.say(TEXT)):
            with pytest.raises(ContextFullError, match=r"would have 1,\d+ tokens, and the context holds 512"):
                say()
            assert (conversation.messages, cached(llama), conversation.draft) == (*before, "")
        ask(conversation, "Why?")


def test_an_answer_ends_at_the_end_of_the_context(tiny: Path) -> None:
    with closing(opened(tiny, n_ctx=256)) as llama:
        conversation = begun(llama, max_tokens=None)
        ask(conversation, "Who are you?")
        assert conversation.finish == "full"
        assert conversation.n_tokens == llama.n_ctx() == llama.n_tokens + 1
        with pytest.raises(ContextFullError):
            conversation.say("Why?")
        conversation.retry()
        first(3, conversation.answer())
        assert conversation.finish == "stopped"
        conversation.clear()
        assert ask(conversation, "Who are you?")


def test_clearing_keeps_the_cache_until_another_text_is_read(tiny: Path, read_tokens) -> None:
    with closing(opened(tiny)) as llama:
        conversation = begun(llama, system="Be brief.")
        conversation.load("novel.txt", TEXT)
        conversation.clear()
        assert conversation.messages == [{"role": "system", "content": "Be brief."}]
        assert (conversation.draft, conversation.n_tokens) == ("", 0)
        read_tokens.clear()
        conversation.load("novel.txt", TEXT)
        assert read_tokens == []
