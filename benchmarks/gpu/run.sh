#!/usr/bin/env bash
# Everything that docs/gpu.md reports, in one run.
#
#     benchmarks/gpu/run.sh BUILD_FOLDER SMALL_MODEL.gguf SCRATCH_FOLDER [UNPATCHED_LIBRARIES]
#
# UNPATCHED_LIBRARIES: a folder with the libraries of a build with -DYARN_GGUF_PATCHED=OFF. Without it, upstream's
# figures are those of our library under YARN_GGUF_UPSTREAM_ROPE=1, which takes upstream's kernels.
set -uo pipefail
bin=$1/bin
unpatched=${4:-}

upstream() {
    echo "--- upstream"
    if [ -n "$unpatched" ]; then
        LD_LIBRARY_PATH=$unpatched "$@"
    else
        YARN_GGUF_UPSTREAM_ROPE=1 "$@"
    fi
}

ours() { # the programs find their libraries in BUILD_FOLDER
    echo "--- ours"
    "$@"
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
for operation in ROPE ROPE_BACK; do
    echo "test-backend-ops $operation: $(timeout 150 "$bin/test-backend-ops" test -o $operation | grep -a 'tests passed')"
done
ours "$bin/rope_op" accuracy
upstream "$bin/rope_op" accuracy
for turn in 1 2 3; do
    upstream "$bin/rope_op" speed
    ours "$bin/rope_op" speed
done
[ -e "$3/synthetic.gguf" ] || "$bin/model" write "$3/synthetic.gguf"
for turn in 1 2 3; do
    upstream "$bin/model" speed "$3/synthetic.gguf"
    ours "$bin/model" speed "$3/synthetic.gguf"
done
"$bin/model" growth "$3/synthetic.gguf"
"$bin/model" logits "$2"
