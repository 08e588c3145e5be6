"""The CPU backend's work buffer, which holds the tiles of flash attention."""

import subprocess

import pytest
from libraries import PROGRAMS, UNPATCHED, patched
from rope_programs import compile_program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    source, output = PROGRAMS / "work_buffer.cpp", tmp_path_factory.mktemp("bin") / "work_buffer"
    folder = patched()
    libraries = [f"-L{folder}", "-lggml", "-lggml-base", "-lggml-cpu", "-ldl", "-rdynamic"]
    return compile_program(source, output, *libraries, f"-Wl,-rpath-link,{folder}")


def allocations(program, library):
    done = subprocess.run(
        [program], env={"LD_LIBRARY_PATH": str(library)}, check=True, capture_output=True, text=True
    )
    return map(int, done.stdout.split())


def test_the_work_buffer_begins_on_a_cache_line(program):
    array, block, offset = allocations(program, patched())
    assert array < 10_000 and block > 100_000 and offset == 0


def test_without_the_patch_it_is_an_array_that_begins_anywhere(program):
    array, block, _ = allocations(program, UNPATCHED)
    assert array > 100_000 and block < 10_000
