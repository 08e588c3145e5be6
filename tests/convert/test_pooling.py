"""A checkpoint of sentence-transformers keeps the way in which it makes one vector of a text."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from hf_checkpoints import convert_weights, save_checkpoint
from libraries import relative_error

from yarn_gguf import Llama
from yarn_gguf.errors import ConversionError

TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
DENSE = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}


def save(folder: Path, pooling: object, *steps: object) -> Path:
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER, POOLING, *steps]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize(
    ("pooling", "number"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}, gguf.PoolingType.MEAN),
        ({"pooling_mode_cls_token": True}, gguf.PoolingType.CLS),
        ({"pooling_mode": "lasttoken"}, gguf.PoolingType.LAST),
        ({"pooling_mode_lasttoken": True}, gguf.PoolingType.LAST),
    ],
)
def test_the_file_names_the_pooling(folder: Path, tmp_path: Path, pooling: dict, number: int) -> None:
    (path,) = convert_weights(save(folder, pooling, NORMALIZE), tmp_path / "out.gguf", type="f16")
    assert gguf.GGUFReader(path).fields["llama.pooling_type"].contents() == number


def test_a_model_without_pooling_has_no_key(folder: Path, tmp_path: Path) -> None:
    (path,) = convert_weights(folder, tmp_path / "out.gguf", type="f16")
    assert "llama.pooling_type" not in gguf.GGUFReader(path).fields


@pytest.mark.parametrize("mode", ["mean", "lasttoken"])
def test_an_embedding_is_the_pooling_of_transformers_vectors(tmp_path: Path, mode: str) -> None:
    import torch
    import transformers

    folder = save(save_checkpoint(tmp_path / "hf", "qwen3", num_hidden_layers=2), {"pooling_mode": mode})
    (path,) = convert_weights(folder, tmp_path / "out.gguf", type="f32")
    tokens = np.random.default_rng(1).integers(3, 320, 20).tolist()
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        vectors = model(torch.tensor([tokens])).last_hidden_state[0].numpy()
    expected = vectors.mean(axis=0) if mode == "mean" else vectors[-1]
    with contextlib.closing(Llama(str(path), embedding=True, n_ctx=64, verbose=False)) as llama:
        assert relative_error(embedding_of(llama, tokens), expected) < 1e-3


def embedding_of(llama: Llama, tokens: list[int]) -> np.ndarray:
    """Return the vector of tokens. The file has no vocabulary, so there is no text to embed."""
    import llama_cpp

    context = llama._ctx.ctx
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    assert llama_cpp.llama_decode(context, batch) == 0
    llama_cpp.llama_batch_free(batch)
    vector = llama_cpp.llama_get_embeddings_seq(context, 0)
    return np.ctypeslib.as_array(vector, shape=(llama.n_embd(),)).copy()


@pytest.mark.parametrize(
    ("pooling", "steps", "message"),
    [
        (
            {"pooling_mode_max_tokens": True},
            [],
            r"the pooling is \['pooling_mode_max_tokens'\]: llama.cpp has",
        ),
        ({"pooling_mode": "weightedmean"}, [], r"the pooling is \['weightedmean'\]"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, [], "the pooling is"),
        ({"pooling_mode": "mean"}, [DENSE], "a step of the type 'Dense' would be lost"),
        ([], [], "config.json: a JSON dict is expected"),
    ],
)
def test_a_pooling_that_llama_cpp_lacks_is_refused(
    folder: Path, tmp_path: Path, pooling: object, steps: list, message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        convert_weights(save(folder, pooling, *steps), tmp_path / "out.gguf", type="f16")
