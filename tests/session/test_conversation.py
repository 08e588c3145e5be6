"""Turns of a Conversation: each token is read once, and the answers are those of a fresh model.

The witness is llama-cpp-python's create_chat_completion: its own template, tokenization and sampling, with an
empty cache each time.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from chat_models import chat_prompt
from conversations import REWRITES_ANSWERS, TEXT, N, ask, begun, cached, first, opened, witness
from gguf import GGUFReader

from yarn_gguf import YarnGGUFError
from yarn_gguf.run.answer import Answer
from yarn_gguf.run.handles import bytes_of
from yarn_gguf.run.prompt import following_tokens
from yarn_gguf.session.conversation import Conversation
from yarn_gguf.session.transcript import Transcript

PIECES = {
    "text around, as Llama 2's": "{% for m in messages %}{% if m.role == 'user' %}"
    "<s>[INST] {{ m.content }} [/INST]{% else %}{{ m.content }} </s>{% endif %}{% endfor %}",
    "special tokens around": "<s>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "<|assistant|>",
    "nothing special": "{% for m in messages %}# {{ m.role }}:{{ m.content }}\n{% endfor %}# assistant:",
}


def test_three_turns_have_the_answers_of_a_fresh_model(smollm2_q8: Path, read_tokens) -> None:
    with closing(opened(smollm2_q8)) as llama, closing(opened(smollm2_q8)) as fresh:
        conversation = begun(llama, system="You are a poet.")
        for question in ["Name three colours.", "And three birds?", "Which of them fly?"]:
            read_tokens.clear()
            conversation.say(question)
            assert len(read_tokens) < 30
            expected = witness(fresh, conversation.messages)
            read_tokens.clear()
            assert "".join(conversation.answer()) == expected
            assert len(expected.split()) > 2
            assert len(read_tokens) <= N  # the answer's own tokens and no earlier ones
        roles = [message["role"] for message in conversation.messages]
        assert roles == ["system", *["user", "assistant"] * 3]


def test_each_token_is_read_once(tiny: Path, read_tokens) -> None:
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        for question in ["Who are you?", "Why?", "And then?"]:
            ask(conversation, question)
        text = conversation.transcript.render(conversation.messages)
        whole = llama.tokenize(text.encode(), add_bos=False, special=True)
        assert read_tokens == cached(llama) == whole[: len(read_tokens)]
        # the last token is read with the next text
        assert conversation.n_tokens - 1 == conversation.n_cached == len(read_tokens)


@pytest.mark.parametrize("template", PIECES.values(), ids=PIECES)
def test_tokens_turn_by_turn_are_those_of_the_whole_text(chat_model_of, template, read_tokens) -> None:
    """SentencePiece adds no space between turns, within a document, or before an answer."""
    model = chat_model_of(template=template, has_pieces=True)
    with closing(opened(model)) as llama:

        def whole(conversation: Conversation) -> list[int]:
            text = conversation.transcript.render(conversation.messages)
            return llama.tokenize(text.encode(), add_bos=False, special=True)

        assert llama.detokenize(llama.tokenize(b"and", add_bos=False)) == b" and"
        conversation = begun(llama)
        ask(conversation, "Who are you?")
        conversation.load("novel.txt", TEXT)
        conversation.load("2.txt", "A second one.")
        asked = ask(conversation, "What was that?")
        assert len(asked.split()) == N
        conversation.retry()
        assert "".join(conversation.answer()) == asked
        ask(conversation, "and then?")
        conversation.say("why?")
        assert conversation.tokens == cached(llama) == whole(conversation)
        # only the last tokens of answers and the retry are read twice
        assert len(read_tokens) < conversation.n_tokens + 3 * N


@pytest.mark.parametrize("template", PIECES.values(), ids=PIECES)
def test_the_tokens_of_the_next_turn_follow_those_before(chat_model_of, template) -> None:
    model = chat_model_of(template=template, has_pieces=True)
    with closing(opened(model)) as llama:
        first = chat_prompt(model, "a question")
        conversation = begun(llama)
        answer = ask(conversation, "a question")
        before = list(conversation.tokens)
        unknown = Transcript(llama.vocabulary, None)
        unknown.resume({}, before)
        whole = unknown.tokens_of(unknown.render(unknown.question("and then?")))
        conversation.say("and then?")
        assert whole == conversation.tokens
        assert (before[: len(first)], len(answer.split())) == (first, N)
        before = llama.tokenize(b"an", add_bos=False)
        raw = following_tokens(llama.vocabulary, "ything", before, special=False)
        assert llama.detokenize(raw) == b"ything"


@pytest.mark.parametrize("is_recurrent", [False, True])
def test_a_retry_answers_the_same_question_from_before_its_answer(
    chat_model_of, read_tokens, is_recurrent
) -> None:
    model = chat_model_of(is_recurrent=is_recurrent)
    with closing(opened(model)) as llama:
        conversation = begun(llama)
        ask(conversation, "Who are you?")
        first = ask(conversation, "Why?")
        length, messages = conversation.n_tokens, list(conversation.messages)
        read_tokens.clear()
        conversation.retry()
        assert conversation.messages == messages[:-1]
        assert "".join(conversation.answer()) == first
        asked = length - N if is_recurrent else 1  # a cache that cannot be cut is read again
        assert len(read_tokens) == asked + N - 1
        assert conversation.messages == messages
        assert conversation.n_tokens == length


@pytest.mark.parametrize("is_recurrent", [False, True])
def test_a_template_that_rewrites_answers_is_followed(chat_model_of, is_recurrent) -> None:
    model = chat_model_of(template=REWRITES_ANSWERS, is_recurrent=is_recurrent)
    with closing(opened(model)) as llama, closing(opened(model)) as fresh:
        conversation = begun(llama)
        first = ask(conversation, "Who are you?")
        for question in ["Why?", "And then?"]:
            conversation.say(question)
            assert first.upper() in llama.detokenize(cached(llama)).decode()
            assert "".join(conversation.answer()) == witness(fresh, conversation.messages[:-1])


def test_a_seed_repeats_its_answer_and_a_retry_gives_another(tiny: Path) -> None:
    def answers(seed: int) -> list[str]:
        with closing(opened(tiny)) as llama:
            conversation = begun(llama, seed=seed, sampling={"temp": 2.0, "min_p": 0.0})
            first = ask(conversation, "Who are you?")
            conversation.retry()
            return [first, "".join(conversation.answer())]

    one, same, other = answers(1), answers(1), answers(3)
    assert one == same
    assert len({*one, *other}) == 4


def test_a_stopped_answer_keeps_its_first_tokens(tiny: Path) -> None:
    with closing(opened(tiny)) as llama, closing(opened(tiny)) as fresh:
        conversation = begun(llama, max_tokens=100)
        conversation.say("Who are you?")
        answer = first(5, conversation.answer())
        assert (conversation.finish, len(answer.split())) == ("stopped", 5)
        assert conversation.messages[-1] == {"role": "assistant", "content": answer}
        conversation.say("Why?")
        conversation._max_tokens = N
        assert "".join(conversation.answer()) == witness(fresh, conversation.messages[:-1])


def test_an_answer_whose_stream_is_closed_keeps_its_first_tokens_too(tiny: Path) -> None:
    """The caller may have raised an exception while it showed the answer."""
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        conversation.say("Who are you?")
        pieces = conversation.answer()
        said = next(pieces) + next(pieces)
        pieces.close()
        assert conversation.messages[-1]["content"] == said
        assert conversation.n_tokens == conversation.n_cached + 1


def test_a_token_of_any_length_has_its_whole_text(tiny: Path) -> None:
    words = GGUFReader(tiny).fields["tokenizer.ggml.tokens"].contents()
    plain = [token for token, word in enumerate(words) if word.isascii() and "<|" not in word]
    longest = max(plain, key=lambda token: len(words[token]))
    assert len(words[longest]) > 32
    with closing(opened(tiny)) as llama:
        for token in (longest, *plain[100:110]):
            assert bytes_of(llama.vocabulary, token).decode() == words[token]
            assert llama.detokenize([plain[100], token]).decode() == words[plain[100]] + words[token]


def test_half_a_character_is_not_kept() -> None:
    pieces = Answer(None, [], 9, {})
    tokens = [b"a", b"\xc3", b"\xa9", b"b\xe4\xb8"]
    assert [pieces.add(7, data) for data in tokens] == ["a", "", "é", "b"]
    assert pieces.whole == ("aé", 3)


def test_a_model_without_a_template_is_refused(tiny: Path, monkeypatch) -> None:
    with closing(opened(tiny)) as llama:
        monkeypatch.setattr(llama.vocabulary, "metadata", dict)
        with pytest.raises(YarnGGUFError, match="no chat template: use yarn-gguf run --raw"):
            Conversation(llama)


def test_the_reason_of_a_template_that_refuses_is_named(chat_model_of) -> None:
    check = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with closing(opened(chat_model_of(template=check + REWRITES_ANSWERS))) as llama:
        with pytest.raises(YarnGGUFError, match="its chat template refuses these messages: no system"):
            begun(llama, system="Be brief.").say("Who are you?")
        assert ask(begun(llama), "Who are you?")


def test_an_answer_that_another_question_interrupts_is_dropped(tiny) -> None:
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        conversation.say("Who are you?")
        pieces = conversation.answer()
        next(pieces)
        conversation.say("Where are you?")
        pieces.close()
        assert [message["role"] for message in conversation.messages] == ["user", "user"]
