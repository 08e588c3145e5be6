"""The time of `extend` in place against a copy through the gguf package, as ratios.

    python benchmarks/extend_in_place.py MODEL.gguf [RUNS]

The three take turns on files in a scratch folder beside MODEL.gguf. A time ends when the file is on the disk
(fsync). "first" is on a file without room for new keys, "again" on a file with room.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf
from rich.console import Console
from rich.table import Table

from yarn_gguf.model_file.extend import extend
from yarn_gguf.rope.scaling import RopeScaling


def copy_through_gguf(source: Path, target: Path) -> None:
    """Read and write the whole file, as gguf's own tool gguf_new_metadata does to change a key."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        writer.add_tensor_info(
            tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(tensor.data)
    for file in writer.fout:
        file.flush()
        os.fsync(file.fileno())
    writer.close()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(model: Path, runs: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"gguf": [], "first": [], "again": []}
    with tempfile.TemporaryDirectory(dir=model.parent) as scratch:
        path, copy = Path(scratch, "model.gguf"), Path(scratch, "copy.gguf")
        for _ in range(runs):
            shutil.copyfile(model, path)
            os.sync()
            times["gguf"].append(seconds(lambda: copy_through_gguf(path, copy)))
            times["first"].append(seconds(lambda: extend(path, RopeScaling("yarn", 4.0))))
            times["again"].append(seconds(lambda: extend(path, RopeScaling("yarn", 2.0))))
    return times


def main() -> None:
    model, runs = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 7
    times = measure(model, runs)
    medians = {name: statistics.median(values) for name, values in times.items()}
    table = Table(
        "", "median", "share of the copy", title=f"{model.name}, {model.stat().st_size:,} bytes, {runs} runs"
    )
    rows = {
        "gguf": "copy through GGUFReader and GGUFWriter",
        "first": "extend --in-place, first time",
        "again": "extend --in-place, again",
    }
    for name, label in rows.items():
        table.add_row(label, f"{medians[name]:.3f} s", f"{medians[name] / medians['gguf']:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
