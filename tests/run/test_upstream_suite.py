"""llama-cpp-python's own tests on our class, out of the source package that the build has fetched.

Other models of the same kind replace the downloads: SmolLM2 is the transformer, and tiny random models are
the recurrent, hybrid and embedding ones. Tests that expect the words of a certain model are not run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from xml.etree import ElementTree

import pytest
import random_gguf
from libraries import HELPERS, ROOT

WANTED = ("/tests/test_llama", "/vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf")

# These expect the tokens and the words of Qwen3.5-0.8B.
OF_ONE_MODEL = ["test_real_model", "test_real_llama", "test_real_llama_repeated_prompt_cache"]


@pytest.fixture(scope="module")
def outcomes(smollm2_path, tmp_path_factory) -> dict[str, str]:
    """Test name -> "passed", "failure", "error" or "skipped"; "made" -> the number of our Llamas."""
    folder = tmp_path_factory.mktemp("upstream")
    with tarfile.open(next((ROOT / "build" / "download").glob("llama_cpp_python-*.tar.gz"))) as archive:
        members = [each for each in archive if any(part in each.name for part in WANTED)]
        archive.extractall(folder, members, filter="data")
    models = {
        "tinyllamas/stories15M-q4_0.gguf": smollm2_path,
        "mamba-130m-hf.Q2_K.gguf": random_gguf.mamba(folder / "mamba.gguf", smollm2_path),
        "Falcon-H1-Tiny-90M-Instruct-Q2_K.gguf": random_gguf.lfm2(folder / "lfm2.gguf", smollm2_path),
        "bge-small-en-v1.5-q4_k_m.gguf": random_gguf.bert(folder / "bert.gguf", smollm2_path),
    }
    variables = {
        "UPSTREAM_MODELS": json.dumps({name: str(path) for name, path in models.items()}),
        "UPSTREAM_LEFT_OUT": json.dumps(OF_ONE_MODEL),
        "UPSTREAM_COUNT": str(folder / "made"),
        "PYTHONPATH": str(HELPERS),
    }
    line = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "upstream_substitute",
        "-c",
        os.devnull,
        "--rootdir=.",
        "-q",
    ]
    done = subprocess.run(
        [*line, "--junit-xml=results.xml", "tests"],
        capture_output=True,
        text=True,
        cwd=next(folder.glob("llama_cpp_python-*")),
        env=os.environ | variables,
    )
    results = next(folder.glob("*/results.xml"), None)
    assert results is not None, done.stdout + done.stderr
    cases = ElementTree.parse(results).iter("testcase")
    print(done.stdout)
    return {each.get("name"): _outcome(each) for each in cases} | {"made": (folder / "made").read_text()}


def _outcome(case: ElementTree.Element) -> str:
    """Return the outcome in a test case of JUnit's XML."""
    return next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")


def test_the_tests_of_llama_cpp_python_pass_on_our_class(outcomes):
    tests = {name: outcome for name, outcome in outcomes.items() if name != "made"}
    assert {name: outcome for name, outcome in tests.items() if outcome != "passed"} == {}
    assert len(tests) == 23  # of 26
    assert int(outcomes["made"]) > 30
