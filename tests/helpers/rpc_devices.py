"""Fixtures for devices other than the CPU: two servers of ggml's RPC backend."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from libraries import ROOT

SERVE = """
import ctypes, sys
folder, port = sys.argv[1:]
base, ggml, rpc = (ctypes.CDLL(f"{folder}/lib{name}.so") for name in ("ggml-base", "ggml", "ggml-rpc"))
ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
devices = (ctypes.c_void_p * 1)(ggml.ggml_backend_dev_by_type(0))  # the CPU
one = ctypes.c_size_t(1)
rpc.ggml_backend_rpc_start_server(f"127.0.0.1:{port}".encode(), None, one, one, devices)
"""


@pytest.fixture(scope="module")
def library() -> Path:
    """The folder of the patched library, built with the RPC backend."""
    build = ROOT / "build" / "rpc"
    command = ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DGGML_RPC=ON", "-DCMAKE_BUILD_TYPE=Release"]
    ninja = Path(sys.executable).parent / "ninja"
    options = [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    return build / "bin"


@pytest.fixture(scope="module")
def ports(library: Path) -> Iterator[list[int]]:
    """The ports of two servers."""
    free = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            free.append(listener.getsockname()[1])
    servers = [subprocess.Popen([sys.executable, "-c", SERVE, library, str(port)]) for port in free]
    for port in free:
        wait_for(port)
    yield free
    for server in servers:
        server.kill()
        server.wait()


def wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"no server on port {port}")
