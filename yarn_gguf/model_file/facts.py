"""The facts about a model that `yarn-gguf inspect` shows beside its rotary embedding."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

from yarn_gguf.disk.fingerprint import model_files
from yarn_gguf.gguf.header import Header, ValueType, read_header

_NO_TOKENIZER = (None, "none", "no_vocab")


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model. A value that the file or the folder does not tell is None.

    type: llama.cpp's name for the types of a file, such as Q4_K_M; a checkpoint's dtype.
    parameters, bits_per_weight: of the tensors that are stored.
    bytes, files: of all parts; of a checkpoint's weights.
    missing: parts of a split model, or shards of a checkpoint, that are not there.
    tokenizer: its kind. vocabulary: the number of its tokens.
    """

    name: str | None
    type: str | None
    parameters: int | None
    bits_per_weight: float | None
    bytes: int
    files: int
    missing: tuple[str, ...]
    has_chat_template: bool
    license: str | None
    tokenizer: str | None
    vocabulary: int | None


def facts_of_file(header: Header) -> ModelFacts:
    """Return the facts about the model whose first or only part has `header`. Raises GGUFError, OSError."""
    paths = model_files(header.path)
    others = [path for path in paths if path != header.path]
    headers = [header, *(read_header(path) for path in others if path.exists())]
    parameters = sum(prod(tensor.dims) for each in headers for tensor in each.tensors.values())
    data = sum(each.file_size - each.data_offset for each in headers)
    return ModelFacts(
        name=_text_of(header, "general.name"),
        type=type_name(headers),
        parameters=parameters,
        bits_per_weight=8 * data / parameters if parameters else None,
        bytes=sum(each.file_size for each in headers),
        files=len(headers),
        missing=tuple(path.name for path in others if not path.exists()),
        has_chat_template="tokenizer.chat_template" in header.entries,
        license=_text_of(header, "general.license"),
        tokenizer=_tokenizer(header),
        vocabulary=_vocabulary(header),
    )


def type_name(headers: list[Header]) -> str | None:
    """Return llama.cpp's name for the types of a file, such as Q4_K_M.

    headers: of all parts. Without general.file_type it is the type of most weights; None without tensors.
    """
    from gguf.constants import GGMLQuantizationType, LlamaFileType  # slow to import

    stated = headers[0].get("general.file_type", ValueType.UINT32)
    if stated in list(LlamaFileType):
        return LlamaFileType(stated).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    weights: Counter[int] = Counter()
    for tensor in (tensor for each in headers for tensor in each.tensors.values()):
        weights[tensor.type] += prod(tensor.dims)
    if not weights:
        return None
    ((most, _),) = weights.most_common(1)
    return GGMLQuantizationType(most).name if most in list(GGMLQuantizationType) else f"ggml type {most}"


# ----------------------------------------------------------------------------------------------


def _text_of(header: Header, key: str) -> str | None:
    """Return a text; None if it is missing, or of another type: it is only shown."""
    entry = header.entries.get(key)
    return entry.value if entry is not None and entry.type == ValueType.STRING else None


def _tokenizer(header: Header) -> str | None:
    kind, pre = _text_of(header, "tokenizer.ggml.model"), _text_of(header, "tokenizer.ggml.pre")
    if kind in _NO_TOKENIZER:
        return None
    return f"{kind}, {pre}" if pre else kind


def _vocabulary(header: Header) -> int | None:
    tokens = header.entries.get("tokenizer.ggml.tokens")
    return None if tokens is None else tokens.count
