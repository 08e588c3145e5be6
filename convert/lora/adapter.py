"""Read a LoRA adapter as PEFT saves it: adapter_config.json beside adapter_model.safetensors or .bin."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from yarn_gguf.convert.checkpoint import has_weights, open_weights
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config, read_config

CONFIG = "adapter_config.json"
MERGED_BY_PEFT = "merge it with PEFT (merge_and_unload), and convert the result"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_LONGLORA = "trainable_params.bin"  # LongLoRA saves the embeddings and norms that it has trained here
_DEFAULT = 8  # of r and of lora_alpha, in PEFT
_PREFIX = "base_model.model."
_NAME = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.weight)?")
_WRAPPED = ".base_layer."
_ORIGINAL = ".original_module."  # the base model's weight beside the one that replaces it
_OTHERS = ("lora_", "token_adapter")

# Beginnings of training that leave the base model as it is. Others, such as pissa, change its weights.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
# what changes the formula of a LoRA, or the base model, and how it is said
_REFUSED = {
    "fan_in_fan_out": "its weights are transposed",
    "layer_replication": "it repeats layers of the base model",
    "lora_bias": "its B has a bias",
    "target_parameters": "it changes parameters that are no linear layers",
    "trainable_token_indices": "it replaces single rows of the embeddings",
    "use_qalora": "its inputs are pooled in groups",
    "alora_invocation_tokens": "it takes effect from a certain token on, which only llama-server does",
    "invocation_string": "it takes effect from a certain token on, which only llama-server does",
    "arrow_config": "it routes between adapters",
    "use_bdlora": "its matrices are in blocks",
    "kasa_config": "it changes the base model's weights",
    "monteclora_config": "it is sampled",
    "velora_config": "its formula is not known here",
}


@dataclass(frozen=True)
class LowRank:
    """A change of a weight (outputs, inputs): it grows by scale * B A.

    a: (rank, inputs). b: (outputs, rank).
    alpha: PEFT's alpha of this module. scale: alpha / rank, or alpha / sqrt(rank) (rsLoRA).
    transposed: whether the weight is an embedding (inputs, outputs), which grows by the transpose.
    magnitude: (outputs,), DoRA's norm of each row of the changed weight; or None.
    """

    a: Tensor
    b: Tensor
    alpha: float
    scale: float
    transposed: bool = False
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        shape = (self.b.shape[0], self.a.shape[1])
        return shape[::-1] if self.transposed else shape


@dataclass(frozen=True)
class Adapter:
    """An adapter. All names are those of the base model's tensors.

    changes: of its weights.
    weights: trained wholly; they replace the base model's (modules_to_save, biases, LongLoRA's norms).
    copies: of the base model's weights before their change. They differ from it if the vocabulary has grown.
    """

    config: Config
    changes: dict[str, LowRank]
    weights: dict[str, Tensor]
    copies: dict[str, Tensor]

    @property
    def folder(self) -> Path:
        return self.config.path.parent


def holds_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def is_adapter(folder: Path) -> bool:
    """Return whether `folder` has an adapter and no model. As in transformers, a model has a config.json."""
    if not holds_adapter(folder):
        return False
    return not (folder / "config.json").is_file() or not has_weights(read_config(folder))


def read_adapter(folder: str | Path) -> Adapter:
    """Return the adapter in `folder`.

    Raises ConversionError for one that is damaged, or is more than the formula of LoRA or DoRA;
    RopeScalingError for a value that is no number; OSError.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    _check(config)
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ConversionError(
            f"{folder}: has {CONFIG}, but neither {' nor '.join(_WEIGHTS)}: download it again"
        )
    parts: dict[str, dict[str, Tensor]] = {}
    magnitudes, weights, copies = {}, {}, {}
    for stored, tensor in open_weights(file).items():
        name = stored.removeprefix(_PREFIX)
        if match := _NAME.fullmatch(name):
            parts.setdefault(match[1], {})[match[2]] = tensor
        elif match := _MAGNITUDE.fullmatch(name):
            magnitudes[match[1]] = tensor
        elif _ORIGINAL in name:
            continue
        elif any(each in name for each in _OTHERS):
            raise ConversionError(f"{file}: tensor {stored} is no part of a plain LoRA: {MERGED_BY_PEFT}")
        elif name.endswith(f"{_WRAPPED}weight"):
            copies[name.replace(_WRAPPED, ".")] = tensor
        else:
            weights[name.replace(_WRAPPED, ".").replace(".modules_to_save.", ".")] = tensor
    if (folder / _LONGLORA).is_file():
        longlora = open_weights(folder / _LONGLORA)
        weights |= {name.removeprefix(_PREFIX): tensor for name, tensor in longlora.items()}
    changes = {
        f"{module}.weight": _low_rank(config, file, module, pair, magnitudes.pop(module, None))
        for module, pair in parts.items()
    }
    for module in magnitudes:
        raise ConversionError(
            f"{file}: {module} has a magnitude without lora_A and lora_B: download it again"
        )
    if not changes and not weights:
        raise ConversionError(f"{file}: holds no tensor of an adapter: download it again")
    return Adapter(config, changes, weights, copies)


# ----------------------------------------------------------------------------------------------


def _read_config(path: Path) -> Config:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConversionError(f"{path}: no JSON ({error}): download it again") from error
    if not isinstance(values, dict):
        raise ConversionError(f"{path}: a JSON object is expected, got {type(values).__name__}")
    return Config(path, "", values)


def _check(config: Config) -> None:
    """Raise ConversionError for an adapter whose tensors say less than what it computes."""
    values = config.values
    if values.get("peft_type", "LORA") != "LORA":
        _refuse(config, "peft_type", "only LORA can be converted")
    for name, reason in _REFUSED.items():
        if values.get(name):
            _refuse(config, name, reason)
    start = values.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in _PLAIN_STARTS:
        _refuse(config, "init_lora_weights", "the adapter belongs to a base model with changed weights")


def _refuse(config: Config, name: str, reason: str) -> NoReturn:
    value = json.dumps(config.values[name])
    raise ConversionError(f"{config.path}: {name} is {value}: {reason}: {MERGED_BY_PEFT}")


def _low_rank(
    config: Config, file: Path, module: str, pair: dict[str, Tensor], magnitude: Tensor | None
) -> LowRank:
    """Return the change of a module's weight, with PEFT's scale."""
    transposed = "lora_embedding_A" in pair
    ends = ("lora_embedding_A", "lora_embedding_B") if transposed else ("lora_A.weight", "lora_B.weight")
    if pair.keys() != set(ends):
        raise ConversionError(f"{file}: {module} has {', '.join(sorted(pair))}, not {' and '.join(ends)}")
    a, b = (pair[end] for end in ends)
    rank = int(_by_pattern(config, "rank_pattern", module, config.whole("r", _DEFAULT)))
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise ConversionError(
            f"{file}: {module} has lora_A {a.shape} and lora_B {b.shape}, and {config.path.name} gives it "
            f"the rank {rank}: do they belong together?"
        )
    if bool(config.values.get("use_dora")) is not (magnitude is not None):
        has = "no magnitude" if magnitude is None else "a magnitude"
        raise ConversionError(
            f"{file}: {module} has {has}, and use_dora in {config.path.name} is "
            f"{json.dumps(config.values.get('use_dora'))}: do they belong together?"
        )
    if magnitude is not None and (transposed or magnitude.shape != b.shape[:1]):
        raise ConversionError(f"{file}: {module} is a DoRA that is not known here: {MERGED_BY_PEFT}")
    alpha = float(_by_pattern(config, "alpha_pattern", module, config.number("lora_alpha", _DEFAULT)))
    is_stabilized = bool(config.values.get("use_rslora"))
    scale = alpha / math.sqrt(rank) if is_stabilized else alpha / rank
    return LowRank(a, b, alpha, scale, transposed, magnitude)


def _by_pattern(config: Config, name: str, module: str, default: float) -> float:
    """Return the number of the first pattern that the module's name ends in, as PEFT finds it."""
    patterns = config.section(name)
    for pattern in patterns.values:
        try:
            found = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise ConversionError(f"{config.path}: {name}: {pattern!r} is no pattern ({error})") from error
        if found:
            return patterns.number(pattern)
    return default
