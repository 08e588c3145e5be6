#!/usr/bin/env bash
# Build the patched library for CUDA, test-backend-ops and the programs of benchmarks/ in BUILD_FOLDER, and the
# unpatched library in BUILD_FOLDER-unpatched. With ccache, and both folders inside this tree, the second is quick.
#
#     benchmarks/gpu/build.sh LLAMA_CPP_TREE BUILD_FOLDER [ARCHITECTURE]
set -euo pipefail
benchmarks=$(cd "$(dirname "$0")/.." && pwd)
root=$(dirname "$benchmarks")
tree=$(cd "$1" && pwd)
build=$2
architecture=${3:-90}

configure() { # FOLDER OPTION…
    cmake -S "$root" -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLAMA_CPP_SOURCE_DIR="$tree" \
        -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$architecture" -DGGML_CUDA_NCCL=OFF "${@:2}"
}

configure "$build"
cmake --build "$build" --target yarn_gguf_libraries test-backend-ops
for program in rope_op model; do
    g++ -O2 -std=c++17 -I"$root/cpp_patches/src" -I"$build/llama.cpp/ggml/include" -I"$build/llama.cpp/include" \
        "$benchmarks/$program.cpp" -L"$build/bin" -lllama -lggml -lggml-base \
        -Wl,--allow-shlib-undefined,-z,lazy,--unresolved-symbols=ignore-all -o "$build/bin/$program"
done
configure "$build-unpatched" -DYARN_GGUF_PATCHED=OFF
cmake --build "$build-unpatched" --target yarn_gguf_libraries
