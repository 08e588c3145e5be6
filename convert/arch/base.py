"""The base class of the architectures: keys and tensors that most decoders have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import gguf

from yarn_gguf.convert.arch.config_keys import (
    ASSUMED,
    CONVERTED,
    WITHOUT_EFFECT,
    Assumptions,
    check_assumptions,
    check_model_class,
    own_code_note,
)
from yarn_gguf.convert.tensor import Tensor, stack
from yarn_gguf.convert.tied import OutputLayer, resolve_tie
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config
from yarn_gguf.rope.hf_rope import rope_of

_LAYER_TYPES = ("full_attention", "sliding_attention")
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(\w+\.weight)")


class Architecture:
    """The keys and tensors that a checkpoint gives to its GGUF file. Subclasses override what differs.

    model_arch: the gguf package's name. model_classes: transformers' classes whose head is converted.
    defaults: transformers' values for keys that a config.json leaves out.
    converted, without_effect: keys of config.json that are converted, and that do not change the logits. All
    others are in `assumed`.
    has_windows: whether llama.cpp computes layers with a sliding window for it.
    needs_output: whether llama.cpp wants an output layer in the file even if it is the embedding.
    without_lora: modules for which llama.cpp ignores an adapter.
    config: the checkpoint's config.json. rope: its rotary embedding. windows: which layers have a sliding
    window.
    """

    model_arch: gguf.MODEL_ARCH
    model_classes: tuple[str, ...]
    defaults: Mapping[str, Any] = MappingProxyType({})
    converted: frozenset[str] = CONVERTED | {"rms_norm_eps"}
    without_effect: frozenset[str] = WITHOUT_EFFECT
    has_windows = False
    needs_output = False
    without_lora: tuple[str, ...] = ()

    def __init__(self, config: Config) -> None:
        self.config = config = Config(config.path, config.place, {**self.defaults, **config.values})
        self.rope = rope_of(config)
        self.layers = config.whole("num_hidden_layers")
        self.heads = config.whole("num_attention_heads")
        self.kv_heads = config.whole("num_key_value_heads", self.heads)
        self.head_dim = config.whole("head_dim", config.whole("hidden_size") // self.heads)
        check_model_class(config, self.model_classes)
        check_assumptions(config, self.assumed, self.name)
        self.windows = self.window_layers()

    @property
    def name(self) -> str:
        """The value of general.architecture, which is also the prefix of the keys."""
        return gguf.MODEL_ARCH_NAMES[self.model_arch]

    @property
    def assumed(self) -> Assumptions:
        """The values that llama.cpp computes this architecture with, by their names in config.json."""
        return ASSUMED

    @property
    def notes(self) -> list[str]:
        """Warnings where llama.cpp computes something else than the checkpoint's own code may do."""
        return [*own_code_note(self.config), *self._window_note()]

    def _window_note(self) -> list[str]:
        """Return a warning for a sliding window that llama.cpp does not have."""
        window = self.config.values.get("sliding_window")
        if self.has_windows or not window or window >= self.rope.max_position_embeddings:
            return []
        if not self.config.values.get("use_sliding_window", True) or not any(self.windows):
            return []
        return [
            f"{self.config.path}: sliding_window is {window}, and llama.cpp has none for {self.name} models: "
            f"it differs from transformers on texts of more than {window} tokens"
        ]

    def add_keys(self, writer: gguf.GGUFWriter) -> None:
        """Write the hyperparameters, without the rope keys that a scaling sets."""
        config = self.config
        writer.add_vocab_size(config.whole("vocab_size"))
        writer.add_block_count(self.layers)
        writer.add_embedding_length(config.whole("hidden_size"))
        writer.add_feed_forward_length(config.whole("intermediate_size"))
        writer.add_head_count(self.heads)
        self.add_attention_keys(writer)
        writer.add_rope_dimension_count(self.rope.dim)
        if self.rope.sliding_rope_theta is not None:
            writer.add_rope_freq_base_swa(self.rope.sliding_rope_theta)

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        """Write the keys of attention and norms, and the keys of one architecture alone."""
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_layer_norm_rms_eps(self.config.number("rms_norm_eps"))

    def add_experts(self, writer: gguf.GGUFWriter, *names: str) -> None:
        """Write the number of experts, and how many of them a token uses.

        names: of the first number in config.json. Raises RopeScalingError if there are fewer than are used.
        """
        config = self.config
        name = next((each for each in names if config.values.get(each) is not None), names[0])
        count, used = config.whole(name), config.whole("num_experts_per_tok")
        if used > count:
            config.refuse("num_experts_per_tok", f"at most {name} = {count}")
        writer.add_expert_count(count)
        writer.add_expert_used_count(used)

    def add_sliding_window(self, writer: gguf.GGUFWriter) -> None:
        """Write the size of the window, and which layers have it."""
        writer.add_sliding_window(self.config.whole("sliding_window"))
        writer.add_sliding_window_pattern(self.windows)

    def window_layers(self) -> list[bool]:
        """Return which layers have a sliding window. Raises RopeScalingError for unfit layer_types."""
        types = self.config.values.get("layer_types")
        if types is None:
            return self.default_window_layers()
        if not isinstance(types, list) or len(types) != self.layers or not set(types) <= set(_LAYER_TYPES):
            self.config.refuse("layer_types", f"{self.layers} times {' or '.join(_LAYER_TYPES)}")
        return [each == "sliding_attention" for each in types]

    def default_window_layers(self) -> list[bool]:
        """Return which layers have a window if config.json does not list them."""
        return [True] * self.layers

    def rearrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors that a GGUF file needs: ggml's layout, Hugging Face's names.

        Raises ConversionError for an output layer that is missing, or that llama.cpp would not read.
        """
        is_read = gguf.MODEL_TENSOR.OUTPUT in gguf.MODEL_TENSORS[self.model_arch]
        output = OutputLayer(is_read, self.needs_output)
        return resolve_tie(self.arrange(tensors), self.config, output)

    def arrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Change the layout of one architecture's tensors; part of `rearrange`."""
        return tensors


def all_but_every(period: int, layers: int) -> list[bool]:
    """Return a pattern of windows: every period-th layer has none."""
    return [(layer + 1) % period != 0 for layer in range(layers)]


def suffix_map(
    tensors: dict[str, Tensor], changes: Mapping[str, Callable[[Tensor], Tensor]]
) -> dict[str, Tensor]:
    """Apply a function to each tensor whose name ends in its key of `changes`; keep the other tensors."""
    return {
        name: next((change(tensor) for end, change in changes.items() if name.endswith(end)), tensor)
        for name, tensor in tensors.items()
    }


def stack_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stack the experts of each layer (mlp.experts.N.…) along a new first axis; keep the other tensors."""
    arranged: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _EXPERT.fullmatch(name):
            experts.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = tensor
        else:
            arranged[name] = tensor
    for name, part in experts.items():
        if len({each.shape for each in part.values()}) > 1:
            raise ConversionError(f"the experts' tensors {name} differ in shape")
    return arranged | {name: stack(part[i] for i in sorted(part)) for name, part in experts.items()}
