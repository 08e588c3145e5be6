"""Sample a token, and check a grammar. Bad input raises instead of ending the process."""

from __future__ import annotations

import itertools
import re

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.native.library import library, load
from yarn_gguf.native.log import captured_errors, reason

# strings, character classes and comments of GBNF: a bracket within them is no syntax
_GRAMMAR_TEXT = re.compile(r'"(?:\\.|[^"\\])*"?|\[(?:\\.|[^\]\\])*\]?|#.*')
_MOST_BRACKETS = 1000  # nested; the parser takes up to 500 bytes of the stack for each
_MOST_RULES = 10_000  # a chain of rules takes about 100 bytes of the stack for each


def sample(sampler: int, context: int, index: int) -> int:
    """Return the token that the chain `sampler` picks from the logits at `index`. Raises YarnGGUFError."""
    with captured_errors() as lines:
        token = library().yarn_gguf_sample(sampler, context, index)
    if token < 0:
        raise YarnGGUFError(f"no token can be sampled: {reason(lines)}")
    return token


def check_grammar(vocabulary: int, grammar: str, root: str) -> None:
    """Raise YarnGGUFError, with the library's reason, if it cannot parse `grammar` (GBNF)."""
    llama_cpp = load()
    _check_depth(_GRAMMAR_TEXT.sub("", grammar))
    with captured_errors() as lines:
        sampler = llama_cpp.llama_sampler_init_grammar(vocabulary, grammar.encode(), root.encode())
    if not sampler:
        raise YarnGGUFError(f"the grammar cannot be used: {reason(lines) or grammar!r}")
    llama_cpp.llama_sampler_free(sampler)


def _check_depth(grammar: str) -> None:
    """Raise YarnGGUFError if the library's recursive parser would overflow the stack.

    grammar: without its strings, character classes and comments.
    """
    steps = (1 if bracket == "(" else -1 for bracket in re.findall("[()]", grammar))
    if max(itertools.accumulate(steps), default=0) > _MOST_BRACKETS:
        raise YarnGGUFError(
            f"the grammar cannot be used: more than {_MOST_BRACKETS:,} brackets within one another, which "
            "a large maxLength or maxItems in a JSON schema produces: leave it out"
        )
    if grammar.count("::=") > _MOST_RULES:
        raise YarnGGUFError(f"the grammar cannot be used: more than {_MOST_RULES:,} rules")
