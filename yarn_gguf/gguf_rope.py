"""What a GGUF file says about its rotary embedding: RopeScaling <-> keys.

Keys and their meaning: docs/gguf-keys.md. Floats in a file are float32, so a RopeScaling read from
one has float32's values.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.errors import GGUFError, RopeScalingError
from yarn_gguf.gguf_file import AGAIN, Header, KeyValue, ValueType, key_value, read_header
from yarn_gguf.rope import RopeScaling, ggml_attn_factor, ntk_base, rope_op_has, yarn_mscale

WRITABLE = ("none", "linear", "ntk", "by-parts", "yarn", "llama3", "explicit")  # what keys can express
SCALING_TYPES = ("none", "linear", "yarn", "longrope")  # those that llama.cpp knows; any other ends it

MAX_DIMENSIONS = 1 << 16  # of a head; more is damage

FREQ_FACTORS = "rope_freqs.weight"
LONG_FACTORS = "rope_factors_long.weight"
SHORT_FACTORS = "rope_factors_short.weight"

# The ntk method is a new freq_base to llama.cpp; these say where it came from.
ORIGINAL_FREQ_BASE = "yarn_gguf.original_freq_base"
NTK_FACTOR = "yarn_gguf.ntk_factor"

# All keys that a scaling may set or remove: suffixes after "{arch}.", and ours.
_ROPE_SUFFIXES = (
    "context_length",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_ramp",
    "rope.scaling.yarn_truncate",
    "rope.scaling.low_freq_factor",
    "rope.scaling.high_freq_factor",
    "rope.scaling.inv_freq",
)

# llama_model_rope_type in llama.cpp says "none", or positions are learned embeddings (bert, starcoder)
_WITHOUT_ROPE = frozenset(
    (
        *("bert", "bloom", "clip", "gpt2", "gptj", "jais", "jina-bert-v2", "mpt", "refact", "starcoder"),
        *("t5", "t5encoder", "wavtokenizer-dec"),
        *("arwkv7", "jamba", "kimi-linear", "mamba", "mamba2", "nemotron_h", "nemotron_h_moe"),
        *("rwkv6", "rwkv6qwen2", "rwkv7"),
    )
)
# what llama.cpp's loaders do with yarn_log_multiplier: DeepSeek's holds mscale_all_dim / 10
_LOG_MULTIPLIER_SCALE = {"deepseek2": 10.0, "deepseek32": 10.0, "mistral3": 1.0}
_BETA_FAST = {"grok": 8.0}  # the default of llama.cpp's loader where it is not 32
_HOLDS_OPERAND = ("grok",)  # its yarn_attn_factor is ggml's operand, not the total


@dataclass(frozen=True)
class RopeModel:
    """A model's rotary embedding, before any scaling, and the file's header. Made by read_model.

    dim: rotary dimensions of a head. rope_theta: the base that the model was trained with.
    context_length, original_context: tokens; what the file claims, and what it says that the model was
    trained with (the same, where it says nothing of it).
    """

    path: Path
    arch: str
    dim: int
    rope_theta: float
    context_length: int
    original_context: int
    header: Header = field(repr=False)

    @cached_property
    def scaling(self) -> RopeScaling:
        """The scaling that the file asks for. Raises RopeScalingError or GGUFError if it makes no sense."""
        return _read_scaling(self)

    @cached_property
    def freq_factors(self) -> tuple[float, ...] | None:
        """What divides each frequency before any scaling: Llama 3.1's tensor rope_freqs.weight."""
        return read_factors(self.header, FREQ_FACTORS)

    @property
    def usable_context(self) -> int:
        """Tokens that the file is made for: factor times original context. Raises as `scaling` does."""
        if self.scaling.method == "longrope" or self.scaling.original_max_position_embeddings is None:
            return self.context_length
        return extended_context(self.scaling.factor, self.scaling.original_max_position_embeddings)

    def key(self, suffix: str) -> str:
        """The full name of a key of this architecture."""
        return f"{self.arch}.{suffix}"

    def get(self, suffix: str, type_: ValueType, default: Any = None) -> Any:
        """The value of a key of this architecture; see Header.get."""
        return self.header.get(self.key(suffix), type_, default)


def read_model(path: str | Path) -> RopeModel:
    """The rotary embedding of the model in the GGUF file at `path`.

    Raises GGUFError for a damaged file or a missing key, RopeScalingError for a model without rotary
    embedding, OSError.
    """
    return model_of(read_header(path))


def model_of(header: Header) -> RopeModel:
    """As read_model, for a header that has been read."""
    arch = _architecture(header)
    theta = header.get(f"{arch}.rope.freq_base", ValueType.FLOAT32, 10000.0)
    theta = header.get(ORIGINAL_FREQ_BASE, ValueType.FLOAT32, theta)
    if not (np.isfinite(theta) and theta > 1):
        raise RopeScalingError(f"{header.path}: {arch}.rope.freq_base = {theta}: a number > 1 is needed")
    context = header.get(f"{arch}.context_length", ValueType.UINT32, 0)
    if context == 0:
        raise GGUFError(f"{header.path}: {arch}.context_length is missing or 0: convert the model again")
    original = header.get(f"{arch}.rope.scaling.original_context_length", ValueType.UINT32) or context
    return RopeModel(header.path, arch, _rotary_dimensions(header, arch), theta, context, original, header)


def extended_context(factor: float, original_context: int) -> int:
    """L' = s L in tokens, to the nearest: float32's 1.1 times 10 is 11."""
    return round(factor * original_context)


def owned_keys(model: RopeModel) -> set[str]:
    """Every key that a scaling may set or remove."""
    return {ORIGINAL_FREQ_BASE, NTK_FACTOR, *(model.key(suffix) for suffix in _ROPE_SUFFIXES)}


def scaling_keys(model: RopeModel, scaling: RopeScaling) -> list[KeyValue]:
    """The keys, all of owned_keys that a file needs, that make llama.cpp scale as `scaling` says.

    The scaling must name its original context. Raises RopeScalingError for what GGUF has no key for.
    """
    _check_writable(scaling)
    scaling = _as_float32(scaling)
    context = scaling.original_max_position_embeddings
    length = extended_context(scaling.factor, context) if scaling.method != "none" else context
    if length > np.iinfo(np.uint32).max:
        raise RopeScalingError(f"rope scaling factor {scaling.factor} takes {context} tokens beyond 32 bits")
    # of llama3 an unpatched llama.cpp does the nearest that it can, by-parts
    types = {"linear": "linear", "by-parts": "yarn", "yarn": "yarn", "llama3": "yarn"}
    type_ = types.get(scaling.method, "none")
    keys = [
        key_value(model.key("context_length"), ValueType.UINT32, length),
        *_freq_base_keys(model, scaling),
        key_value(model.key("rope.scaling.type"), ValueType.STRING, type_),
    ]
    if scaling.method != "none":
        keys.append(key_value(model.key("rope.scaling.original_context_length"), ValueType.UINT32, context))
    if scaling.method in (*types, "explicit"):
        keys.append(_float_key(model, "factor", scaling.factor))
    return keys + _temperature_keys(model, scaling) + _table_keys(model, scaling)


def log_multiplier(model: RopeModel) -> float:
    """mscale_all_dim, where llama.cpp reads it for this architecture and the file has it; else 0."""
    stored = _number(model, "rope.scaling.yarn_log_multiplier", 0.0)
    return stored * _LOG_MULTIPLIER_SCALE.get(model.arch, 0.0)


def read_factors(header: Header, name: str) -> tuple[float, ...] | None:
    """The float32 values of the tensor `name`, which the header's file holds; None if there is none."""
    tensor = header.tensors.get(name)
    if tensor is None:
        return None
    if tensor.type != 0 or len(tensor.dims) != 1:  # GGML_TYPE_F32
        raise GGUFError(f"{header.path}: the tensor {name} is no list of F32: convert the model again")
    with header.path.open("rb") as file:
        file.seek(header.data_offset + tensor.offset)
        return tuple(np.frombuffer(file.read(4 * tensor.dims[0]), "<f4").tolist())


# ----------------------------------------------------------------------------------------------


def _architecture(header: Header) -> str:
    arch = header.get("general.architecture", ValueType.STRING)
    shard = header.get("split.no", ValueType.UINT16, 0)
    if shard > 0:
        count = header.get("split.count", ValueType.UINT16, 0)
        raise GGUFError(
            f"{header.path}: part {shard + 1} of {count} of a split model: the keys are in part 1, "
            f"the file named ...-00001-of-{count:05}.gguf"
        )
    if arch is None:
        raise GGUFError(f"{header.path}: general.architecture is missing: convert the model again")
    if arch in _WITHOUT_ROPE:
        raise RopeScalingError(f"{header.path}: {arch} models have no rotary embedding to scale")
    return arch


def _rotary_dimensions(header: Header, arch: str) -> int:
    """As llama.cpp finds them (load_hparams in llama-model.cpp)."""
    n_head = _head_count(header, f"{arch}.attention.head_count")
    if n_head == 0:
        raise RopeScalingError(f"{header.path}: no {arch}.attention.head_count, hence no rotary embedding")
    width = header.get(f"{arch}.embedding_length", ValueType.UINT32, 0) // n_head
    width = header.get(f"{arch}.attention.key_length", ValueType.UINT32, width)
    dim = header.get(f"{arch}.rope.dimension_count", ValueType.UINT32, width)
    if dim == 0:
        raise RopeScalingError(f"{header.path}: {arch}.rope.dimension_count = 0: no rotary embedding")
    if dim % 2 or dim > MAX_DIMENSIONS:
        expected = f"an even number up to {MAX_DIMENSIONS}"
        raise GGUFError(f"{header.path}: {arch}.rope.dimension_count = {dim}, not {expected}: {AGAIN}")
    return dim


def _head_count(header: Header, key: str) -> int:
    """One number, or one a layer, of which some may be 0."""
    entry = header.entries.get(key)
    if entry is None or entry.type != ValueType.ARRAY:
        return header.get(key, ValueType.UINT32, 0)
    counts = [count for count in entry.value if isinstance(count, int)]
    return max(0, *counts) if counts else 0


def _read_scaling(model: RopeModel) -> RopeScaling:
    try:
        return _scaling_from_keys(model)
    except RopeScalingError as error:
        raise RopeScalingError(
            f"{model.path}: {error} (keys {model.key('rope.scaling')}.*); yarn-gguf extend writes a sound set"
        ) from error


def _scaling_from_keys(model: RopeModel) -> RopeScaling:
    type_ = model.get("rope.scaling.type", ValueType.STRING)
    if type_ not in (None, *SCALING_TYPES):
        raise RopeScalingError(f"type {type_!r} is none of {', '.join(SCALING_TYPES)}")
    original = model.get("rope.scaling.original_context_length", ValueType.UINT32)
    factor = model.get("rope.scaling.factor", ValueType.FLOAT32)
    if factor is None:
        factor = model.get("rope.scale_linear", ValueType.FLOAT32)
    if factor is None or (factor == 0 and type_ != "yarn"):
        factor = 1.0  # 0 stands for "not scaled" in files that llama.cpp wrote
    if LONG_FACTORS in model.header.tensors:
        return _read_longrope(model)
    if model.key("rope.scaling.inv_freq") in model.header.entries:
        return _read_table(model, factor)
    if type_ == "yarn" and _is_blending(model):
        return _read_yarn(model, factor)
    attention_factor = _not_one(_number(model, "rope.scaling.attn_factor"))
    ntk_factor = model.header.get(NTK_FACTOR, ValueType.FLOAT32)
    if type_ == "none" and ntk_factor is not None:
        return RopeScaling("ntk", ntk_factor, original, attention_factor=attention_factor)
    if type_ == "none" or (type_ is None and factor == 1):
        return RopeScaling(attention_factor=attention_factor)
    return RopeScaling("linear", factor, original, attention_factor=attention_factor)


def _read_yarn(model: RopeModel, factor: float) -> RopeScaling:
    plain = RopeScaling(
        "yarn",
        factor,
        _original_context(model),
        beta_fast=_number(model, "rope.scaling.yarn_beta_fast", _BETA_FAST.get(model.arch, 32.0)),
        beta_slow=_number(model, "rope.scaling.yarn_beta_slow", 1.0),
    )
    total = _number(model, "rope.scaling.yarn_attn_factor")
    if total is not None and model.arch in _HOLDS_OPERAND:
        total *= yarn_mscale(factor)
    if total is None and (multiplier := log_multiplier(model)):
        mscale = multiplier if model.arch == "deepseek2" else 1.0
        return replace(plain, mscale=mscale, mscale_all_dim=multiplier)
    if total is None:
        total = _number(model, "rope.scaling.attn_factor", 1.0) * yarn_mscale(factor)
    if _same_float32(total, plain.temperature()):
        return plain
    if _same_float32(total, 1.0):
        return replace(plain, method="by-parts")
    return replace(plain, attention_factor=total)


def _read_table(model: RopeModel, factor: float) -> RopeScaling:
    """Explicit frequencies, and the method that they come from, if keys of ours name it."""
    table = tuple(model.header.entries[model.key("rope.scaling.inv_freq")].value)
    low, high = (_number(model, f"rope.scaling.{name}_freq_factor") for name in ("low", "high"))
    if low is not None and high is not None:
        scaling = RopeScaling(
            "llama3",
            factor,
            _original_context(model),
            attention_factor=_not_one(_number(model, "rope.scaling.yarn_attn_factor")),
            low_freq_factor=low,
            high_freq_factor=high,
        )
    elif model.get("rope.scaling.type", ValueType.STRING) == "yarn":
        scaling = replace(
            _read_yarn(model, factor),
            ramp=model.get("rope.scaling.yarn_ramp", ValueType.STRING, "index"),
            truncate=model.get("rope.scaling.yarn_truncate", ValueType.BOOL, True),
        )
    else:
        temperature = _not_one(_number(model, "rope.scaling.attn_factor"))
        return RopeScaling(
            "explicit", factor, _original_context(model), attention_factor=temperature, inv_freq=table
        )
    expected = scaling.frequencies(model.dim, model.rope_theta).inv_freq
    if len(table) != len(expected) or not np.allclose(table, expected, rtol=1e-6, atol=0):
        raise RopeScalingError("inv_freq and the other keys disagree")
    return scaling


def _is_blending(model: RopeModel) -> bool:
    """yarn_ext_factor: negative stands for "not given"; 0 leaves plain interpolation of yarn."""
    mix = _number(model, "rope.scaling.yarn_ext_factor", 1.0)
    if not (mix <= 0 or mix == 1):
        raise RopeScalingError(f"yarn_ext_factor {mix} has no meaning outside llama.cpp: expected 0 or 1")
    return mix != 0


def _read_longrope(model: RopeModel) -> RopeScaling:
    original = _original_context(model)
    plain = RopeScaling(
        "longrope",
        max(1.0, model.context_length / original),
        original,
        short_factor=read_factors(model.header, SHORT_FACTORS),
        long_factor=read_factors(model.header, LONG_FACTORS),
    )
    total = _number(model, "rope.scaling.attn_factor", 1.0)
    return plain if _same_float32(total, plain.temperature()) else replace(plain, attention_factor=total)


def _number(model: RopeModel, suffix: str, default: float | None = None) -> Any:
    return model.get(suffix, ValueType.FLOAT32, default)


def _original_context(model: RopeModel) -> int:
    length = model.get("rope.scaling.original_context_length", ValueType.UINT32)
    return model.context_length if length is None else length


def _not_one(value: float | None) -> float | None:
    return None if value == 1 else value


def _same_float32(one: float, other: float) -> bool:
    return abs(one - other) <= 1.5 * np.spacing(np.float32(other))  # a product may round twice


def _as_float32(scaling: RopeScaling) -> RopeScaling:
    values = {each.name: getattr(scaling, each.name) for each in fields(scaling)}
    return replace(scaling, **{k: float(np.float32(v)) for k, v in values.items() if isinstance(v, float)})


def _check_writable(scaling: RopeScaling) -> None:
    if scaling.method not in WRITABLE:
        methods = ", ".join(WRITABLE)
        raise RopeScalingError(f"a GGUF file has no key for {scaling.method}: use one of {methods}")


def _freq_base_keys(model: RopeModel, scaling: RopeScaling) -> list[KeyValue]:
    name = model.key("rope.freq_base")
    if scaling.method == "ntk":
        base = ntk_base(model.rope_theta, scaling.factor, model.dim)
        if base > np.finfo(np.float32).max:
            raise RopeScalingError(f"rope scaling factor {scaling.factor} takes {name} beyond float32")
        return [
            key_value(name, ValueType.FLOAT32, base),
            key_value(ORIGINAL_FREQ_BASE, ValueType.FLOAT32, model.rope_theta),
            key_value(NTK_FACTOR, ValueType.FLOAT32, scaling.factor),
        ]
    return [key_value(name, ValueType.FLOAT32, model.rope_theta)] if name in model.header.entries else []


def _temperature_keys(model: RopeModel, scaling: RopeScaling) -> list[KeyValue]:
    """attn_factor is what an unpatched llama.cpp honours; by-parts and yarn get the complete set."""
    total = scaling.temperature()
    if scaling.method not in ("by-parts", "yarn", "llama3"):
        return [_float_key(model, "attn_factor", total)] if total != 1 else []
    operand = ggml_attn_factor(total, scaling.factor)
    fast, slow = scaling.beta_fast, scaling.beta_slow
    if scaling.method == "llama3":
        fast, slow = scaling.high_freq_factor, scaling.low_freq_factor
    return [
        _float_key(model, "yarn_beta_fast", fast),
        _float_key(model, "yarn_beta_slow", slow),
        _float_key(model, "yarn_attn_factor", operand if model.arch in _HOLDS_OPERAND else total),
        _float_key(model, "attn_factor", operand),
    ]


def _table_keys(model: RopeModel, scaling: RopeScaling) -> list[KeyValue]:
    """The frequencies themselves, where llama.cpp's rope op cannot derive them, and where they come from."""
    if rope_op_has(scaling):
        return []
    keys = []
    if scaling.method == "llama3":
        keys = [
            _float_key(model, f"{name}_freq_factor", getattr(scaling, f"{name}_freq_factor"))
            for name in ("low", "high")
        ]
    elif scaling.method != "explicit":
        ramp, truncate = model.key("rope.scaling.yarn_ramp"), model.key("rope.scaling.yarn_truncate")
        keys = [
            key_value(ramp, ValueType.STRING, scaling.ramp),
            key_value(truncate, ValueType.BOOL, scaling.truncate),
        ]
    table = scaling.frequencies(model.dim, model.rope_theta).inv_freq
    return [*keys, key_value(model.key("rope.scaling.inv_freq"), ValueType.ARRAY, tuple(table.tolist()))]


def _float_key(model: RopeModel, name: str, value: float) -> KeyValue:
    return key_value(model.key(f"rope.scaling.{name}"), ValueType.FLOAT32, value)
