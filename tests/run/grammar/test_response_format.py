"""Chats that ask for JSON, by response_format or by tools: it comes, or the request is refused."""

from __future__ import annotations

import json

import pytest
from grammars import ANY_TOKEN, ASK, as_response_format

from yarn_gguf import YarnGGUFError
from yarn_gguf.run.llama import Llama, llama_cpp

SCHEMA = {"type": "object", "properties": {"n": {"enum": [7, 8]}}, "required": ["n"]}
REFUSED = {"type": "object", "properties": {"n": {"not": {"const": 7}}}, "required": ["n"]}
NAMES_IT = r"#/properties/n/not: this keyword is not obeyed"


def chat(llama: Llama, **asked) -> dict:
    return llama.create_chat_completion(ASK, max_tokens=60, seed=1, **ANY_TOKEN, **asked)["choices"][0]


def tool(schema: dict) -> dict:
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


CHOICE = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "asked",
    [as_response_format(SCHEMA), {"type": "json_object", "schema": SCHEMA}],
    ids=["json_schema", "json_object"],
)
def test_an_answer_obeys_the_schema(llama, asked):
    assert json.loads(chat(llama, response_format=asked)["message"]["content"])["n"] in (7, 8)


def test_a_stream_obeys_the_schema(llama):
    parts = llama.create_chat_completion(
        ASK, response_format=as_response_format(SCHEMA), stream=True, seed=1, **ANY_TOKEN
    )
    text = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts)
    assert json.loads(text)["n"] in (7, 8)


def test_arguments_by_position_are_understood(llama):
    with pytest.raises(YarnGGUFError, match=NAMES_IT):
        llama.create_chat_completion(ASK, None, None, None, None, 1.5, 0.95, 40, 0.05, 1.0, False, [], 1,
                                     as_response_format(REFUSED))  # fmt: skip


def test_an_answer_is_json_or_free_where_no_schema_is_given(llama):
    text = chat(llama, response_format={"type": "json_object"})["message"]["content"]
    assert text.startswith("{")
    free = chat(llama)["message"]["content"]
    assert chat(llama, response_format={"type": "text"})["message"]["content"] == free
    assert not free.startswith("{")


@pytest.mark.parametrize("arguments", [{"tools": [tool(SCHEMA)], "tool_choice": CHOICE}], ids=["tools"])
@pytest.mark.parametrize("format_", ["chat_template.default", "chatml-function-calling"])
def test_the_arguments_of_a_tool_obey_its_schema(llama, arguments, format_, monkeypatch):
    monkeypatch.setattr(llama, "chat_format", format_)
    [call] = chat(llama, **arguments)["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["n"] in (7, 8)


@pytest.mark.parametrize("format_", ["chat_template.default", "chatml-function-calling", "functionary"])
def test_a_schema_that_cannot_be_obeyed_is_refused_by_every_way(llama, format_, monkeypatch):
    """llama-cpp-python's chat formats take any JSON instead."""
    monkeypatch.setattr(llama, "chat_format", format_)
    for asked in (as_response_format(REFUSED), {"type": "json_object", "schema": REFUSED}):
        with pytest.raises(YarnGGUFError, match=NAMES_IT):
            chat(llama, response_format=asked)
    choice = {"function_call": {"name": "f"}, "functions": [tool(REFUSED)["function"]]}
    if format_ != "functionary":
        choice = {"tools": [tool(REFUSED)], "tool_choice": CHOICE}
    with pytest.raises(YarnGGUFError, match=NAMES_IT):
        chat(llama, **choice)


def test_a_tool_that_no_grammar_is_made_for_may_have_any_schema(llama):
    assert chat(llama, tools=[tool(REFUSED)], tool_choice="auto")["message"]["content"]


def test_a_chat_handler_is_given_the_grammar(llama, monkeypatch):
    """Some look at the grammar alone, as functionary's do, and some at a response_format."""

    def handler(*, llama, messages, grammar, response_format, **_):
        assert response_format == {"type": "json_object", "schema": SCHEMA}
        return llama.create_completion("Tell me", grammar=grammar, max_tokens=60, seed=1)

    monkeypatch.setattr(llama, "chat_handler", handler)
    answer = llama.create_chat_completion(ASK, response_format=as_response_format(SCHEMA))
    assert json.loads(answer["choices"][0]["text"])["n"] in (7, 8)


def test_a_grammar_that_a_user_makes_of_a_schema_obeys_it(llama):
    grammar = llama_cpp.LlamaGrammar.from_json_schema(json.dumps(SCHEMA))
    text = llama.create_completion("Tell me", grammar=grammar, max_tokens=60)["choices"][0]["text"]
    assert json.loads(text)["n"] in (7, 8)
    refused = llama_cpp.LlamaGrammar.from_json_schema(json.dumps(REFUSED))
    with pytest.raises(YarnGGUFError, match=NAMES_IT):
        llama.create_completion("Tell me", grammar=refused)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"type": "xml"}, "type is one of text, json_object, json_schema, got {'type': 'xml'}"),
        ({}, "type is one of"),
        ("json", "type is one of"),
        ({"type": "json_schema"}, "json_schema has a schema, as in"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "json_schema has a schema, as in"),
        ({"type": "json_schema", "schema": SCHEMA}, "json_schema has the keys type, json_schema, got schema"),
        (
            {"type": "json_object", "json_schema": {}},
            "json_object has the keys type, schema, got json_schema",
        ),
    ],
)
def test_a_response_format_that_is_none_is_refused(llama, asked, message):
    with pytest.raises(YarnGGUFError, match=f"response_format: {message}"):
        chat(llama, response_format=asked)


def test_response_format_and_grammar_exclude_each_other(llama):
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "a"')
    with pytest.raises(YarnGGUFError, match="give response_format or grammar, not both"):
        chat(llama, response_format={"type": "json_object"}, grammar=grammar)
