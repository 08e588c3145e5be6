"""Grammars for what a chat's response_format asks for, and for the schemas of its tools."""

from __future__ import annotations

import json
from typing import Any

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.run.grammar.keywords import Schema
from yarn_gguf.run.grammar.schema import grammar_of
from yarn_gguf.run.handles import llama_cpp

from llama_cpp import llama_grammar  # isort: skip  (after handles)

# The keys of a response_format of each type, beside "type"
_KEYS: dict[Any, set[str]] = {"text": set(), "json_object": {"schema"}, "json_schema": {"json_schema"}}


class RefusedGrammar(str):
    """The grammar of a schema that cannot be obeyed: that of any JSON, with the error.

    llama-cpp-python's chat handlers take any JSON instead of a schema whose translation raises. So the error
    comes when a Llama uses the grammar.
    """

    error: YarnGGUFError


def asked_schema(response_format: Any) -> Schema | None:
    """Return the schema that OpenAI's `response_format` asks for, or None. Raises YarnGGUFError."""
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind not in _KEYS:
        raise YarnGGUFError(f"response_format: type is one of {', '.join(_KEYS)}, got {response_format!r}")
    if more := response_format.keys() - _KEYS[kind] - {"type"}:
        known = ", ".join(["type", *_KEYS[kind]])
        raise YarnGGUFError(f"response_format: {kind} has the keys {known}, got {', '.join(sorted(more))}")
    if kind == "text":
        return None
    if kind == "json_object":
        return response_format.get("schema") or {"type": "object"}
    described = response_format.get("json_schema")
    if not isinstance(described, dict) or "schema" not in described:
        example = '{"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}'
        raise YarnGGUFError(f"response_format: json_schema has a schema, as in {example}, got {described!r}")
    return described["schema"]


def with_grammar(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of create_chat_completion with a grammar for the schema that response_format asks for.

    Some chat handlers look at the grammar, and some at a response_format of the type "json_object". Raises
    YarnGGUFError.
    """
    schema = asked_schema(arguments.get("response_format"))
    if schema is None:
        return arguments
    if arguments.get("grammar") is not None:
        raise YarnGGUFError("give response_format or grammar, not both")
    grammar = llama_cpp.LlamaGrammar.from_string(grammar_of(schema), verbose=False)
    return arguments | {"grammar": grammar, "response_format": {"type": "json_object", "schema": schema}}


def require_obeyed(grammar: Any) -> None:
    """Raise the error of a grammar whose schema was refused."""
    if isinstance(grammar, RefusedGrammar):
        raise grammar.error


# ----------------------------------------------------------------------------------------------


def _schema_grammar(schema: str, prop_order: list[str] | None = None) -> str:
    """Return the grammar of a schema's text, in the place of llama-cpp-python's converter.

    That one drops most keywords, such as minimum and uniqueItems. It takes a reference for another one of the
    same last name, and allows texts that are no JSON. prop_order: the first properties.
    """
    try:
        return grammar_of(_ordered(json.loads(schema), prop_order or []))
    except YarnGGUFError as error:
        refused = RefusedGrammar(llama_grammar.JSON_GBNF)
        refused.error = error
        return refused


def _ordered(schema: Any, order: list[str]) -> Any:
    """Return a schema whose properties, and those of its parts, begin with the names in `order`."""
    if isinstance(schema, list):
        return [_ordered(each, order) for each in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: _ordered(value, order) for key, value in schema.items()}
    if isinstance(properties := parts.get("properties"), dict):
        first = {name: properties[name] for name in order if name in properties}
        parts["properties"] = first | properties
    return parts


llama_grammar.json_schema_to_gbnf = _schema_grammar
