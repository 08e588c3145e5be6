"""A plan for a GPU equals what a device other than the CPU gets: a server of ggml's RPC backend."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from conformance import ROWS, make_model
from hf_checkpoints import convert_weights

from yarn_gguf import RopeScaling
from yarn_gguf.native.cache_types import CACHE_TYPES
from yarn_gguf.native.memory import PaperModel, memory_of

F16_CACHE = {"type_k": CACHE_TYPES["f16"], "type_v": CACHE_TYPES["f16"]}
FLASH_ATTENTION = 1  # enum llama_flash_attn_type

pytestmark = pytest.mark.slow  # builds the library with GGML_RPC

OPEN = """
import ctypes, json, sys
from yarn_gguf.native.library import library_folder, load
load()
from yarn_gguf.run.llama import Llama
request = json.load(sys.stdin)
folder = library_folder()
ggml, rpc = (ctypes.CDLL(f"{folder}/lib{name}.so") for name in ("ggml", "ggml-rpc"))
rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
server = rpc.ggml_backend_rpc_add_server(f"127.0.0.1:{request['port']}".encode())
ggml.ggml_backend_register(ctypes.c_void_p(server))
Llama(request["model"], verbose=True, **request["arguments"]).close()
"""


@pytest.mark.parametrize("layers", [3, 2, 1])
@pytest.mark.parametrize("context", [4096, 131072])
@pytest.mark.parametrize("row", ["llama", "qwen2", "gemma3", "deepseek-v2"])
def test_a_plan_for_a_gpu_is_what_a_device_gets(
    library: Path,
    ports: list[int],
    tmp_path: Path,
    row: str,
    context: int,
    layers: int,
) -> None:
    make_model(ROWS[row], RopeScaling()).save_pretrained(tmp_path)
    path = tmp_path / "model.gguf"
    convert_weights(tmp_path, path, type="f16", scaling=RopeScaling())
    params = {"n_ctx": context, **F16_CACHE, "n_batch": 512, "n_ubatch": 512, "swa_full": False}
    params["op_offload"] = False  # this backend does not support it
    with (
        closing(PaperModel(path, layers)) as model,
        model.context(**params, flash_attn_type=FLASH_ATTENTION) as made,
    ):
        memory = memory_of(made)
    arguments = params | {"n_gpu_layers": layers, "flash_attn": True}
    request = {"model": str(path), "port": ports[0], "arguments": arguments}
    environment = os.environ | {"LLAMA_CPP_LIB_PATH": str(library)}
    command = [sys.executable, "-c", OPEN]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    there = dict.fromkeys(("model", "KV", "compute"), 0.0)
    for kind, size in re.findall(r"RPC\S* (model|KV|compute) buffer size = +([\d.]+) MiB", done.stderr):
        there[kind] += float(size)
    cache = memory.attention.bytes.device + memory.window.bytes.device
    sizes = {"model": memory.weights.device, "KV": cache, "compute": memory.compute.device}
    planned = {kind: size / 2**20 for kind, size in sizes.items()}
    assert planned == pytest.approx(there, rel=0.01, abs=0.01)
