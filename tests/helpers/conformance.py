"""The conformance matrix: architectures x scaling methods, llama.cpp against transformers.

Each cell makes a tiny random checkpoint with transformers, converts it, and compares all logits of a prompt.
A prompt has up to four times the original context. Weights and KV cache are float32. The witness is
transformers with the checkpoint's own rope parameters. For methods that transformers does not have, the
float64 frequencies of tests/helpers/reference.py are put into its model by hand.

    python tests/helpers/conformance.py docs/conformance.md
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import reference
import torch
import transformers
from hf_checkpoints import convert_weights
from libraries import UNPATCHED, LibraryProcess, patched, relative_error
from rich.progress import track
from transformers.activations import GELUTanh, NewGELUActivation

from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.gguf.header import read_header
from yarn_gguf.rope.hf_parameters import rope_parameters
from yarn_gguf.rope.llama_cpp import context_arguments, frequency_table
from yarn_gguf.rope.read import RopeModel, read_model
from yarn_gguf.rope.scaling import RopeScaling, rope_op_has

CONTEXT = 256  # L, tokens
LENGTH = 4 * CONTEXT  # tokens of a prompt
LIMIT = 1e-4  # relative L2 error of all logits
HEAD = 32
THETA = 10000.0
F32 = 0  # enum ggml_type; the type of the KV cache
NO_FLASH_ATTENTION = 0  # enum llama_flash_attn_type

# ---- rows ------------------------------------------------------------------------------------

_BASE = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.15,  # attention that depends on positions
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WINDOW = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
_COMPRESSED = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
}
_MANY_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
_MULTIPLIERS = {
    "embedding_multiplier": 2.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.5,
    "logits_scaling": 4.0,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Row:
    """An architecture.

    dim: rotary dimensions. nested: whether it has rope parameters by layer type. rope, config: values of its
    own. methods: the methods that transformers has for it; the others are put in by hand. trained: the column
    whose scaling the file carries in tensors of rope factors, as upstream's converter writes them. The caller
    asks for another scaling then, in every column.
    """

    model_type: str
    dim: int = HEAD
    nested: bool = False
    rope: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ("none", "linear", "by-parts", "yarn", "llama3", "longrope")
    trained: str = ""

    def is_by_hand(self, scaling: RopeScaling) -> bool:
        """Return whether transformers does not have the scaling for this architecture.

        transformers 5.23 also ignores `truncate` among rope parameters by layer type.
        """
        is_overlooked = self.nested and not scaling.truncate
        return scaling.method not in self.methods or scaling.ramp != "index" or is_overlooked


ROWS = {
    "llama": Row("llama"),
    "mistral": Row("mistral", config={"sliding_window": None}),
    "qwen2": Row("qwen2"),
    "qwen3": Row("qwen3"),
    "qwen3-moe": Row("qwen3_moe", config=_MANY_EXPERTS),
    "phi3, 3/4 rotary": Row(
        "phi3",
        dim=24,
        rope={"partial_rotary_factor": 0.75},
        config={"original_max_position_embeddings": CONTEXT},  # else its class takes 4096
        methods=("none", "longrope"),
    ),
    "gemma2": Row("gemma2", config={"query_pre_attn_scalar": HEAD, **_WINDOW}),
    "gemma3": Row("gemma3_text", nested=True, config={"query_pre_attn_scalar": HEAD, **_WINDOW}),
    "olmo2": Row("olmo2"),
    "olmo3": Row("olmo3", nested=True, config=_WINDOW),
    "gpt-neox, 1/2 rotary": Row(
        "gpt_neox", dim=16, rope={"partial_rotary_factor": 0.5}, config={"hidden_act": "gelu_new"}
    ),
    # a smaller range than elsewhere: its two GELUs by table amplify rounding errors (0.15 gives 9e-5)
    "starcoder2": Row("starcoder2", config={"sliding_window": None, "initializer_range": 0.1}),
    "granite": Row("granite", config=_MULTIPLIERS),
    "smollm3": Row("smollm3", config={"num_hidden_layers": 4}),
    "deepseek-v2": Row("deepseek_v2", config=_COMPRESSED),
    "deepseek-v3": Row("deepseek_v3", config=_COMPRESSED),
    "gpt-oss": Row("gpt_oss", config=_WINDOW | _EXPERTS),
    "llama, trained with Llama 3": Row("llama", trained="Llama 3, 8"),
    "phi3, trained with LongRoPE": Row(
        "phi3",
        dim=24,
        rope={"partial_rotary_factor": 0.75},
        config={"original_max_position_embeddings": CONTEXT},
        methods=("none", "longrope"),
        trained="LongRoPE 4",
    ),
}

# ---- columns ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A scaling, as a function of the rotary dimensions.

    length: tokens of the prompt. way: where the scaling is: in a "file" by yarn-gguf, in an "upstream file"
    (without the key that upstream's converter does not write), or with the "caller" (the parameters of the
    context; the file has no scaling).
    """

    values: dict[str, Any]
    length: int = LENGTH
    way: str = "file"

    def scaling(self, dim: int) -> RopeScaling:
        values = {"original_max_position_embeddings": CONTEXT, **self.values}
        lists = {
            "short_factor": tuple(1 + i / 64 for i in range(dim // 2)),
            "long_factor": tuple(1 + i / 8 for i in range(dim // 2)),
            "inv_freq": tuple((1 + i) ** -2.0 for i in range(dim // 2)),
        }
        needed = {"longrope": ("short_factor", "long_factor"), "explicit": ("inv_freq",)}
        return RopeScaling(**values, **{name: lists[name] for name in needed.get(values["method"], ())})


def _column(
    method: str, factor: float = 4.0, *, length: int = LENGTH, way: str = "file", **values: Any
) -> Column:
    return Column({"method": method, "factor": factor, **values}, length, way)


COLUMNS = {
    "none": _column("none", 1.0),
    "linear 4": _column("linear"),
    "NTK 4": _column("ntk"),
    "by-parts 4": _column("by-parts"),
    "YaRN 4": _column("yarn"),
    "YaRN 1.5": _column("yarn", 1.5),
    "YaRN 32": _column("yarn", 32.0),
    "YaRN 4, betas 8 and 2": _column("yarn", beta_fast=8.0, beta_slow=2.0),
    "YaRN 4, truncate false": _column("yarn", truncate=False),
    "YaRN 4, rotations": _column("yarn", ramp="rotations"),
    "YaRN 4, attention_factor 1.5": _column("yarn", attention_factor=1.5),
    "the same, as upstream's converter writes it": _column("yarn", attention_factor=1.5, way="upstream file"),
    "the same, asked for by the caller": _column("yarn", attention_factor=1.5, way="caller"),
    "linear 4, by the caller": _column("linear", way="caller"),
    "NTK 4, by the caller": _column("ntk", way="caller"),
    "YaRN 4, mscale 1 and 0.5": _column("yarn", mscale=1.0, mscale_all_dim=0.5),
    "Llama 3, 8": _column("llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0),
    "LongRoPE 4, within L": _column("longrope", length=CONTEXT),
    "LongRoPE 4": _column("longrope"),
    "explicit": _column("explicit"),
}

# ---- the witness -----------------------------------------------------------------------------


def make_config(row: Row, scaling: RopeScaling) -> transformers.PreTrainedConfig:
    """Return the config of the tiny checkpoint. It has the scaling, if transformers has that for the row."""
    plain = {"rope_type": "default", "rope_theta": THETA}
    own = (plain if row.is_by_hand(scaling) else rope_parameters(scaling, THETA)) | row.rope
    if row.nested:
        own = {"full_attention": own, "sliding_attention": plain}
    return transformers.AutoConfig.for_model(
        row.model_type, **(_BASE | row.config | {"rope_parameters": own})
    )


def make_model(row: Row, scaling: RopeScaling) -> transformers.PreTrainedModel:
    """Return the tiny checkpoint."""
    torch.manual_seed(0)
    config = make_config(row, scaling)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    use_ggml_gelu(model)
    return model


def use_ggml_gelu(model: torch.nn.Module) -> None:
    """Replace transformers' GELUs by tanh with ggml's."""
    for module in model.modules():
        for name in ("act", "act_fn"):
            if isinstance(getattr(module, name, None), GELUTanh | NewGELUActivation):
                setattr(module, name, GGMLGelu())


class GGMLGelu(torch.nn.Module):
    """The GELU of ggml's CPU backend: a lookup in a table of float16 (ggml_vec_gelu_f32)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, rounded))


def witness(
    model: transformers.PreTrainedModel, row: Row, scaling: RopeScaling, tokens: list[int]
) -> np.ndarray:
    """Return transformers' logits: float32 (tokens, vocabulary)."""
    if row.is_by_hand(scaling):
        inv_freq, magnitude = _reference_table(scaling, row.dim)
        rotary = model.base_model.rotary_emb
        prefix = "full_attention_" if row.nested else ""
        setattr(rotary, f"{prefix}inv_freq", torch.tensor(inv_freq))
        setattr(rotary, f"{prefix}attention_scaling", magnitude)
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


def _reference_table(scaling: RopeScaling, dim: int) -> tuple[list[float], float]:
    """Return frequencies and temperature by reference.py, which shares no code with yarn_gguf.rope."""
    factor = scaling.factor
    if scaling.method == "linear":
        return reference.linear_frequencies(dim, THETA, factor), 1.0
    if scaling.method == "ntk":
        return reference.ntk_frequencies(dim, THETA, factor), 1.0
    if scaling.method == "llama3":
        return reference.llama3_frequencies(dim, THETA, factor, CONTEXT, 1.0, 4.0), 1.0
    if scaling.method == "explicit":
        return list(scaling.inv_freq), 1.0
    ramp, options = reference.rotations_ramp, {"alpha": scaling.beta_slow, "beta": scaling.beta_fast}
    if scaling.ramp == "index":
        ramp, options = reference.index_ramp, {"truncate": scaling.truncate}
        options |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    table = reference.by_parts_frequencies(dim, THETA, factor, CONTEXT, ramp, **options)
    return table, _reference_temperature(scaling)


def _reference_temperature(scaling: RopeScaling) -> float:
    if scaling.method == "by-parts":
        return 1.0
    if scaling.mscale is not None:
        return reference.deepseek_temperature(scaling.factor, scaling.mscale, scaling.mscale_all_dim)
    return scaling.attention_factor or reference.yarn_temperature(scaling.factor)


# ---- cells -----------------------------------------------------------------------------------


def measure(row: Row, column: Column, *libraries: LibraryProcess) -> list[float]:
    """Return the relative L2 error of each library's logits; infinite for a file that it refuses."""
    tokens = np.random.default_rng(1).integers(3, 256, column.length).tolist()
    scaling = column.scaling(row.dim)
    model = make_model(row, scaling)
    with tempfile.TemporaryDirectory() as scratch:
        (make_model(row, RopeScaling()) if row.trained else model).save_pretrained(scratch)
        file = Path(scratch, "model.gguf")
        caller = _write(scratch, file, row, column, scaling)
        expected = witness(model, row, scaling, tokens)
        return [_error(library, file, tokens, expected, caller) for library in libraries]


def _write(checkpoint: str, file: Path, row: Row, column: Column, scaling: RopeScaling) -> dict[str, Any]:
    """Write the GGUF file, and return the context arguments that the caller has to give."""
    if row.trained or column.way == "caller":
        own = COLUMNS[row.trained].scaling(row.dim) if row.trained else RopeScaling()
        convert_weights(checkpoint, file, type="f32", scaling=own)
        return _asked(scaling, read_model(file), column.length)
    convert_weights(checkpoint, file, type="f32", scaling=scaling if row.is_by_hand(scaling) else None)
    if column.way == "upstream file":
        change_keys(read_header(file), [], {read_model(file).key("rope.scaling.attn_factor")})
    return {}


def _asked(scaling: RopeScaling, model: RopeModel, length: int) -> dict[str, Any]:
    """Return what a caller gives the library for a scaling: arguments, or else a table."""
    arguments = context_arguments(scaling, model)
    if rope_op_has(scaling):
        return arguments
    inv_freq, factor, attention_factor = frequency_table(scaling, model, length)
    return arguments | {"table": (inv_freq.tolist(), factor, attention_factor)}


def _error(
    library: LibraryProcess, file: Path, tokens: list[int], expected: np.ndarray, caller: dict[str, Any]
) -> float:
    settings = {"n_ctx": len(tokens), "type_k": F32, "type_v": F32, "flash_attn_type": NO_FLASH_ATTENTION}
    got = library.logits(file, tokens, **settings, **caller)
    if got is None:
        return float("inf")
    return relative_error(got, expected)


# ---- the page --------------------------------------------------------------------------------


_INTRODUCTION = """\
# Conformance with transformers

## Use it

`make conformance` makes this page; do not edit it. `tests/convert/test_conformance.py` runs the same
cells.

## What it promises

The relative L2 error of all logits against transformers {version} is at most {limit:g} in every cell of ours.
The cells are every method and parameter of a scaling, on every architecture that is converted.

## How it was measured

Each cell has the error of the unpatched library, and then ours. **Bold** is more than {limit:g}.

- The models are tiny random checkpoints with an original context of {context} tokens. They are
  converted with float32 weights.
- Prompts have {length} tokens; in the row "within L" they have {context}. The KV cache is float32.
- The file carries the scaling, where no caller is named.
- In the last two columns the file carries another scaling, in upstream's tensors. The caller asks for
  each scaling in its place.
- Some methods are missing in transformers: NTK, the ramp by rotations, the explicit table, most methods
  of Phi-3. They are put into it by hand from float64 formulas.
- Its GELU is replaced by ggml's, which looks values up in a table of float16.
"""


def page(cells: dict[tuple[str, str], list[float]]) -> str:
    """Return the text of docs/conformance.md. cells: errors of our library and of the unpatched one."""
    ours = sum(error <= LIMIT for error, _ in cells.values())
    unpatched = sum(error <= LIMIT for _, error in cells.values())
    lines = [
        _INTRODUCTION.format(version=transformers.__version__, limit=LIMIT, context=CONTEXT, length=LENGTH),
        f"Ours: {ours} of {len(cells)} cells pass. Unpatched: {unpatched}.",
        "",
        "| | " + " | ".join(ROWS) + " |",
        "|---|" + "---|" * len(ROWS),
    ]
    for name in COLUMNS:
        row = [" → ".join(_number(error) for error in reversed(cells[r, name])) for r in ROWS]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _number(error: float) -> str:
    """Return the error with one digit, in bold above the limit."""
    text = "refused" if error == float("inf") else f"{error:.0e}".replace("e-0", "e-").replace("e+0", "e+")
    return text if error <= LIMIT else f"**{text}**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the page to write")
    output = parser.parse_args().output
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names = [(row, column) for row in ROWS for column in COLUMNS]
    cells = {}
    with LibraryProcess(patched()) as ours, LibraryProcess(UNPATCHED) as unpatched:
        for row, column in track(names, "conformance"):
            cells[row, column] = measure(ROWS[row], COLUMNS[column], ours, unpatched)
    output.write_text(page(cells))
    failed = [f"{row}: {column}: {ours:.1e}" for (row, column), (ours, _) in cells.items() if ours > LIMIT]
    print(f"{len(cells) - len(failed)} of {len(cells)} pass; {output}")
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
