"""Loading: the libraries that are accepted, and the exceptions for models that the library refuses."""

import math
import re

import pytest
import random_gguf
from libraries import ROOT, UNPATCHED, patched, run_python

import yarn_gguf
from yarn_gguf import ModelLoadError, NativeLibraryError
from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.gguf.header import ValueType, key_value, read_header
from yarn_gguf.native.library import check_library, load
from yarn_gguf.native.log import native_reasons
from yarn_gguf.native.prototypes import METHOD_NUMBERS
from yarn_gguf.rope.dynamic import DYNAMIC_METHODS
from yarn_gguf.run.llama import Llama

LOAD = "from yarn_gguf.native.library import load; load()"


def refusal(library, code: str) -> str:
    """Return the last line on standard error of a process that fails."""
    done = run_python(library, "-c", code)
    assert done.returncode == 1, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_the_library_of_the_package_is_loaded_by_default():
    done = run_python(None, "-c", LOAD + "; import llama_cpp.llama_cpp as b; print(b._base_path)")
    assert done.stdout.strip() == str(patched().resolve())


def test_a_missing_library_is_refused_with_the_remedy(tmp_path):
    message = refusal(tmp_path, LOAD)
    assert f"no llama.cpp library in {tmp_path}" in message
    assert "reinstall yarn-gguf" in message
    assert "unset LLAMA_CPP_LIB_PATH" in message


def test_an_unpatched_library_is_refused_with_the_remedy():
    message = refusal(UNPATCHED, LOAD)
    assert "without yarn-gguf's patches" in message
    assert "unset LLAMA_CPP_LIB_PATH" in message


def test_a_library_that_is_none_is_refused_with_the_remedy(tmp_path):
    (tmp_path / patched().joinpath("libllama.so").name).write_bytes(b"not a library")
    assert "cannot be loaded" in refusal(tmp_path, LOAD)


def test_a_library_of_another_yarn_gguf_is_refused(monkeypatch):
    monkeypatch.setattr("yarn_gguf._version.__version__", "99.0")
    with pytest.raises(NativeLibraryError, match=r"belongs to yarn-gguf .*, this is 99\.0: reinstall"):
        check_library(patched())


def test_other_bindings_than_the_librarys_are_refused(monkeypatch):
    monkeypatch.setattr("yarn_gguf.native.library.version", lambda package: "0.1.0")
    with pytest.raises(NativeLibraryError, match=r"fits llama-cpp-python 0\.3\.36, but 0\.1\.0 is installed"):
        check_library(patched())


def test_bindings_imported_earlier_with_another_library_are_refused():
    code = f"import os, llama_cpp; del os.environ['LLAMA_CPP_LIB_PATH']; {LOAD}"
    message = refusal(UNPATCHED, code)
    assert f"already imported with the library in {UNPATCHED}" in message
    assert "before llama_cpp" in message


def test_bindings_imported_earlier_with_our_library_are_accepted():
    assert run_python(patched(), "-c", f"import llama_cpp; {LOAD}").returncode == 0


def test_importing_the_package_does_not_load_the_native_library():
    code = "import sys, yarn_gguf; sys.exit('llama_cpp' in sys.modules or 'torch' in sys.modules)"
    assert run_python(None, "-c", code).returncode == 0


# ---- bad keys and damaged files raise, and the process lives on ----------------------------------

BAD_KEYS = [
    ("rope.scaling.type", ValueType.STRING, "ntk", '"ntk"'),
    ("rope.scaling.factor", ValueType.FLOAT32, math.nan, "nan"),
    ("rope.scaling.factor", ValueType.FLOAT32, -4.0, "-4"),
    ("rope.scaling.factor", ValueType.FLOAT32, math.inf, "inf"),
    ("rope.scaling.factor", ValueType.FLOAT32, 0.0, "0"),
    ("rope.scaling.original_context_length", ValueType.UINT32, 0, "0"),
    ("rope.scaling.yarn_beta_fast", ValueType.FLOAT32, math.nan, "nan"),
    ("rope.scaling.yarn_beta_slow", ValueType.FLOAT32, 64.0, "yarn_beta_slow = 64"),
    ("rope.scaling.yarn_attn_factor", ValueType.FLOAT32, -1.0, "-1"),
    ("rope.scaling.attn_factor", ValueType.FLOAT32, math.nan, "nan"),
    ("rope.freq_base", ValueType.FLOAT32, math.nan, "nan"),
    ("rope.scaling.factor", ValueType.STRING, "4", "wrong type str"),
]


@pytest.mark.parametrize(
    ("suffix", "type_", "value", "shown"), BAD_KEYS, ids=[f"{k[0]}={k[2]}" for k in BAD_KEYS]
)
def test_a_bad_rope_key_is_one_exception_that_names_file_key_and_value(
    smollm2_path, tmp_path, suffix, type_, value, shown
):
    path = yarn_file_with(smollm2_path, tmp_path / "bad.gguf", suffix, type_, value)
    with pytest.raises(ModelLoadError) as caught:
        Llama(path, verbose=False)
    message = str(caught.value)
    assert str(path) in message
    assert suffix.removesuffix("_slow").removesuffix("_fast") in message
    assert shown in message
    works_on(smollm2_path)


@pytest.mark.parametrize("layers", ["", "_swa"])
@pytest.mark.parametrize("dimensions", [0, random_gguf.HEAD - 1, random_gguf.HEAD + 2])
def test_rotary_dimensions_that_no_head_has_are_refused(tmp_path, layers, dimensions):
    path = random_gguf.gemma2(tmp_path / "gemma2.gguf")
    key = f"gemma2.rope.dimension_count{layers}"
    with pytest.raises(ModelLoadError, match=rf"{re.escape(key)} = {dimensions}, expected an even number"):
        Llama(path, kv_overrides={key: dimensions}, verbose=False)


@pytest.mark.parametrize("kept", [0, 3, 20, 5000, 1_000_000, 50_000_000, -1])
def test_a_truncated_file_is_one_exception(smollm2_path, tmp_path, kept):
    path = tmp_path / "cut.gguf"
    with smollm2_path.open("rb") as whole:
        path.write_bytes(whole.read()[:kept])
    with pytest.raises(yarn_gguf.GGUFError, match=r"cut\.gguf"):
        Llama(path, verbose=False)
    works_on(smollm2_path)


def test_the_native_library_itself_refuses_a_truncated_file(smollm2_path, tmp_path):
    """Other users of the library get this without our check in Python."""
    path = tmp_path / "cut.gguf"
    with smollm2_path.open("rb") as whole:
        path.write_bytes(whole.read()[:50_000_000])
    with pytest.raises(ModelLoadError, match="not within the file bounds"), native_reasons(path):
        llama_cpp = load()
        llama_cpp.Llama(str(path), verbose=False)


def test_an_unpatched_library_ends_the_process_on_an_unknown_type(smollm2_path, tmp_path):
    """The reason for our checks, and proof that the tests above can fail."""
    path = yarn_file_with(smollm2_path, tmp_path / "bad.gguf", "rope.scaling.type", ValueType.STRING, "ntk")
    code = f"import llama_cpp; llama_cpp.Llama({str(path)!r})"
    assert run_python(UNPATCHED, "-c", code).returncode == -6  # SIGABRT


def yarn_file_with(source, target, suffix, type_, value):
    """Write a copy of `source` to `target` whose header asks for YaRN and has one bad key."""
    key = f"llama.{suffix}"
    changed = {"llama.rope.scaling.type": key_value("llama.rope.scaling.type", ValueType.STRING, "yarn")}
    changed[key] = key_value(key, type_, value)
    change_keys(read_header(source), list(changed.values()), set(changed), target)
    return target


def works_on(path) -> None:
    llama = Llama(path, verbose=False)
    assert llama.tokenize(b"still alive")
    llama.close()
    llama.close()


def test_methods_of_dynamic_scaling_have_the_numbers_of_the_header():
    header = (ROOT / "cpp_patches" / "src" / "yarn-gguf.h").read_text(encoding="utf-8")
    found = re.findall(r"YARN_GGUF_METHOD_(\w+) += (\d+)", header)
    numbers = {name.lower().replace("_", "-"): int(number) for name, number in found}
    assert numbers == {"none": 0} | METHOD_NUMBERS
    assert METHOD_NUMBERS.keys() == set(DYNAMIC_METHODS)
