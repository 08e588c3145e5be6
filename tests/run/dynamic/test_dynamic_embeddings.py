"""Embeddings: a text's is the same whatever texts are beside it, and has the factor of its own length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from chat_models import write_chat_model
from dynamics import F32
from libraries import relative_error

from yarn_gguf import DynamicScaling, RopeScaling
from yarn_gguf.rope.dynamic import Scaling
from yarn_gguf.run.llama import Llama

ORIGINAL = 16  # tokens
SHORT, MIDDLE = (
    "The king had three sons",
    "the youngest of whom went out into the world to learn what fear was",
)
MEAN, NONE, LAST = 1, 0, 3  # enum llama_pooling_type
LONG = f"{MIDDLE}, and {SHORT} " * 4


@pytest.fixture(scope="module")
def model(smollm2_path, tmp_path_factory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("models") / "chat.gguf", smollm2_path)


@pytest.fixture
def embedder(model) -> Iterator[Callable[[Scaling], Llama]]:
    with ExitStack() as opened:

        def make(scaling: Scaling | None, pooling: int = MEAN) -> Llama:
            settings = {"n_ctx": 256, "pooling_type": pooling, "embedding": True, "verbose": False, **F32}
            llama = Llama(model, rope_scaling=scaling, **settings)
            opened.callback(llama.close)
            return llama

        yield make


@pytest.mark.parametrize("pooling", [MEAN, LAST, NONE])
@pytest.mark.parametrize("policy", [None, "growth", "request", "exact"])
def test_a_texts_embedding_does_not_depend_on_the_texts_beside_it(embedder, policy, pooling):
    scaling = None
    if policy is not None:
        scaling = DynamicScaling.of("yarn", policy=policy, original_max_position_embeddings=ORIGINAL)
    llama = embedder(scaling, pooling)
    texts = [SHORT, LONG, MIDDLE, SHORT]
    together, total = llama.embed(texts, return_count=True)
    alone = [llama.embed(text) for text in texts]
    for got, expected in zip(together, alone, strict=True):
        assert relative_error(np.array(got), np.array(expected)) < 1e-5
    assert total == sum(llama.embed(text, return_count=True)[1] for text in texts)


@pytest.mark.parametrize("policy", ["request", "exact"])
def test_a_texts_embedding_is_that_of_static_scaling_for_its_length(embedder, policy):
    llama = embedder(DynamicScaling.of("yarn", policy=policy, original_max_position_embeddings=ORIGINAL))
    together = llama.embed([LONG, SHORT, MIDDLE], normalize=True)
    for text, got in zip([LONG, SHORT, MIDDLE], together, strict=True):
        factor = max(1.0, len(llama.tokenize(text.encode())) / ORIGINAL)
        static = embedder(RopeScaling("yarn", factor, ORIGINAL) if factor > 1 else RopeScaling("none"))
        assert relative_error(np.array(got), np.array(static.embed(text, normalize=True))) < 1e-4


def test_texts_are_embedded_under_dynamic_scaling_as_by_llama_cpp(embedder):
    """An OpenAI-like answer, in the order of the texts; a single text; a text that is cut at n_batch."""
    llama = embedder(DynamicScaling.of("yarn", original_max_position_embeddings=ORIGINAL))
    made = llama.create_embedding([LONG, SHORT])
    assert [each["index"] for each in made["data"]] == [0, 1]
    assert made["data"][1]["embedding"] == llama.embed(SHORT)
    assert len(llama.embed(SHORT)) == llama.n_embd()
    with pytest.raises(ValueError, match="exceed batch size"):
        llama.embed([SHORT, LONG * 20], truncate=False)
    assert len(llama.embed([SHORT, LONG * 20])) == 2
