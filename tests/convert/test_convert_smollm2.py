"""A real checkpoint: its converted file writes the text that transformers writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from chat_models import chat_prompt

from yarn_gguf import Llama
from yarn_gguf.convert import convert
from yarn_gguf.gguf.header import read_header

QUESTION = "Tell me a story about a lighthouse keeper who counts ships: 1, 22, 333."
F32 = 0  # enum ggml_type; the type of the KV cache


@pytest.fixture(scope="module")
def converted(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    (path,) = convert(smollm2_folder, tmp_path_factory.mktemp("converted") / "model.gguf", type="f32")
    yield path
    path.unlink()  # half a gigabyte


def chat_tokens(folder: Path) -> list[int]:
    """Return the tokens of the question in the checkpoint's chat template, by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_file_has_the_checkpoints_chat_template(converted: Path, smollm2_folder: Path) -> None:
    template = read_header(converted).entries["tokenizer.chat_template"].value
    assert template == (smollm2_folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert chat_prompt(converted, QUESTION) == chat_tokens(smollm2_folder)


def test_the_file_writes_what_its_checkpoint_writes(converted: Path, smollm2_folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    prompt = torch.tensor([chat_tokens(smollm2_folder)])
    answer = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=48
    )[0, prompt.shape[1] :]
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_folder)
    expected = tokenizer.decode(answer, skip_special_tokens=True)
    llama = Llama(converted, n_ctx=256, type_k=F32, type_v=F32, verbose=False)
    message = [{"role": "user", "content": QUESTION}]
    got = llama.create_chat_completion(message, temperature=0, repeat_penalty=1.0, max_tokens=48)
    llama.close()
    assert got["choices"][0]["message"]["content"] == expected
    assert len(expected.split()) > 20
