"""Tokenize a text with as much stack as it takes, so that a long word does not end the process."""

from __future__ import annotations

import ctypes
import re
import threading
from concurrent.futures import ThreadPoolExecutor

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.native.library import library
from yarn_gguf.native.log import captured_errors, reason

_SHORT = 4000  # bytes; any thread's stack suffices for a shorter run
_NO_TOKENS = -(2**31)  # llama_tokenize's result if the vocabulary has no tokens for a text (patch 0017)
_stack_size = threading.Lock()  # threading.stack_size applies to every thread that starts


def tokenize(vocabulary: int, text: bytes, add_bos: bool, special: bool) -> list[int]:
    """Return the tokens of `text`. Raises YarnGGUFError.

    The pre-tokenizer of many vocabularies is a std::regex. It takes 320 bytes of the stack for each
    character that it matches: 27,000 spaces, or letters without a space, would end the process. So a text
    with a long run of blanks or of other characters is tokenized on a thread with a larger stack.
    """
    longest = 0
    if len(text) > _SHORT:
        longest = max(len(run) for runs in (text.split(), re.split(rb"\S+", text)) for run in runs)
    if longest <= _SHORT:
        return _tokenize(vocabulary, text, add_bos, special)
    with ThreadPoolExecutor(1) as executor, _stack_size:
        before = threading.stack_size((512 + longest // 16) << 14)  # 8 MB, and 1 KB for each byte
        try:
            future = executor.submit(_tokenize, vocabulary, text, add_bos, special)
        except RuntimeError as error:
            raise YarnGGUFError(
                f"no room to tokenize {longest:,} bytes without a blank, or all blank: break the text up"
            ) from error
        finally:
            threading.stack_size(before)
    return future.result()


def _tokenize(vocabulary: int, text: bytes, add_bos: bool, special: bool) -> list[int]:
    room = len(text) + 16  # for special tokens
    with captured_errors() as lines:
        while True:
            tokens = (ctypes.c_int32 * room)()
            count = library().llama_tokenize(vocabulary, text, len(text), tokens, room, add_bos, special)
            if count >= 0:
                return tokens[:count]
            if count == _NO_TOKENS:
                raise YarnGGUFError(f"the model's vocabulary has no tokens for this text: {reason(lines)}")
            room = -count  # normalization has made the text longer
