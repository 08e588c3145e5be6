"""Weights in 8-bit floating point with scales: DeepSeek-V3, Mistral, FBGEMM, and NVIDIA's Model Optimizer."""

from __future__ import annotations

from yarn_gguf.convert.quantized.scaled import OF_ACTIVATIONS, partner, scaled
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

_FP8 = ("F8_E4M3", "F8_E5M2")
_IGNORED = (*OF_ACTIVATIONS, ".activation_scale", ".qscale_act", ".input_scale_ub")


def from_fp8(tensors: dict[str, Tensor], settings: Config) -> dict[str, Tensor]:
    """Return the weights of transformers' fine-grained FP8: NAME and NAME_scale_inv, in blocks or whole."""
    block = settings.values.get("weight_block_size")
    if block is not None and not (isinstance(block, list) and len(block) == 2 and min(block) > 0):
        settings.refuse("weight_block_size", "null or two numbers > 0")
    return _from_pairs(tensors, settings, {"_scale_inv": "", ".qscale_weight": ".weight"}, block)


def from_fbgemm(tensors: dict[str, Tensor], settings: Config) -> dict[str, Tensor]:
    """Return the weights of FBGEMM's FP8: NAME and NAME_scale, one for each row."""
    return _from_pairs(tensors, settings, {"_scale": ""}, None)


def from_modelopt(tensors: dict[str, Tensor], settings: Config) -> dict[str, Tensor]:
    """Return the weights of Model Optimizer's FP8: NAME and NAME_scale. Raises for its other types."""
    if settings.values.get("quant_algo") != "FP8":
        settings.refuse("quant_algo", "'FP8': convert the checkpoint that this one was made from")
    return _from_pairs(tensors, settings, {"_scale": ""}, None)


def _from_pairs(
    tensors: dict[str, Tensor], settings: Config, scale_ends: dict[str, str], block: list[int] | None
) -> dict[str, Tensor]:
    """Return the tensors without scales, the weights in FP8 multiplied by theirs.

    scale_ends: the ends of the scales' names, and what the weights have instead.
    """
    kept = {name: each for name, each in tensors.items() if not name.endswith(_IGNORED)}
    for name in tensors.keys() & kept.keys():
        end = next((end for end in scale_ends if name.endswith(end)), None)
        if end is not None:
            weight = name.removesuffix(end) + scale_ends[end]
            own = partner(tensors, weight, settings)
            if own.dtype not in _FP8:
                raise _unfit(settings, weight, f"is {own.dtype}, not 8-bit floating point, but has a scale")
            kept[weight] = scaled(weight, own, kept.pop(name), block, settings)
    for name, each in kept.items():
        if each.dtype in _FP8:
            raise _unfit(settings, name, f"is {each.dtype}, and its scale is missing")
    return {name: kept[name] for name in tensors if name in kept}


def _unfit(settings: Config, name: str, reason: str) -> ConversionError:
    return ConversionError(f"{settings.path.parent}: tensor {name} {reason}: download the checkpoint again")
