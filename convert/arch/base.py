"""The base class of the architectures: keys and tensors that most decoders have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import gguf

from yarn_gguf.convert.tensor import Tensor, equal, stack
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config
from yarn_gguf.rope.hf_rope import rope_of

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(\w+\.weight)")


class Architecture:
    """The keys and tensors that a checkpoint gives to its GGUF file. Subclasses override what differs.

    model_arch: the gguf package's name. defaults: values that published config.json files leave out.
    has_windows: whether llama.cpp computes layers with a sliding window for it.
    without_lora: modules for which llama.cpp ignores an adapter.
    config: the checkpoint's config.json. rope: its rotary embedding.
    """

    model_arch: gguf.MODEL_ARCH
    defaults: Mapping[str, Any] = MappingProxyType({})
    has_windows = False
    without_lora: tuple[str, ...] = ()

    def __init__(self, config: Config) -> None:
        self.config = config = Config(config.path, config.place, {**self.defaults, **config.values})
        self.rope = rope_of(config)
        self.layers = config.whole("num_hidden_layers")
        self.heads = config.whole("num_attention_heads")
        self.kv_heads = config.whole("num_key_value_heads", self.heads)
        self.head_dim = config.whole("head_dim", config.whole("hidden_size") // self.heads)

    @property
    def name(self) -> str:
        """The value of general.architecture, which is also the prefix of the keys."""
        return gguf.MODEL_ARCH_NAMES[self.model_arch]

    @property
    def notes(self) -> list[str]:
        """Warnings where llama.cpp computes long texts differently from transformers."""
        window = self.config.values.get("sliding_window")
        if self.has_windows or not window or not self.config.values.get("use_sliding_window", True):
            return []
        if window >= self.rope.max_position_embeddings:
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

    def add_sliding_window(self, writer: gguf.GGUFWriter) -> None:
        """Write the size of the window, and which layers have it."""
        writer.add_sliding_window(self.config.whole("sliding_window"))
        types = self.config.values.get("layer_types")
        if types:
            writer.add_sliding_window_pattern([each == "sliding_attention" for each in types])

    def require(self, name: str, expected: object) -> None:
        """Raise ConversionError if a value of config.json is not the only one that llama.cpp computes."""
        value = self.config.values.get(name, expected)
        if value != expected:
            raise ConversionError(
                f"{self.config.path}: {name} is {value!r}, but llama.cpp computes {self.name} models only "
                f"with {expected!r}: run this checkpoint with transformers"
            )

    def rearrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors that a GGUF file needs: ggml's layout, Hugging Face's names.

        An output projection that is tied to the embeddings is left out. Like transformers, take two that
        differ as they are, whatever config.json says.
        """
        head, embeddings = tensors.get(HEAD), tensors.get(EMBEDDINGS)
        if self.config.values.get("tie_word_embeddings") and head and embeddings:
            if equal(head, embeddings):
                tensors = {name: tensor for name, tensor in tensors.items() if name != HEAD}
            elif gguf.MODEL_TENSOR.OUTPUT not in gguf.MODEL_TENSORS[self.model_arch]:
                raise ConversionError(
                    f"{self.config.path.parent}: {HEAD} differs from {EMBEDDINGS}, but llama.cpp takes one "
                    f"for both in {self.name} models: run this model with transformers"
                )
        return self.arrange(tensors)

    def arrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Change the layout of one architecture's tensors; part of `rearrange`."""
        return tensors


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
