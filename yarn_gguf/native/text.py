"""From text to tokens, without an end of the process by a text that takes too much stack."""

from __future__ import annotations

import ctypes
import re
import threading
from concurrent.futures import ThreadPoolExecutor

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.native.library import library
from yarn_gguf.native.log import captured_errors, reason

_SHORT = 4000  # bytes
_ERROR = -(2**31)  # llama_tokenize's value where the vocabulary has no tokens for a text (patch 0017)
_stack_size = threading.Lock()  # threading.stack_size holds for all threads that begin


def tokenize(vocabulary: int, text: bytes, add_bos: bool, special: bool) -> list[int]:
    """Return the tokens of `text`, computed with as much stack as that may take. Raises YarnGGUFError.

    The pre-tokenizers of many vocabularies are a std::regex. It takes 320 bytes of the stack for each
    character that it matches: 27,000 spaces, or letters without a space, would end the process.
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
            if count == _ERROR:
                raise YarnGGUFError(f"the model's vocabulary has no tokens for this text: {reason(lines)}")
            room = -count  # normalization made the text longer
