// The rope op on CUDA: exact angles from integer phases, no powf, logf or ramp per element.
#pragma once

#include "ggml-cuda/common.cuh"

// Computes GGML_OP_ROPE (forward) or GGML_OP_ROPE_BACK, fused with set_rows unless that is null. Returns false and does
// nothing if the environment asks for upstream's arithmetic (YARN_GGUF_UPSTREAM_ROPE=1), for comparisons, or if the
// types or a head of more than 1024 pairs are not supported.
bool ggml_rope_cuda_compute(ggml_backend_cuda_context & ctx, ggml_tensor * rope, const ggml_tensor * set_rows,
                            bool forward);

// Computes RMS_NORM, MUL and ROPE in one kernel, and SET_ROWS too unless that is null. Returns false and does nothing
// if the environment asks for upstream's arithmetic.
bool ggml_rope_cuda_compute_normed(ggml_backend_cuda_context & ctx, const ggml_tensor * rms_norm,
                                   const ggml_tensor * mul, ggml_tensor * rope, const ggml_tensor * set_rows);
