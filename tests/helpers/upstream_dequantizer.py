"""Dequantize checkpoints with upstream's converter: the values that it computes before it writes a file.

python upstream_dequantizer.py TREE FOLDER...

Each FOLDER gets a dequantized.safetensors.
"""

import sys
from pathlib import Path

tree, *folders = sys.argv[1:]
sys.path[:0] = [tree, f"{tree}/gguf-py"]

import gguf  # noqa: E402
from conversion import get_model_class  # noqa: E402
from conversion.base import LazyTorchTensor  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

for folder in map(Path, folders):
    model = get_model_class("LlamaForCausalLM")(folder, gguf.LlamaFileType.ALL_F32, folder / "out.gguf")
    model.dequant_model()
    tensors = {name: LazyTorchTensor.to_eager(each).contiguous() for name, each in model.get_tensors()}
    save_file(tensors, folder / "dequantized.safetensors")
