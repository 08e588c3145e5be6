"""Modules that a conversion loads, and the memory that it takes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np


def test_converting_loads_neither_torch_nor_transformers(folder: Path, tmp_path: Path) -> None:
    command = (
        "import sys; from yarn_gguf.cli import main; main(); "
        "assert not {'torch', 'transformers'} & set(sys.modules), sys.modules"
    )
    arguments = ["convert", folder, "-o", tmp_path / "out.gguf", "--type", "q4_k_m", "--no-tokenizer"]
    subprocess.run([sys.executable, "-c", command, *arguments], check=True)
    assert (tmp_path / "out.gguf").exists()


def test_importing_the_package_does_not_load_the_gguf_package() -> None:
    command = "import sys, yarn_gguf.convert; assert not {'gguf', 'yaml', 'llama_cpp'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)


def test_memory_does_not_grow_with_a_tensor(folder: Path, tmp_path: Path) -> None:
    """The token embedding takes 1 GB in float32; the file is sparse."""
    weights = {"model.embed_tokens.weight": (1_000_000, 256), "model.norm.weight": (256,)}
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": 1_000_000, "num_hidden_layers": 1, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    _sparse_safetensors(folder / "model.safetensors", weights, layers=1)
    command = (
        "import pathlib, sys; from yarn_gguf.convert import convert;"
        "convert(sys.argv[1], sys.argv[2], type='q4_0', threads=2, tokenizer=False);"
        "print(pathlib.Path('/proc/self/status').read_text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, folder, tmp_path / "out.gguf"],
        check=True,
        capture_output=True,
        text=True,
    )
    (peak,) = (line.split() for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    assert int(peak[1]) < 128 * 1024  # KiB


def _sparse_safetensors(path: Path, weights: dict[str, tuple[int, ...]], layers: int) -> None:
    """Write weights of zeros in float32 to a sparse file."""
    shapes = dict(weights)
    for i in range(layers):
        own = {
            "self_attn.q_proj": (256, 256),
            "self_attn.k_proj": (64, 256),
            "self_attn.v_proj": (64, 256),
            "self_attn.o_proj": (256, 256),
            "mlp.gate_proj": (512, 256),
            "mlp.up_proj": (512, 256),
            "mlp.down_proj": (256, 512),
            "input_layernorm": (256,),
            "post_attention_layernorm": (256,),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in own.items()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
