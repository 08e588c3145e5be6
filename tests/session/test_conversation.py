"""A conversation reads each token once, and says what a fresh model says to the whole of it.

The witness is llama-cpp-python's create_chat_completion: its own template, tokenization and sampling, with an
empty cache each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count, islice
from pathlib import Path

import pytest
from chat_models import write_chat_model
from gguf import GGUFReader
from libraries import PROSE

from yarn_gguf import Cancelled, DynamicScaling, YarnGGUFError
from yarn_gguf.run.answer import Answer
from yarn_gguf.run.cached_text import CachedText
from yarn_gguf.run.handles import bytes_of
from yarn_gguf.run.llama import Llama
from yarn_gguf.run.prompt import following_tokens, prompt_tokens
from yarn_gguf.session.conversation import ContextFullError, Conversation, SaveTimer
from yarn_gguf.session.file import read_contents
from yarn_gguf.session.session import open_session
from yarn_gguf.session.transcript import Transcript

N = 12  # tokens of an answer
BEGUN_ANEW = """
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content | upper if message.role == 'assistant' else message.content }}<|im_end|>
{% endfor -%}
<|im_start|>assistant

"""
DATED = "It is {{ strftime_now('%Y') }}.\n" + BEGUN_ANEW.replace("| upper ", "")
PIECES = {
    "text around, as Llama 2's": "{% for m in messages %}{% if m.role == 'user' %}"
    "<s>[INST] {{ m.content }} [/INST]{% else %}{{ m.content }} </s>{% endif %}{% endfor %}",
    "special tokens around": "<s>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "<|assistant|>",
    "nothing special": "{% for m in messages %}# {{ m.role }}:{{ m.content }}\n{% endfor %}# assistant:",
}
TEXT = PROSE.read_text(encoding="utf-8")[:6000]  # about 1500 tokens


@pytest.fixture(scope="module")
def model_of(smollm2_path, tmp_path_factory) -> Callable[..., Path]:
    made = {}

    def make(**options) -> Path:
        key = str(options)
        if key not in made:
            folder = tmp_path_factory.mktemp("chat")
            made[key] = write_chat_model(folder / "model.gguf", smollm2_path, **options)
        return made[key]

    return make


@pytest.fixture(scope="module")
def tiny(model_of) -> Path:
    return model_of()


def opened(model: Path, n_ctx: int = 4096, **kwargs) -> Llama:
    settings = {"n_threads": 2, "verbose": False, "flash_attn": True, "n_batch": 64, **kwargs}
    return Llama(model, n_ctx=n_ctx, **settings)


def begun(llama: Llama, max_tokens: int | None = N, **kwargs) -> Conversation:
    return Conversation(llama, max_tokens=max_tokens, **{"sampling": {"temp": 0.0}, **kwargs})


def ask(conversation: Conversation, text: str) -> str:
    conversation.say(text)
    return "".join(conversation.answer())


def witness(llama: Llama, messages: list[dict[str, str]]) -> str:
    llama.reset()
    llama._ctx.kv_cache_clear()
    made = llama.create_chat_completion(messages=list(messages), temperature=0.0, max_tokens=N)
    return made["choices"][0]["message"]["content"]


def stopping(llama: Llama, after: int) -> Callable[[int, int], None]:
    """A progress callback that cancels the request, from another thread, when it was called so often."""
    counter = count(1)

    def report(done: int, total: int) -> None:
        if next(counter) == after:
            in_a_thread(llama.cancel)

    return report


def in_a_thread(do: Callable[[], object]) -> None:
    thread = threading.Thread(target=do)
    thread.start()
    thread.join()


def first(count: int, pieces: Iterator[str]) -> str:
    """So much of an answer, which is then left."""
    with closing(pieces):
        return "".join(islice(pieces, count))


def cached(llama: Llama) -> list[int]:
    return llama.input_ids[: llama.n_tokens].tolist()


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """Every token that any Llama reads, in its order."""
    tokens, extend = [], CachedText.extend

    def noting(text: CachedText, more: list[int], *drafts: int) -> None:
        extend(text, more, *drafts)
        tokens.extend(more)

    monkeypatch.setattr(CachedText, "extend", noting)
    return tokens


def test_three_turns_say_what_a_fresh_model_says_to_all_of_it(smollm2_q8: Path, read) -> None:
    with closing(opened(smollm2_q8)) as llama, closing(opened(smollm2_q8)) as fresh:
        conversation = begun(llama, system="You are a poet.")
        for question in ["Name three colours.", "And three birds?", "Which of them fly?"]:
            read.clear()
            conversation.say(question)
            assert len(read) < 30
            expected = witness(fresh, conversation.messages)
            read.clear()
            assert "".join(conversation.answer()) == expected
            assert len(expected.split()) > 2
            assert len(read) <= N  # the answer's own tokens, and nothing of what came before
        roles = [message["role"] for message in conversation.messages]
        assert roles == ["system", *["user", "assistant"] * 3]


def test_each_token_is_read_once(tiny: Path, read) -> None:
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        for question in ["Who are you?", "Why?", "And then?"]:
            ask(conversation, question)
        text = conversation.transcript.render(conversation.messages)
        whole = llama.tokenize(text.encode(), add_bos=False, special=True)
        assert read == cached(llama) == whole[: len(read)]
        assert conversation.n_tokens - 1 == conversation.n_cached == len(read)  # the last comes with the next


@pytest.mark.parametrize("template", PIECES.values(), ids=PIECES)
def test_pieces_of_a_conversation_are_those_of_all_of_its_text(model_of, template, read) -> None:
    """SentencePiece: no space is added between turns, within a document, or to an answer's text."""
    model = model_of(template=template, has_pieces=True)
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
        assert len(read) < conversation.n_tokens + 3 * N  # only answers' last tokens and the retry twice


@pytest.mark.parametrize("template", PIECES.values(), ids=PIECES)
def test_the_pieces_of_the_next_turn_follow_those_before(model_of, template) -> None:
    model = model_of(template=template, has_pieces=True)
    with closing(opened(model)) as llama:
        first = prompt_tokens(model, "a question", chat=True)
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
def test_a_retry_answers_the_same_question_from_before_its_answer(model_of, read, is_recurrent) -> None:
    model = model_of(is_recurrent=is_recurrent)
    with closing(opened(model)) as llama:
        conversation = begun(llama)
        ask(conversation, "Who are you?")
        first = ask(conversation, "Why?")
        length, messages = conversation.n_tokens, list(conversation.messages)
        read.clear()
        conversation.retry()
        assert conversation.messages == messages[:-1]
        assert "".join(conversation.answer()) == first
        asked = length - N if is_recurrent else 1  # what cannot be cut is read anew
        assert len(read) == asked + N - 1
        assert conversation.messages == messages
        assert conversation.n_tokens == length


@pytest.mark.parametrize("is_recurrent", [False, True])
def test_a_template_that_rewrites_answers_gets_what_it_asks_for(model_of, is_recurrent) -> None:
    model = model_of(template=BEGUN_ANEW, is_recurrent=is_recurrent)
    with closing(opened(model)) as llama, closing(opened(model)) as fresh:
        conversation = begun(llama)
        first = ask(conversation, "Who are you?")
        for question in ["Why?", "And then?"]:
            conversation.say(question)
            assert first.upper() in llama.detokenize(cached(llama)).decode()
            assert "".join(conversation.answer()) == witness(fresh, conversation.messages[:-1])


def test_the_same_seed_says_the_same_and_a_retry_something_else(tiny: Path) -> None:
    def answers(seed: int) -> list[str]:
        with closing(opened(tiny)) as llama:
            conversation = begun(llama, seed=seed, sampling={"temp": 2.0, "min_p": 0.0})
            first = ask(conversation, "Who are you?")
            conversation.retry()
            return [first, "".join(conversation.answer())]

    one, same, other = answers(1), answers(1), answers(3)
    assert one == same
    assert len({*one, *other}) == 4


def test_a_stopped_answer_stays_as_far_as_it_came(tiny: Path) -> None:
    with closing(opened(tiny)) as llama, closing(opened(tiny)) as fresh:
        conversation = begun(llama, max_tokens=100)
        conversation.say("Who are you?")
        answer = first(5, conversation.answer())
        assert (conversation.finish, len(answer.split())) == ("stopped", 5)
        assert conversation.messages[-1] == {"role": "assistant", "content": answer}
        conversation.say("Why?")
        conversation._max_tokens = N
        assert "".join(conversation.answer()) == witness(fresh, conversation.messages[:-1])


def test_an_answer_that_is_left_half_way_stays_too(tiny: Path) -> None:
    """By an exception of whoever shows it, for one."""
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


# ---- documents ------------------------------------------------------------------------------------


def test_a_document_is_read_ahead_of_the_question_about_it(tiny: Path, read) -> None:
    with closing(opened(tiny)) as llama, closing(opened(tiny)) as fresh:
        conversation = begun(llama)
        ask(conversation, "Who are you?")
        seen = []
        conversation.load("novel.txt", TEXT, lambda *how: seen.append(how))
        assert seen[-1][0] == seen[-1][1] > 1000
        assert len(seen) > 10
        read.clear()
        conversation.load("2.txt", "A second one.")
        conversation.load("3.txt", "3")
        conversation.say("What was that?")
        assert len(read) < 100
        content = f"novel.txt:\n\n{TEXT}\n\n2.txt:\n\nA second one.\n\n3.txt:\n\n3\n\nWhat was that?"
        assert conversation.messages[-1] == {"role": "user", "content": content}
        assert "".join(conversation.answer()) == witness(fresh, conversation.messages[:-1])


def test_a_stop_while_reading_keeps_what_was_read_and_adds_nothing(tiny: Path, read) -> None:
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        ask(conversation, "Who are you?")
        before = list(conversation.messages), conversation.n_tokens
        with pytest.raises(Cancelled):
            conversation.load("novel.txt", TEXT, stopping(llama, 3))
        assert (conversation.messages, conversation.n_tokens) == before
        assert conversation.draft == ""
        assert llama.n_tokens == before[1] - 1 + 3 * 64
        whole = list(read)
        conversation.load("novel.txt", TEXT)
        assert cached(llama) == read  # it went on from there
        assert read[: len(whole)] == whole
        with pytest.raises(Cancelled):
            conversation.say("Why? " * 500, stopping(llama, 2))
        assert conversation.messages == before[0]
        assert conversation.draft.startswith("novel.txt")


@pytest.mark.parametrize("is_recurrent", [False, True])
def test_after_a_stop_a_question_is_answered_as_if_nothing_had_been_read(model_of, is_recurrent) -> None:
    model = model_of(is_recurrent=is_recurrent)
    with closing(opened(model)) as llama, closing(opened(model)) as fresh:
        conversation = begun(llama)
        ask(conversation, "Who are you?")
        with pytest.raises(Cancelled):
            conversation.load("novel.txt", TEXT, stopping(llama, 3))
        assert ask(conversation, "Why?") == witness(fresh, conversation.messages[:-1])


def test_what_does_not_fit_is_refused_and_changes_nothing(tiny: Path) -> None:
    with closing(opened(tiny, n_ctx=512)) as llama:
        conversation = begun(llama)
        ask(conversation, "Who are you?")
        before = list(conversation.messages), cached(llama)
        for say in (lambda: conversation.load("novel.txt", TEXT), lambda: conversation.say(TEXT)):
            with pytest.raises(ContextFullError, match=r"would have 1,\d+ tokens, and the context holds 512"):
                say()
            assert (conversation.messages, cached(llama), conversation.draft) == (*before, "")
        ask(conversation, "Why?")


def test_an_answer_ends_where_the_context_does(tiny: Path) -> None:
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


def test_clearing_keeps_the_cache_until_something_else_is_read(tiny: Path, read) -> None:
    with closing(opened(tiny)) as llama:
        conversation = begun(llama, system="Be brief.")
        conversation.load("novel.txt", TEXT)
        conversation.clear()
        assert conversation.messages == [{"role": "system", "content": "Be brief."}]
        assert (conversation.draft, conversation.n_tokens) == ("", 0)
        read.clear()
        conversation.load("novel.txt", TEXT)
        assert read == []


def test_a_model_without_a_template_is_refused(tiny: Path, monkeypatch) -> None:
    with closing(opened(tiny)) as llama:
        monkeypatch.setattr(llama.vocabulary, "metadata", dict)
        with pytest.raises(YarnGGUFError, match="no chat template: use yarn-gguf run --raw"):
            Conversation(llama)


def test_a_template_that_refuses_says_so(model_of) -> None:
    check = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with closing(opened(model_of(template=check + BEGUN_ANEW))) as llama:
        with pytest.raises(YarnGGUFError, match="its chat template refuses these messages: no system"):
            begun(llama, system="Be brief.").say("Who are you?")
        assert ask(begun(llama), "Who are you?")


# ---- sessions -------------------------------------------------------------------------------------


def test_a_session_goes_on_in_another_process_as_if_never_left(tiny: Path, tmp_path: Path, read) -> None:
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
        read.clear()
        assert ask(conversation, "What was that?") == expected[0]
        assert len(read) < 20 + N
        assert ask(conversation, "Why?") == expected[1]
        conversation.save()
        assert read_contents(path).tokens.tolist() == conversation.tokens  # to the answer's last
        conversation.retry()
        assert "".join(conversation.answer()) == expected[1]


def test_a_recurrent_models_session_goes_on_too(model_of, tmp_path: Path) -> None:
    model, path = model_of(is_recurrent=True), tmp_path / "chat.session"
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


def test_a_session_of_run_goes_on_as_a_chat(tiny: Path, tmp_path: Path, read) -> None:
    """Of which the tokens are known, and no messages; so too where run went on with a chat's."""
    path = tmp_path / "run.session"
    tokens = prompt_tokens(tiny, "Who are you?", chat=True)
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
        read.clear()
        conversation.say("Why?")
        text = llama.detokenize(read, special=True).decode()
        assert text == "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
        assert cached(llama) == [*tokens, *read]
        assert "".join(conversation.answer())


def test_messages_are_those_of_their_own_tokens_alone(tiny: Path, tmp_path: Path) -> None:
    """Not of as many others, which somebody saved in their place."""
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


def test_a_session_of_run_under_a_template_that_rewrites_is_refused(model_of, tmp_path: Path) -> None:
    model = model_of(template=BEGUN_ANEW)
    with closing(opened(model)) as llama:
        llama.prefill(prompt_tokens(model, "Who are you?", chat=True))
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


def test_a_template_with_a_date_keeps_it_for_days(model_of, tmp_path: Path, read) -> None:
    path = tmp_path / "chat.session"
    model = model_of(template=DATED)
    with closing(opened(model)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        conversation.transcript.began = conversation.transcript.began.replace(year=2001)
        ask(conversation, "Who are you?")
        conversation.save()
    with closing(opened(model)) as llama:
        conversation = begun(llama)
        conversation.open(open_session(llama, path))
        read.clear()
        ask(conversation, "Why?")
        assert len(read) < 20 + N
        assert llama.detokenize(cached(llama)).decode().startswith("It is 2001.")


def test_an_answer_that_is_left_for_another_question_is_no_part_of_it(tiny) -> None:
    with closing(opened(tiny)) as llama:
        conversation = begun(llama)
        conversation.say("Who are you?")
        pieces = conversation.answer()
        next(pieces)
        conversation.say("Where are you?")
        pieces.close()
        assert [message["role"] for message in conversation.messages] == ["user", "user"]


# ---- one request of a Llama that others use too -----------------------------------------------------


def completed(llama: Llama) -> str:
    made = llama.create_completion("Once upon a time", max_tokens=N, temperature=0.0, stop=[])
    return made["choices"][0]["text"]


@pytest.mark.parametrize("is_recurrent", [False, True])
def test_another_threads_request_ends_the_answer_and_the_conversation_goes_on(model_of, is_recurrent) -> None:
    model = model_of(is_recurrent=is_recurrent)
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


def test_none_comes_between_what_is_found_cached_and_what_is_read(tiny: Path, monkeypatch) -> None:
    with closing(opened(tiny)) as llama:
        conversation, events = begun(llama), []
        ask(conversation, "Who are you?")
        other = threading.Thread(target=lambda: events.append(completed(llama)))
        match = llama.cached_text.match

        def match_slowly(tokens: list[int]) -> int:
            found = match(tokens)
            if other.ident is None:
                other.start()
                other.join(1)  # which it should not do
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
def test_ctrl_c_in_mid_decode_leaves_no_logits_of_what_does_not_count(
    tiny: Path, monkeypatch, is_reading
) -> None:
    """KeyboardInterrupt within an answer's token, or a document: the question is then answered as ever."""
    with closing(opened(tiny)) as llama:
        conversation, decode = begun(llama), type(llama._ctx).decode
        expected = ask(conversation, "Who are you?")
        conversation.retry()
        pieces = conversation.answer()
        next(pieces)  # from the question's logits, which are still there

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


def test_progress_is_reported_of_what_is_read_and_of_no_answer(tiny: Path) -> None:
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
        assert seen[-1][1] > total  # all of it, once
        assert len([how for how in seen if how[0] == how[1]]) == 3


def test_by_request_an_answer_is_given_under_the_factor_that_its_question_was_read_under(tiny: Path) -> None:
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


def test_a_session_is_never_saved_with_anothers_text(tiny: Path, tmp_path: Path, read) -> None:
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
        read.clear()
        conversation.save()
        assert len(read) == conversation.n_tokens
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
