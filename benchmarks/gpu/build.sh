#!/usr/bin/env bash
# Builds the patched library for CUDA, test-backend-ops and the programs of this folder.
#
#     benchmarks/gpu/build.sh LLAMA_CPP_TREE BUILD_FOLDER [ARCHITECTURE]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
tree=$(cd "$1" && pwd)
build=$2
architecture=${3:-90}
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLAMA_CPP_SOURCE_DIR="$tree" \
    -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$architecture" -DGGML_CUDA_NCCL=OFF
cmake --build "$build" --target yarn_gguf_libraries test-backend-ops
for program in rope_op model; do
    g++ -O2 -std=c++17 -I"$root/cpp_patches/src" -I"$build/llama.cpp/ggml/include" -I"$build/llama.cpp/include" \
        "$here/$program.cpp" -L"$build/bin" -lllama -lggml -lggml-base -Wl,-rpath,"$(cd "$build" && pwd)/bin" \
        -Wl,--allow-shlib-undefined,-z,lazy -o "$build/bin/$program"
done
