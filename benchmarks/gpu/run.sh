#!/usr/bin/env bash
# Measure everything on docs/gpu.md, with the programs and libraries that build.sh has built.
#
#     benchmarks/gpu/run.sh BUILD_FOLDER SMALL_MODEL.gguf
set -uo pipefail
benchmarks=$(cd "$(dirname "$0")/.." && pwd)
build=$1
bin=$build/bin
paired=(--gpu --libraries "$bin" --unpatched "$build-unpatched/bin")
export LD_LIBRARY_PATH=$bin

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
for operation in ROPE ROPE_BACK; do
    echo "test-backend-ops $operation: $(timeout 150 "$bin/test-backend-ops" test -o $operation | grep -a 'tests passed')"
done
"$bin/rope_op" accuracy gpu
YARN_GGUF_UPSTREAM_ROPE=1 "$bin/rope_op" accuracy gpu
"$bin/model" logits "$2"
python3 "$benchmarks/rope.py" --program "$bin/rope_op" "${paired[@]}"
model=$(mktemp -d)/8b.gguf
"$bin/model" write 8b "$model"
python3 "$benchmarks/models.py" "$model" pp512 tg64 pp512@32768 tg64@32768 pp512@130048 tg64@130048 --kind static \
    --program "$bin/model" "${paired[@]}"
python3 "$benchmarks/dynamic.py" "$model" --tokens 131072 --program "$bin/model" "${paired[@]}"
rm -r "$(dirname "$model")"
