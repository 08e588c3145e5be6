"""The keys of an object that its schema does not name."""

from __future__ import annotations

from yarn_gguf.run.grammar.rules import RAW, Rules, char_of, complement, intersection, literal


def other_key(names: list[str], rules: Rules) -> str:
    """Return the body of a key that is none of `names`. It has no escapes, which could write one of them.

    There is a rule for each beginning of a name, which says what may follow.
    """
    any_char = rules.add("plain", char_of(RAW) or "")
    beginnings = {name[:i] for name in names for i in range(len(name) + 1)} | {""}
    following_rules = {each: rules.new_name("other-key") for each in sorted(beginnings)}
    for beginning, rule in following_rules.items():
        chars = sorted({each[-1] for each in beginnings if each and each[:-1] == beginning})
        others = intersection(RAW, complement([(ord(char), ord(char)) for char in chars]))
        parts = [f"{char_of(others)} {any_char}*"]
        parts += [f"{literal(char)} {following_rules[beginning + char]}" for char in chars if _is_raw(char)]
        if beginning not in names:
            parts.append('""')
        rules.define(rule, " | ".join(parts))
    return f'"\\"" {following_rules[""]} "\\""'


def _is_raw(char: str) -> bool:
    return bool(intersection(RAW, [(ord(char), ord(char))]))
