"""Check a LoRA adapter's file before the library takes it."""

from __future__ import annotations

from pathlib import Path

from yarn_gguf.errors import ModelLoadError
from yarn_gguf.gguf.header import Header, ValueType, read_header

_EMBEDDINGS, _OUTPUT = "token_embd.weight", "output.weight"
_SPLIT = "split.count"


def check_adapter(path: str | Path, model: Header) -> None:
    """Raise ModelLoadError for an adapter that the library would not refuse by itself.

    It gives a null pointer for a file that is no adapter. It ends the process if the embeddings have a pair
    and are the output projection too, and if a layer's experts do not all have one.
    """
    adapter = read_header(path)
    if adapter.get("general.type", ValueType.STRING) != "adapter":
        raise ModelLoadError(f"{path} is no LoRA adapter: its general.type is not adapter (lora_path)")
    is_whole = _SPLIT not in model.entries  # other parts may hold the output projection
    if is_whole and _OUTPUT not in model.tensors and f"{_EMBEDDINGS}.lora_a" in adapter.tensors:
        raise ModelLoadError(
            f"{path} changes {_EMBEDDINGS}, which is the output projection too in {model.path}: merge the "
            "adapter into the checkpoint (yarn-gguf convert --lora)"
        )
    for name, pair in adapter.tensors.items():
        weight = model.tensors.get(name.removesuffix(".lora_a").removesuffix(".lora_b"))
        if weight is not None and weight.dims[2:] != pair.dims[2:]:
            raise ModelLoadError(
                f"{path}: {name} is of {pair.dims[2:]} experts, and {model.path} has {weight.dims[2:]}: "
                "is it the adapter of another model?"
            )
