"""Time, memory and bytes written of `yarn-gguf convert` against upstream's two steps, in one run.

    python benchmarks/convert.py FOLDER [--types q8_0 q4_k_m] [--runs 5] [--threads 2]

FOLDER is a checkpoint. If it does not exist, it is made: SmolLM2-135M-Instruct in bf16 if its name begins
with smollm2, else a Llama of 1.1 billion random parameters, in bf16 shards and without a tokenizer.

The ways take turns. Each is a process, timed from its start to the last byte:
    ours         yarn_gguf.convert.convert
    to bf16      upstream's convert_hf_to_gguf.py out of the pinned source package (imports included)
    quantizer    llama_model_quantize of the unpatched library on that file, from a C++ program
    two steps    the last two together
    in memory    ggml's quantizers alone, from float32 tensors in memory to the same types
"ratio" is our time divided by that of the way, the median over rounds. "anonymous" is the peak of memory that
is not file pages (RssAnon), sampled every 5 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from paired import ROOT, add_options, program_of
from rich.console import Console
from rich.table import Table

CONVERT = """
import sys
from yarn_gguf.convert import convert
folder, output, type_, threads, tokenizer = sys.argv[1:]
convert(folder, output, type=type_, force=True, threads=int(threads), tokenizer=tokenizer == "True")
"""
HELPERS = ROOT / "tests" / "helpers"
LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"],
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


def run(command: Sequence[object], libraries: Path | None = None) -> tuple[float, float, str]:
    """Run `command`. Return seconds, the peak of anonymous memory in bytes, and its output.

    libraries: the folder of the libraries of a C++ program.
    """
    start, peak = time.perf_counter(), 0
    environment = os.environ | ({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*map(str, command)], env=environment, text=True, **pipes) as process:
        done = threading.Event()

        def sample() -> None:
            nonlocal peak
            while not done.wait(0.005):
                peak = max(peak, _anonymous(process.pid))

        sampler = threading.Thread(target=sample)
        sampler.start()
        said, _ = process.communicate()
        seconds = time.perf_counter() - start
        done.set()
        sampler.join()
    if process.returncode:
        sys.exit(f"failed: {command}")
    return seconds, peak, said


def _anonymous(pid: int) -> int:
    """Return the anonymous memory of a process in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


class Race:
    """A race of all ways to convert one checkpoint.

    rounds: way -> (seconds, bytes of memory) of each round. written: way -> bytes that it wrote.
    """

    def __init__(self, folder: Path, type_: str, args: argparse.Namespace, program: Path, tree: Path) -> None:
        self.folder, self.type, self.args, self.program, self.tree = folder, type_, args, program, tree
        self.has_tokenizer = (folder / "tokenizer.json").exists()
        self.rounds = {"ours": [], "two steps": [], "to bf16": [], "quantizer": [], "in memory": []}
        self.written = {"ours": 0, "two steps": 0}

    def start(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as scratch:
            for _ in range(self.args.runs):
                self._round(*(Path(scratch, f"{name}.gguf") for name in ("ours", "bf16", "theirs")))

    def _round(self, ours: Path, middle: Path, theirs: Path) -> None:
        threads, libraries = self.args.threads, self.args.unpatched
        options = [] if self.has_tokenizer else ["--no-tokenizer"]
        number = int(gguf.LlamaFileType[f"MOSTLY_{self.type.upper()}"])
        convert = [sys.executable, "-c", CONVERT, self.folder, ours, self.type, threads, self.has_tokenizer]
        upstream = [sys.executable, HELPERS / "upstream_converter.py", self.tree, self.folder, middle, "bf16"]
        self._note("ours", *run(convert)[:2])
        first = run([*upstream, *options])
        second = run([self.program, "file", middle, theirs, number, threads], libraries)
        self._note("to bf16", *first[:2])
        self._note("quantizer", *second[:2])
        self._note("two steps", first[0] + second[0], max(first[1], second[1]))
        _, memory, said = run([self.program, "memory", middle, theirs, threads], libraries)
        self._note("in memory", float(said), memory)
        self.written = {"ours": _size(ours), "two steps": _size(middle) + _size(theirs)}
        _require_equal(ours, theirs)

    def _note(self, name: str, seconds: float, memory: float) -> None:
        self.rounds[name].append((seconds, memory))

    def add_to(self, table: Table) -> None:
        """Add a row of medians for each way."""
        for name, each in self.rounds.items():
            pairs = zip(self.rounds["ours"], each, strict=True)
            ratio = statistics.median(mine / its for (mine, _), (its, _) in pairs)
            seconds, memory = (statistics.median(values) for values in zip(*each, strict=True))
            memory = "" if name == "in memory" else f"{memory / 1e6:.0f} MB"
            size = f"{self.written[name] / 1e6:,.0f} MB" if name in self.written else ""
            table.add_row(self.type, name, f"{seconds:.2f} s", f"{ratio:.2f}", memory, size)


def _size(path: Path) -> int:
    return path.stat().st_size


def _require_equal(ours: Path, theirs: Path) -> None:
    """Exit if the files have different tensors: the ways must lead to the same bytes."""
    one, other = ({each.name: each for each in gguf.GGUFReader(path).tensors} for path in (ours, theirs))
    if one.keys() != other.keys() or any((one[name].data != other[name].data).any() for name in one):
        sys.exit(f"the tensors of {ours} and {theirs} differ")


def make_checkpoint(folder: Path) -> None:
    """Write SmolLM2 or a random Llama to `folder`, according to its name."""
    if folder.name.startswith("smollm2"):
        sys.path.insert(0, str(HELPERS))
        from hf_checkpoints import save_smollm2

        save_smollm2(next((ROOT / "build" / "models").glob("SmolLM2-*.gguf")), folder, "bfloat16")
    else:
        make_llama(folder)


def make_llama(folder: Path) -> None:
    """Write LLAMA_1B with random weights to `folder`, two layers a shard."""
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
    add_options(parser)
    args = parser.parse_args()
    folder = args.folder.resolve()
    if not folder.exists():
        make_checkpoint(folder)
    sys.path.insert(0, str(HELPERS))
    from upstream_tree import unpack_converter

    table = Table("type", "", "median", "ratio", "anonymous", "written", title=str(args.folder))
    with program_of(args, "quantizer") as program, tempfile.TemporaryDirectory() as scratch:
        tree = unpack_converter(Path(scratch))
        for type_ in args.types:
            race = Race(folder, type_, args, program, tree)
            race.start()
            race.add_to(table)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
