"""Time and memory of `yarn-gguf convert` against upstream's two steps: bf16, then llama_model_quantize.

    python benchmarks/convert.py FOLDER [--types q8_0 q4_k_m] [--runs 5] [--threads 2]

FOLDER is a checkpoint; made with random weights, of 1.1 billion parameters in shards of bf16, if it
does not exist. Each way is a process of its own, start included; the ways take turns. The float file of
the two steps is written by this package, faster than upstream's script in Python, so the ratios flatter
upstream. "quantizer" is llama_model_quantize alone, on that file.
"anonymous" is the peak of memory that is not pages of files (RssAnon), sampled every 5 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

CONVERT = "import sys; from yarn_gguf.convert import convert; f, o, t, n = sys.argv[1:];"
CONVERT += "convert(f, o, type=t, force=True, threads=int(n))"
QUANTIZE = """
import ctypes, sys
import gguf
from yarn_gguf import native
source, target, type_, threads = sys.argv[1:]
llama_cpp = native.load()
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = gguf.LlamaFileType["MOSTLY_" + type_.upper()], int(threads)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))
"""
LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def run(script: str, *arguments: object) -> tuple[float, float]:
    """Seconds, and the peak of anonymous memory in bytes."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        done = threading.Event()

        def sample() -> None:
            nonlocal peak
            while not done.wait(0.005):
                peak = max(peak, _anonymous(process.pid))

        sampler = threading.Thread(target=sample)
        sampler.start()
        process.wait()
        seconds = time.perf_counter() - start
        done.set()
        sampler.join()
    if process.returncode:
        sys.exit(f"failed: {command}")
    return seconds, peak


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def measure(folder: Path, type_: str, runs: int, threads: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds, bytes of memory) of each way, run by run."""
    times = {"ours": [], "float file": [], "quantizer": []}
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        ours, middle, theirs = (Path(scratch, f"{name}.gguf") for name in ("ours", "bf16", "theirs"))
        for _ in range(runs):
            times["ours"].append(run(CONVERT, folder, ours, type_, threads))
            times["float file"].append(run(CONVERT, folder, middle, "bf16", threads))
            times["quantizer"].append(run(QUANTIZE, middle, theirs, type_, threads))
        sizes = [path.stat().st_size for path in (ours, middle, theirs)]
        assert sizes[0] == sizes[2]
    times["two steps"] = [
        (first[0] + second[0], max(first[1], second[1]))
        for first, second in zip(times["float file"], times["quantizer"], strict=True)
    ]
    return times | {"written": [(sizes[0], sizes[0] + sizes[1])]}


def make_checkpoint(folder: Path) -> None:
    """LLAMA_1B with random weights, a shard for every two layers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA_1B))
    hidden, inner, narrow = 2048, 5632, 256
    ends = {
        "model.embed_tokens.weight": (32000, hidden),
        "lm_head.weight": (32000, hidden),
        "model.norm.weight": (hidden,),
    }
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    names = [
        {f"model.layers.{i}.{name}.weight": shape for i in pair for name, shape in layer.items()}
        for pair in zip(range(0, 22, 2), range(1, 22, 2), strict=True)
    ]
    for number, shapes in enumerate([ends, *names]):
        _save_bf16(folder / f"model-{number + 1:05}-of-{len(names) + 1:05}.safetensors", shapes, number)


def _save_bf16(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    generator = np.random.default_rng(seed)
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            values = generator.standard_normal(shape, np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--types", nargs="+", default=["q8_0", "q4_k_m"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if not args.folder.exists():
        make_checkpoint(args.folder)
    table = Table("type", "", "median", "ours / it", "anonymous", "written", title=str(args.folder))
    for type_ in args.types:
        times = measure(args.folder.resolve(), type_, args.runs, args.threads)
        (written,) = times.pop("written")
        medians = {name: statistics.median(seconds for seconds, _ in each) for name, each in times.items()}
        for name, each in times.items():
            size = {"ours": f"{written[0]:,}", "two steps": f"{written[1]:,}"}.get(name, "")
            ratio = statistics.median(
                ours / its for (ours, _), (its, _) in zip(times["ours"], each, strict=True)
            )
            memory = statistics.median(memory for _, memory in each) / 1e6
            table.add_row(type_, name, f"{medians[name]:.2f} s", f"{ratio:.2f}", f"{memory:.0f} MB", size)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
