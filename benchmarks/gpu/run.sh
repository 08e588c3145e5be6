#!/usr/bin/env bash
# Everything that docs/gpu.md reports, in one run.
#
#     benchmarks/gpu/run.sh BUILD_FOLDER SMALL_MODEL.gguf SCRATCH_FOLDER
set -uo pipefail
bin=$1/bin
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
for operation in ROPE ROPE_BACK; do
    echo "test-backend-ops $operation: $("$bin/test-backend-ops" test -o $operation | grep -a 'tests passed')"
done
"$bin/rope_op" accuracy
YARN_GGUF_UPSTREAM_ROPE=1 "$bin/rope_op" accuracy
for turn in 1 2; do
    YARN_GGUF_UPSTREAM_ROPE=1 "$bin/rope_op" speed
    "$bin/rope_op" speed
done
"$bin/model" logits "$2"
"$bin/model" write "$3/synthetic.gguf"
for turn in 1 2; do
    YARN_GGUF_UPSTREAM_ROPE=1 "$bin/model" speed "$3/synthetic.gguf"
    "$bin/model" speed "$3/synthetic.gguf"
done
"$bin/model" growth "$3/synthetic.gguf"
