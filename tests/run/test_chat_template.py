"""ChatTemplate on templates of published models. The witness is transformers' apply_chat_template."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from datetime import datetime
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from libraries import ROOT
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from yarn_gguf import YarnGGUFError
from yarn_gguf.run import chat_template
from yarn_gguf.run.chat_template import KEY, ChatTemplate, Message, assistant, has_chat_template, user

BOS, EOS = "<s>", "</s>"
TODAY = datetime(2024, 7, 1)

# as in the tokenizer_config.json of meta-llama/Llama-2-7b-chat-hf
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# name -> file in llama.cpp's models/templates
PUBLISHED = {
    "ChatML, of Qwen 2.5": "Qwen-Qwen2.5-7B-Instruct",
    "Llama 3.2, with a date": "meta-llama-Llama-3.2-3B-Instruct",
    "Gemma 2": "google-gemma-2-2b-it",
    "Mistral Nemo": "mistralai-Mistral-Nemo-Instruct-2407",
    "Phi 3.5": "microsoft-Phi-3.5-mini-instruct",
    "Granite 3.3, with a date": "ibm-granite-granite-3.3-2B-Instruct",
    "DeepSeek R1, without earlier thoughts": "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
}
NAMES = ["Llama 2", *PUBLISHED]
TAKES_NO_SYSTEM = ["Gemma 2"]
# Llama 2's template strips a content and adds a space, which divide takes for the content's own
STRIPS = ["Llama 2", "Llama 3.2, with a date", "Gemma 2"]

LEAVES_OUT = (
    "{{% for m in messages if m.role != {role!r} %}}<{{{{ m.role }}}}>{{{{ m.content }}}}{{% endfor %}}"
)

QUESTION = [user("Who are you?")]
TALK = [*QUESTION, assistant("<think>\nWell.\n</think>\n\nI am a model."), user("Why? ")]


class Model:
    """A stand-in for a Vocabulary: a model's path, chat template and special tokens."""

    path_model = "model.gguf"

    def __init__(self, template: str | None, bos: int = 0) -> None:
        self._template, self._bos = template, bos

    def metadata(self) -> dict[str, str]:
        return {} if self._template is None else {KEY: self._template}

    def token_bos(self) -> int:
        return self._bos

    def token_eos(self) -> int:
        return 1

    def token_get_text(self, token: int) -> str:
        return [BOS, EOS][token]


@cache
def published() -> dict[str, str]:
    """Return the text of each template, out of the source package that the build has fetched."""
    found = {"Llama 2": LLAMA_2}
    names = {f"{file}.jinja": name for name, file in PUBLISHED.items()}
    with tarfile.open(next((ROOT / "build" / "download").glob("llama_cpp_python-*.tar.gz"))) as archive:
        for member in archive:
            folder, _, file = member.name.rpartition("/")
            if folder.endswith("/models/templates") and file in names:
                found[names[file]] = archive.extractfile(member).read().decode()
    return found


def template_of(name: str) -> str:
    return published()[name]


def ours(template: str) -> ChatTemplate:
    return ChatTemplate(Model(template), strftime=TODAY.strftime)


@pytest.fixture(scope="module")
def theirs() -> Callable[..., str]:
    """Callable: (template, messages, answers) -> the text by transformers, on the same day."""

    class Now(datetime):
        @classmethod
        def now(cls) -> datetime:
            return TODAY

    def render(template: str, messages: list[Message], answers: bool = True) -> str:
        words = Tokenizer(models.WordLevel({BOS: 0, EOS: 1}, unk_token=BOS))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token=BOS, eos_token=EOS)
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=answers
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.utils.chat_template_utils.datetime", Now)
        yield render


def with_more(messages: list[Message], at: int, more: str) -> list[Message]:
    """Return `messages` with `more` behind the content of message `at`."""
    changed = [dict(each) for each in messages]
    changed[at]["content"] += more
    return changed


@pytest.mark.parametrize("name", NAMES)
def test_a_rendered_text_is_that_of_transformers(theirs, name: str) -> None:
    template, system = ours(template_of(name)), {"role": "system", "content": "Be brief."}
    texts = [QUESTION, TALK] if name in TAKES_NO_SYSTEM else [QUESTION, TALK, [system, *TALK]]
    for messages, answers in product(texts, (True, False)):
        expected = theirs(template_of(name), messages, answers)
        assert template.render(messages, answers=answers) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_text_is_divided_where_a_content_goes_on(theirs, name: str) -> None:
    template = ours(template_of(name))
    for at, answers in product((0, 1, 2, -1), (True, False)):
        before = template.divide(TALK, at, answers=answers).before
        for more in ("and more", "x", "Two.\n\nParagraphs."):
            expected = theirs(template_of(name), with_more(TALK, at, more), answers)
            assert expected.startswith(before + more)


@pytest.mark.parametrize("name", NAMES)
def test_the_text_behind_a_content_is_that_of_transformers(theirs, name: str) -> None:
    template = ours(template_of(name))
    for at, answers in product((0, 1, 2, -1), (True, False)):
        before, after, _ = template.divide(TALK, at, answers=answers)
        assert before + "more" + after == theirs(template_of(name), with_more(TALK, at, "more"), answers)


@pytest.mark.parametrize("name", NAMES)
def test_a_template_that_strips_contents_is_known(theirs, name: str) -> None:
    texts = {theirs(template_of(name), [user(content)]) for content in ("Who are you?", "Who are you? ")}
    assert (len(texts) == 1) is (name in STRIPS)
    assert ours(template_of(name)).divide(QUESTION).strips is (name in STRIPS)


@pytest.mark.parametrize("name", NAMES)
def test_dividing_leaves_the_messages_as_they_are(name: str) -> None:
    messages = [dict(each) for each in TALK]
    ours(template_of(name)).divide(messages, 1)
    assert messages == TALK


def test_contents_may_have_the_words_that_mark_a_division() -> None:
    """Such as this project's own source."""
    words = Path(chat_template.__file__).read_text(encoding="utf-8").strip()
    assert "the text that goes on here" in words
    template, (question, *rest) = ours(template_of(next(each for each in NAMES if each not in STRIPS))), TALK
    messages = [question | {"content": words}, *rest]
    for at in (0, 1, 2):
        before, after, _ = template.divide(messages, at)
        assert before + after == template.render(messages)
        assert before.endswith(messages[at]["content"])


def test_a_template_that_repeats_a_message_cannot_be_divided() -> None:
    template = ours("{% for message in messages %}{{ message.content * 2 }}{% endfor %}")
    with pytest.raises(YarnGGUFError, match="its chat template repeats messages of user"):
        template.divide(QUESTION)


def test_a_thought_that_the_template_drops_is_not_before_the_division() -> None:
    before = ours(template_of("DeepSeek R1, without earlier thoughts")).divide(TALK, 1).before
    assert before.endswith("I am a model.")
    assert "Well." not in before


def test_the_time_is_the_present_unless_it_is_given() -> None:
    template = "{{ strftime_now('%Y') }}: {{ messages[0].content }}"
    year = datetime.now().year
    assert ChatTemplate(Model(template)).render([user("hi")]) in (f"{year}: hi", f"{year + 1}: hi")
    assert ours(template).render([user("hi")]) == "2024: hi"


def test_a_model_without_a_bos_token_begins_with_no_text() -> None:
    template = ChatTemplate(Model(template_of("Gemma 2"), bos=-1))
    assert template.render([user("hi")]) == "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"


# ---- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, ""])
def test_a_model_without_a_template_is_refused(template: str | None) -> None:
    assert not has_chat_template(Model(template))
    with pytest.raises(YarnGGUFError, match=r"^model\.gguf has no chat template$"):
        ChatTemplate(Model(template))


def test_a_model_with_a_template_has_one() -> None:
    assert has_chat_template(Model(LLAMA_2))


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (LLAMA_2, [assistant("Hi.")], r"Conversation roles must alternate user/assistant"),
        ("{{ messages[0].content.nothing.more }}", QUESTION, r"'str object' has no attribute 'nothing'"),
        ("{{ messages[0].content + 1 }}", QUESTION, r"can only concatenate str"),
        ("{% include 'another' %}", QUESTION, r"no loader|another"),
    ],
    ids=["its own exception", "an attribute that is missing", "a wrong type", "a file"],
)
def test_the_reason_of_a_template_that_refuses_is_named(template, messages, reason: str) -> None:
    with pytest.raises(YarnGGUFError, match=rf"^model\.gguf: its chat template refuses these .*: .*{reason}"):
        ours(template).render(messages)


def test_a_system_prompt_that_a_published_template_refuses_is_named() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    for refuse in (ours(template_of("Gemma 2")).render, ours(template_of("Gemma 2")).divide):
        with pytest.raises(YarnGGUFError, match="refuses these messages: System role not supported"):
            refuse(messages)


@pytest.mark.parametrize(
    ("role", "at", "left_out"),
    [("assistant", 1, "answers"), ("system", 0, "messages of system")],
)
def test_a_message_that_the_template_leaves_out_cannot_be_divided(role: str, at: int, left_out: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, assistant("Hi."), user("Why?")]
    template = ours(LEAVES_OUT.format(role=role))
    with pytest.raises(YarnGGUFError, match=rf"^model\.gguf: its chat template leaves out {left_out}$"):
        template.divide(messages, at)
    assert template.divide(messages).before.endswith("Why?")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}",
        "{{ 1 // 0 }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ '%(a)s' % {} }}",
    ],
    ids=["bad syntax", "a division by 0", "a loop that is too long", "a missing key"],
)
def test_a_template_that_fails_in_any_way_is_named(template: str) -> None:
    with pytest.raises(YarnGGUFError, match=r"^model\.gguf"):
        ours(template).render(QUESTION)
