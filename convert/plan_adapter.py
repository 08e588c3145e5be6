"""Plan the GGUF file of a LoRA adapter, which llama.cpp adds to a base model when it loads it (lora_path)."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from yarn_gguf.convert.arch import architecture
from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.convert.checkpoint import has_weights, read_checkpoint
from yarn_gguf.convert.gguf_header import headers, new_writer
from yarn_gguf.convert.lora.adapter import Adapter, LowRank, read_adapter
from yarn_gguf.convert.lora.merge import of_text_model
from yarn_gguf.convert.metadata import add_metadata
from yarn_gguf.convert.plan import ConversionPlan, PlannedFile, ggml_tensors, in_order, inputs_of
from yarn_gguf.convert.quantize import Target
from yarn_gguf.convert.quantized import is_quantized
from yarn_gguf.convert.rope_keys import other_rope
from yarn_gguf.convert.tensor import Tensor, equal
from yarn_gguf.convert.text_part import text_config, text_part
from yarn_gguf.convert.tied import EMBEDDINGS, HEAD
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config, read_config

_log = logging.getLogger(__name__)

TYPES = {"f32": GGMLType.F32, "f16": GGMLType.F16, "bf16": GGMLType.BF16, "q8_0": GGMLType.Q8_0}
_Q8_0_BLOCK = 32
_LOOKED_UP = "token_embd.weight"  # llama.cpp takes rows of its A
_TIED = f"it changes one of {EMBEDDINGS} and {HEAD}, which the base model ties"
_MERGE = "merge the adapter as you convert the base model (yarn-gguf convert BASE --lora"


def plan_adapter(folder: str | Path, *, type: str, base: str | Path | None = None) -> ConversionPlan:
    """Return what convert would write for the adapter in `folder`.

    type: one of TYPES. base: the folder of the base model, of which config.json is enough. None: the folder
    that adapter_config.json names. If the weights are there too, and are not quantized, the adapter is
    compared with them.

    Raises ConversionError, RopeScalingError (for config.json) or OSError.
    """
    if type not in TYPES:
        raise ConversionError(f"type {type!r}: an adapter can be {', '.join(TYPES)}")
    adapter = read_adapter(folder)
    base = _base_folder(adapter, base)
    config = text_config(read_config(base))
    arch = architecture(config)
    if asks := other_rope(adapter.folder, arch.rope):
        _log.warning(
            f"{asks}; an adapter has no scaling: give the base model's file this one (extend --from-hf)"
        )
    adapter = of_text_model(adapter, config)
    _check_expressible(adapter, config, arch)
    if has_weights(config) and not is_quantized(config):  # else their shapes are others
        _check_fits(adapter, text_part(read_checkpoint(base))[0].tensors)
    alpha = _common_alpha(adapter)
    targets = [
        Target(name, tensor, _type(type, tensor.shape))
        for name, tensor in _tensors(adapter, arch, alpha).items()
    ]
    rows = ((each.name, each.tensor.shape, each.type, each.size) for each in targets)
    writer = new_writer(arch.name, rows)
    add_metadata(writer, adapter.folder, gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    (header,) = headers(writer)
    inputs = inputs_of(adapter.folder, base)
    return ConversionPlan(adapter.folder, inputs, [PlannedFile(header, targets)], is_adapter=True)


# ----------------------------------------------------------------------------------------------


def _base_folder(adapter: Adapter, base: str | Path | None) -> Path:
    """Return the folder of the base model. Raise ConversionError if there is none."""
    if base is not None:
        return Path(base)
    name = adapter.config.values.get("base_model_name_or_path")
    if isinstance(name, str) and name and Path(name, "config.json").is_file():
        return Path(name)
    raise ConversionError(
        f"{adapter.config.path}: base_model_name_or_path is {name!r}, and no such folder has a config.json: "
        "give the base model's folder with --base (its config.json is enough)"
    )


def _check_expressible(adapter: Adapter, config: Config, arch: Architecture) -> None:
    """Raise ConversionError for a change that a GGUF adapter, or llama.cpp, does not make."""
    whole = ", ".join(sorted(adapter.weights)[:3])
    if whole:
        raise _beyond(adapter, f"it replaces whole weights ({whole}), which a GGUF adapter cannot")
    for name, change in adapter.changes.items():
        module = name.removesuffix(".weight").split(".")[-1]
        if change.magnitude is not None:
            raise _beyond(adapter, f"{name} is a DoRA, which a GGUF adapter cannot be")
        if module in arch.without_lora:
            raise _beyond(adapter, f"it changes {name}, and llama.cpp ignores that for {arch.name} models")
        if arch.config.values.get("tie_word_embeddings") and name in (EMBEDDINGS, HEAD):
            raise _beyond(adapter, _TIED)
        if change.transposed is not (module in ("embed_tokens", "embed_in")):
            raise _beyond(adapter, f"{name} is changed as another kind of layer")
    for name, copy in adapter.copies.items():
        rows = config.whole("vocab_size")
        if copy.shape[0] != rows:
            raise _beyond(
                adapter, f"{name} has {copy.shape[0]} rows, and the base model's vocab_size is {rows}"
            )


def _beyond(adapter: Adapter, reason: str) -> ConversionError:
    return ConversionError(f"{adapter.folder}: {reason}: {_MERGE} {adapter.folder})")


def _check_fits(adapter: Adapter, base: dict[str, Tensor]) -> None:
    """Raise ConversionError if the base model's weights are not those that the adapter changes."""
    for name, change in adapter.changes.items():
        found = base[name].shape if name in base else "none"
        if found != change.shape:
            raise ConversionError(
                f"{adapter.folder}: the adapter's {name} is {change.shape}, and the base model's {found}: "
                "give the adapter's own base model with --base"
            )
    if EMBEDDINGS in adapter.changes and HEAD not in base:
        raise _beyond(adapter, _TIED)
    for name, copy in adapter.copies.items():
        if name not in base or not equal(copy, base[name]):
            raise _beyond(adapter, f"it was trained on another {name} than the base model's")


def _common_alpha(adapter: Adapter) -> float:
    """Return the file's alpha: llama.cpp scales each pair by alpha / rank."""
    first = next(iter(adapter.changes.values()))
    stabilized = adapter.config.values.get("use_rslora")
    alpha = first.alpha * math.sqrt(first.rank) if stabilized else first.alpha
    if not alpha:
        raise ConversionError(
            f"{adapter.config.path}: lora_alpha is 0, so the adapter changes nothing: use the base model "
            "alone (to llama.cpp 0 means that there is no scale)"
        )
    return alpha


def _factor(change: LowRank, alpha: float) -> np.float32:
    """Return what B has to be multiplied by, for a scale that differs from alpha / rank."""
    return np.float32(change.scale * change.rank / alpha)


def _tensors(adapter: Adapter, arch: Architecture, alpha: float) -> dict[str, Tensor]:
    """Return the tensors by ggml's names, in order: lora_a before lora_b.

    What rearranges the rows of a weight rearranges those of B, and leaves A alone.
    """
    changes = adapter.changes.items()
    scaled: dict[str, Tensor] = {name: _scaled(each.b, _factor(each, alpha)) for name, each in changes}
    inputs: dict[str, Tensor] = {name: _Inputs(each.a.shape, each.a.read) for name, each in changes}
    all_b = in_order(ggml_tensors(arch, arch.arrange(scaled)))
    all_a = ggml_tensors(arch, arch.arrange(inputs))
    _check_experts(adapter, arch, all_b)
    if _LOOKED_UP in all_a:
        all_a[_LOOKED_UP] = _transposed(all_a[_LOOKED_UP])
    pairs = (
        (f"{name}.lora_{end}", part[name]) for name in all_b for end, part in (("a", all_a), ("b", all_b))
    )
    return dict(pairs)


def _transposed(tensor: Tensor) -> Tensor:
    return Tensor(tensor.shape[::-1], lambda start, stop: tensor.load().T[start:stop])


def _check_experts(adapter: Adapter, arch: Architecture, outputs: dict[str, Tensor]) -> None:
    """Raise ConversionError if only some of a layer's experts are changed. llama.cpp does not check that."""
    keys = new_writer(arch.name, ())
    arch.add_keys(keys)
    count = keys.kv_data[0].get(f"{arch.name}.expert_count")
    for name, tensor in outputs.items():
        if len(tensor.shape) == 3 and (count is None or tensor.shape[0] != count.value):
            raise _beyond(adapter, f"it changes {tensor.shape[0]} experts of {name}, and not all")


class _Inputs(Tensor):
    """A of a pair. Functions that rearrange the rows of a weight leave it as it is."""

    def map(self, *_: object, **__: object) -> Tensor:
        return self


def _scaled(tensor: Tensor, factor: np.float32) -> Tensor:
    return tensor if factor == 1 else tensor.map(lambda data: data * factor)


def _type(name: str, shape: tuple[int, ...]) -> GGMLType:
    """Return the type of a tensor. Like upstream's converter, take F16 for rows that q8_0 cannot divide."""
    return GGMLType.F16 if name == "q8_0" and shape[-1] % _Q8_0_BLOCK else TYPES[name]
