"""Run models on the library in the folder LLAMA_CPP_LIB_PATH, through the bare bindings.

Each line of standard input is a request in JSON. The logits go to the .npy file that it names, and a line of
standard output is the answer. Nothing of yarn_gguf is imported, so that the unpatched library answers the
same requests as the patched one.
"""

import ctypes
import json
import sys

import llama_cpp
import numpy as np


def decode(context, vocab_size: int, tokens: list[int], start: int, batch_size: int) -> np.ndarray:
    """Return the logits of tokens at positions start, start + 1, …: float32 (len(tokens), vocab_size)."""
    parts = []
    for first in range(0, len(tokens), batch_size):
        chunk = tokens[first : first + batch_size]
        batch = llama_cpp.llama_batch_init(len(chunk), 0, 1)
        batch.n_tokens = len(chunk)
        for i, token in enumerate(chunk):
            batch.token[i], batch.pos[i] = token, start + first + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
        if llama_cpp.llama_decode(context, batch) != 0:
            sys.exit("llama_decode failed")
        logits = llama_cpp.llama_get_logits(context)
        parts.append(np.ctypeslib.as_array(logits, shape=(len(chunk), vocab_size)).copy())
        llama_cpp.llama_batch_free(batch)
    return np.concatenate(parts)


def shift_round_trips(context, count: int, distance: int) -> None:
    """Move the whole cache by +distance and back, `count` times. Each move rotates K at once."""
    memory = llama_cpp.llama_get_memory(context)
    for _ in range(count):
        for delta in (distance, -distance):
            llama_cpp.llama_memory_seq_add(memory, 0, 0, -1, delta)
            _apply_shift(context, memory)


def _apply_shift(context, memory) -> None:
    """Decode one token and remove it again: a pending shift is applied with the next batch."""
    end = llama_cpp.llama_memory_seq_pos_max(memory, 0) + 1
    batch = llama_cpp.llama_batch_init(1, 0, 1)
    batch.n_tokens = 1
    batch.token[0], batch.pos[0], batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 0, end, 1, 0, 1
    if llama_cpp.llama_decode(context, batch) != 0:
        sys.exit("llama_decode failed")
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_memory_seq_rm(memory, 0, end, -1)


def set_table(context, inv_freq: list[float], factor: float, attention_factor: float) -> bool:
    """Set the frequencies of a context by yarn_gguf_set_rope_frequencies, which the patched library adds."""
    function = getattr(llama_cpp.llama_cpp._lib, "yarn_gguf_set_rope_frequencies", None)
    if function is None:
        return False
    function.argtypes = [
        *(ctypes.c_void_p, ctypes.POINTER(ctypes.c_double), ctypes.c_size_t, ctypes.c_float, ctypes.c_float)
    ]
    function.restype = ctypes.c_bool
    values = (ctypes.c_double * len(inv_freq))(*inv_freq)
    return function(context, values, len(inv_freq), factor, attention_factor)


def answer(request: dict) -> str:
    """Write the logits that are asked for. Return "done", or the reason why there are none."""
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(request["model"].encode(), model_params)
    if not model:
        return "the model was refused"
    params = llama_cpp.llama_context_default_params()
    for name, value in request["context"].items():
        setattr(params, name, value)
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        return "the context was refused"
    if request["table"] and not set_table(context, *request["table"]):
        return "the library takes no table of frequencies"
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    tokens = request["tokens"]
    logits = decode(context, vocab_size, tokens, 0, params.n_batch)
    if request["shifts"]:
        # read the last token again after shifts of those before it
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(context), 0, len(tokens) - 1, -1)
        shift_round_trips(context, request["shifts"], request["distance"])
        logits = decode(context, vocab_size, tokens[-1:], len(tokens) - 1, 1)
    np.save(request["output"], logits)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return "done"


def main() -> None:
    for line in sys.stdin:
        print(answer(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
