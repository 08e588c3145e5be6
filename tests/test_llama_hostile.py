"""No failure of the native library that can be caught before it aborts ends the process."""

from __future__ import annotations

import subprocess
import sys

import pytest
import random_gguf
from libraries import ROOT


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, smollm2_path) -> dict[str, str]:
    """What hostile_requests.py says of each of its cases, all in one process.

    Of its models "text" has a real vocabulary, "tokens" has none, and "encoder" is not causal.
    """
    folder = tmp_path_factory.mktemp("hostile")
    random_gguf.llama(folder / "text.gguf", smollm2_path)
    random_gguf.llama(folder / "tokens.gguf")
    random_gguf.bert(folder / "encoder.gguf", smollm2_path)
    line = [sys.executable, ROOT / "tests" / "hostile_requests.py", folder]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout[-500:]}\n{done.stderr[-2000:]}"
    return dict(each.split(": ", 1) for each in done.stdout.splitlines())


# what is refused by llama_cpp.Llama with an abort or a segmentation fault, or taken without a word
REFUSED = {
    "processor of NaN": "YarnGGUFError: no token can be sampled",
    "processor of None": "YarnGGUFError: no token can be sampled",
    "n_batch -1": "ModelLoadError: n_batch must be",
    "n_ubatch -5": "ModelLoadError: n_ubatch must be",
    "n_ctx beyond int32": "ModelLoadError: n_ctx must be",
    "n_threads -1": "ModelLoadError: n_threads must be",
    "pooling_type 99": "ModelLoadError: pooling_type must be",
    "rope_scaling_type 99": "ModelLoadError: rope_scaling_type must be",
    "embedding by attention not causal": "YarnGGUFError: 401 tokens, whose attention is not causal",
    "embed a long text in small parts": "ModelLoadError: n_ubatch, with embedding=True, must be",
    "kv_overrides of no layer": "ModelLoadError: kv_overrides cannot change llama.block_count",
    "kv_overrides of many layers": "ModelLoadError: kv_overrides cannot change llama.block_count",
    "lora_path missing": "FileNotFoundError",
    "lora_path no adapter": "ModelLoadError",
    "vocab_only": "YarnGGUFError",
    "tokens out of range": "RuntimeError: llama_decode returned -1",
    "tokens negative": "RuntimeError: llama_decode returned -1",
    "prompt empty": "YarnGGUFError: there is nothing to go on from",
    "prompt too long": "ValueError: Requested tokens (1001) exceed context window of 256",
    "beyond the context": "ContextFullError: 1 tokens do not fit",
    "detokenize out of range": "YarnGGUFError: tokens are whole numbers from 0 to 49151",
    "tokenize without a vocabulary": "YarnGGUFError",
    "detokenize without a vocabulary": "YarnGGUFError",
    "sample before eval": "YarnGGUFError: there is nothing to go on from",
    "sample where nothing was computed": "YarnGGUFError: no token can be sampled",
    "sample far away": "YarnGGUFError: no token can be sampled",
    "grammar that is none": "YarnGGUFError: the grammar cannot be used",
    "grammar of an undefined rule": "YarnGGUFError: the grammar cannot be used",
    "grammar left recursive": "YarnGGUFError: the grammar cannot be used",
    "grammar against a processor": "YarnGGUFError: no token can be sampled: every token is forbidden",
    "grammar against a processor, greedy": "YarnGGUFError: no token can be sampled: every token is forbidden",
    "processor that raises": "ZeroDivisionError",
    "processor of another shape": "ValueError",
    "generation of an encoder": "YarnGGUFError",
    "embed an empty text": "YarnGGUFError: a text to embed has no tokens",
    "load_state of bytes": "RopeScalingError",
    "draft of nonsense": "RuntimeError: llama_decode returned -1",
}
WORKS = (
    "n_ubatch above n_batch",
    "logits_all and a batch",
    "embed with a larger batch",
    "chat in JSON",
    "logprobs",
)


def test_what_callers_get_wrong_is_an_exception(outcomes):
    assert len(outcomes) > 130  # the process lived to the end
    wrong = {
        name: outcomes[name] for name, message in REFUSED.items() if not outcomes[name].startswith(message)
    }
    assert wrong == {}


def test_what_is_only_unusual_works(outcomes):
    assert {name: outcomes[name] for name in WORKS} == dict.fromkeys(WORKS, "works")
