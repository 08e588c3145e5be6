"""LangChain's unmodified LlamaCpp and ChatLlamaCpp on our class."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from yarn_gguf.run.llama import Llama, llama_cpp

pytestmark = pytest.mark.slow

# LangChain's own defaults are a rotary base of 10000 and batches of 8 tokens
SETTINGS = {"n_ctx": 512, "n_batch": 128, "rope_freq_base": 0, "rope_freq_scale": 0, "verbose": False}
GREEDY = {"temperature": 0.0, "max_tokens": 12, "repeat_penalty": 1.0}


@pytest.fixture(autouse=True)
def substituted(monkeypatch) -> None:
    """Put our class in the place of llama_cpp.Llama, as docs/llama.md describes."""
    monkeypatch.setattr(llama_cpp, "Llama", Llama)


@pytest.fixture(scope="module")
def reference(smollm2_q8) -> Iterator[Llama]:
    llama = Llama(smollm2_q8, **SETTINGS)
    yield llama
    llama.close()


def test_llama_cpp_of_langchain_answers_streams_and_counts_on_our_class(smollm2_q8, reference):
    from langchain_community.llms import LlamaCpp

    llm = LlamaCpp(model_path=str(smollm2_q8), **SETTINGS, **GREEDY)
    assert isinstance(llm.client, Llama)
    prompt = "The capital of France is"
    expected = reference.create_completion(prompt, **GREEDY)["choices"][0]["text"]
    assert expected
    assert llm.invoke(prompt) == expected
    assert "".join(llm.stream(prompt)) == expected
    assert llm.generate([prompt, prompt]).generations[1][0].text == expected
    assert llm.get_num_tokens(prompt) == len(reference.tokenize(prompt.encode()))
    assert llm.invoke(prompt, stop=[expected.strip()[3]]) == expected.partition(expected.strip()[3])[0]
    llm.client.close()


def test_chat_llama_cpp_of_langchain_answers_and_streams_on_our_class(smollm2_q8, reference):
    from langchain_community.chat_models import ChatLlamaCpp
    from langchain_core.messages import HumanMessage, SystemMessage

    chat = ChatLlamaCpp(model_path=str(smollm2_q8), **SETTINGS, **GREEDY)
    assert isinstance(chat.client, Llama)
    messages = [SystemMessage("You are terse."), HumanMessage("Name a colour.")]
    plain = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Name a colour."}]
    expected = reference.create_chat_completion(plain, **GREEDY)["choices"][0]["message"]["content"]
    assert expected
    assert chat.invoke(messages).content == expected
    assert "".join(part.content for part in chat.stream(messages)) == expected
    chat.client.close()


def test_a_rope_scaling_reaches_our_class_through_langchain(smollm2_q8):
    from langchain_community.llms import LlamaCpp

    scaled = SETTINGS | {"n_ctx": 16384, "model_kwargs": {"rope_scaling": "dynamic-yarn"}}
    llm = LlamaCpp(model_path=str(smollm2_q8), **scaled, **GREEDY)
    assert llm.client.rope_scaling.method == "yarn"
    assert llm.client.dynamic_state.factor == 1.0
    assert llm.invoke("The capital of France is")
    llm.client.close()
