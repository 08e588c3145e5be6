# make demo      extend a real model and answer from beyond its trained context
# make test      the tests; make test-all adds the slow ones
# make conformance   write docs/conformance.md: architectures x methods against transformers
# make dynamic-architectures   write docs/dynamic-architectures.md: every architecture of llama.cpp
# make cache-operations   write docs/cache-operations.md: the same for context shifts, copies and cuts
# make backend-ops   ggml's test-backend-ops for the rope op, from the patched tree
# make sanitize  the same on the CPU under the address, undefined and thread sanitizers
# make lint      ruff, mypy, and clang-format for our C++
# make help      the rest
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTHON ?= python3
MODEL  := build/models/SmolLM2-135M-Instruct.Q4_1.gguf
PINNED := $(shell sed -n 's/^version=//p' cpp_patches/LLAMA_CPP_VERSION)
NATIVE := CMakeLists.txt $(shell find cpp_patches -type f -not -name '*.md')
PACKAGES := $(wildcard yarn_gguf/__init__.py yarn_gguf/*/__init__.py yarn_gguf/*/*/__init__.py convert/__init__.py convert/*/__init__.py)

# Many tests compare with the unpatched library. Its build shares ccache's objects with ours if both call
# the compiler by the same name.
UNPATCHED := build/unpatched
ifeq ($(origin CC),default)
CC := cc
endif
ifeq ($(origin CXX),default)
CXX := c++
endif
export CC CXX

.PHONY: help setup demo test test-all conformance dynamic-architectures cache-operations backend-ops sanitize lint types format patches-check bench results quality clean

help:
	@sed -n 's/^# make/make/p' Makefile; echo "make setup     the environment in $(VENV), with the native library"; \
	echo "make format    reformat what make lint checks"; \
	echo "make patches-check   import and export the patch series; fail if anything differs"; \
	echo "make bench     the benchmarks, as ratios against unpatched llama.cpp and upstream's tools"; \
	echo "make types     mypy alone"; \
	echo "make results   measure MODEL=FILE and write docs/results.md; days on a CPU"; \
	echo "make quality   perplexity of twelve long texts under each scaling; many hours on a CPU"; \
	echo "make clean     remove build and $(VENV)"

setup: $(VENV)/.native

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1" "scikit-build-core>=0.11" ninja

# Install the bindings without a llama.cpp of their own, then this package with its library.
$(VENV)/.native: pyproject.toml $(NATIVE) $(PACKAGES) | $(BIN)/python
	CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" $(BIN)/pip install --quiet llama-cpp-python==0.3.36
	$(BIN)/pip install --no-build-isolation --editable .
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.native
	$(BIN)/pip install --quiet --group test
	touch $@

$(VENV)/.langchain: pyproject.toml | $(VENV)/.native
	$(BIN)/pip install --quiet --group langchain
	touch $@

$(VENV)/.lint: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --group lint
	touch $@

$(UNPATCHED)/.built: $(NATIVE) | $(VENV)/.native
	cmake -S . -B $(UNPATCHED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python) -DCMAKE_BUILD_TYPE=Release -DYARN_GGUF_PATCHED=OFF
	cmake --build $(UNPATCHED)
	cmake --install $(UNPATCHED) --prefix $(UNPATCHED)/install --component yarn_gguf
	touch $@

$(MODEL): | $(VENV)/.native
	$(BIN)/python examples/smollm2.py $@

demo: $(VENV)/.native $(MODEL)
	$(BIN)/python examples/demo.py $(MODEL)

test: $(VENV)/.native $(VENV)/.test $(UNPATCHED)/.built $(MODEL)
	$(BIN)/python -m pytest

test-all: $(VENV)/.native $(VENV)/.test $(VENV)/.langchain $(UNPATCHED)/.built $(MODEL)
	$(BIN)/python -m pytest -m ""

conformance: $(VENV)/.native $(VENV)/.test $(UNPATCHED)/.built
	$(BIN)/python tests/helpers/conformance.py docs/conformance.md

dynamic-architectures: $(VENV)/.native $(VENV)/.test
	$(BIN)/python tests/helpers/dynamic_archs.py docs/dynamic-architectures.md

cache-operations: $(VENV)/.native $(VENV)/.test
	$(BIN)/python tests/helpers/cache_ops.py docs/cache-operations.md

# The patched tree's own test of the rope op. It compares every backend of this machine with the CPU, and
# the CPU with its reference.
backend-ops: $(VENV)/.native
	cmake --build $(wildcard build/py3-*) --target test-backend-ops
	for arguments in "-o ROPE" "-o ROPE -b CPU" "-o ROPE_BACK" "-o ROPE_BACK -b CPU"; do \
		$(wildcard build/py3-*)/bin/test-backend-ops test $$arguments > build/backend-ops.log \
			|| { grep -a FAIL build/backend-ops.log; exit 1; }; \
		echo "test-backend-ops $$arguments:"; tail -4 build/backend-ops.log; done

# The tests of the rope op under the sanitizers, in builds of ggml alone. OpenMP is off because the sanitizers do
# not know its barriers. The enum check is off because the test program uses enum values that are not declared.
SANITIZERS := address,undefined thread
SANITIZED   = -O1 -g1 -fsanitize=$$which -fno-sanitize=enum -fno-sanitize-recover=all
sanitize: $(VENV)/.native $(VENV)/.test
	for which in $(SANITIZERS); do \
		build=build/sanitize-$${which%,*}; \
		cmake -S . -B $$build -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DGGML_OPENMP=OFF \
			-DCMAKE_BUILD_TYPE=None -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
			-DCMAKE_C_FLAGS="$(SANITIZED)" -DCMAKE_CXX_FLAGS="$(SANITIZED)" > $$build.log && \
		cmake --build $$build --target test-backend-ops >> $$build.log || exit 1; \
		for op in ROPE ROPE_BACK; do \
			$$build/bin/test-backend-ops test -o $$op -b CPU > $$build.log 2>&1 || { tail -40 $$build.log; exit 1; }; \
			echo "$$which: $$op `grep -a 'tests passed' $$build.log`"; done; \
		LLAMA_CPP_LIB_PATH=$(CURDIR)/$$build/bin CXXFLAGS=-fsanitize=$$which \
			$(BIN)/python -m pytest -q tests/cpp/test_rope_requests.py -k "not upstream and not bounded" || exit 1; done

lint: $(VENV)/.lint types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror cpp_patches/src/* benchmarks/*.cpp benchmarks/*.h

# mypy sees the package as a wheel has it: convert/ is yarn_gguf/convert there
types: $(VENV)/.lint $(VENV)/.native $(VENV)/.test
	rm -rf build/types && mkdir -p build/types/yarn_gguf
	ln -s $(CURDIR)/convert $(filter-out %/lib %/convert,$(wildcard $(CURDIR)/yarn_gguf/*)) build/types/yarn_gguf/
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p yarn_gguf

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i cpp_patches/src/* benchmarks/*.cpp benchmarks/*.h

patches-check: $(VENV)/.native
	$(BIN)/python cpp_patches/tools/series.py check build/download/llama_cpp_python-$(PINNED)/vendor/llama.cpp

bench: $(VENV)/.native $(VENV)/.test $(UNPATCHED)/.built $(MODEL)
	$(BIN)/python benchmarks/extend_in_place.py $(MODEL)
	$(BIN)/python benchmarks/session.py $(MODEL)
	$(BIN)/python benchmarks/convert.py build/smollm2-bf16
	$(BIN)/python benchmarks/convert.py build/llama-1b --runs 3

# Measures and writes docs/results.md: days on two CPU cores, minutes on a data-centre GPU with JOBS=8.
JOBS ?= 1
results: $(VENV)/.native $(MODEL)
	$(BIN)/pip install --quiet --group bench
	$(BIN)/python benchmarks/texts.py build/texts
	$(BIN)/python benchmarks/task_requests.py build/requests
	$(BIN)/python benchmarks/results.py measure $(MODEL) build/results --texts build/texts/*.txt \
		--requests build/requests --jobs $(JOBS)
	$(BIN)/python benchmarks/results.py document build/results docs/results.md

# Measures the perplexity of twelve long texts under no, static and dynamic scaling: many hours on a CPU.
quality: $(VENV)/.native $(MODEL)
	$(BIN)/pip install --quiet --group bench
	$(BIN)/python benchmarks/texts.py build/texts
	$(BIN)/python benchmarks/dynamic_quality.py $(MODEL) build/texts/*.txt --results build/dynamic_quality

clean:
	rm -rf build $(VENV)
