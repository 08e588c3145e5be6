"""Dynamic scaling with the cache on other devices: two servers of ggml's RPC backend have a layer each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import conformance
import numpy as np
import pytest
from conformance import ROWS, make_model
from hf_checkpoints import convert_weights
from libraries import relative_error

from yarn_gguf import RopeScaling

pytestmark = pytest.mark.slow  # builds the library with GGML_RPC

READ = """
import ctypes, json, sys
import numpy as np
from yarn_gguf import DynamicScaling
from yarn_gguf.native.library import library_folder, load
load()
from yarn_gguf.run.llama import Llama
request = json.load(sys.stdin)
folder = library_folder()
ggml, rpc = (ctypes.CDLL(f"{folder}/lib{name}.so") for name in ("ggml", "ggml-rpc"))
rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
for port in request["ports"]:
    server = rpc.ggml_backend_rpc_add_server(f"127.0.0.1:{port}".encode())
    ggml.ggml_backend_register(ctypes.c_void_p(server))
layers, type_ = -1 if request["ports"] else 0, request["type"]
split = [0.3, 0.7] if request["ports"] else None  # a layer each
llama = Llama(request["model"], n_ctx=2048, n_batch=128, n_gpu_layers=layers, verbose=True, flash_attn=True,
              rope_scaling=DynamicScaling(), type_k=type_, type_v=type_, tensor_split=split)
logits = [part[-1].copy() for part in llama.read_logits(request["tokens"])]
np.save(request["output"], logits)
print(llama.dynamic_state.rotations)
"""


def read(library: Path, model: Path, ports: list[int], type_: int, output: Path) -> np.ndarray:
    """Return the last logits of each ubatch, computed in another process.

    ports: servers that have the layers; none for the CPU of the process.
    """
    tokens = np.random.default_rng(1).integers(3, 256, 4 * conformance.CONTEXT).tolist()
    request = {"model": str(model), "ports": ports, "type": type_, "tokens": tokens, "output": str(output)}
    environment = os.environ | {"LLAMA_CPP_LIB_PATH": str(library)}
    command = [sys.executable, "-c", READ]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 6  # growth to four times the context, in ubatches of half a context
    caches = [line for line in done.stderr.splitlines() if "KV buffer size" in line]
    assert all(any(str(port) in line for line in caches) for port in ports), caches
    return np.load(output)


@pytest.mark.parametrize("type_", [1, 8], ids=["f16", "q8_0"])
@pytest.mark.parametrize("row", ["qwen3", "gemma2"])
def test_a_cache_on_other_devices_is_rotated_there(
    library: Path,
    ports: list[int],
    tmp_path: Path,
    row: str,
    type_: int,
) -> None:
    make_model(ROWS[row], RopeScaling()).save_pretrained(tmp_path)
    convert_weights(tmp_path, tmp_path / "model.gguf", type="f32", scaling=RopeScaling())
    there = read(library, tmp_path / "model.gguf", ports, type_, tmp_path / "there.npy")
    here = read(library, tmp_path / "model.gguf", [], type_, tmp_path / "here.npy")
    assert relative_error(there, here) < 1e-5
