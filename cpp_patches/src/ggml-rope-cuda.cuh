// The rope op on CUDA: exact angles from integer phases, no powf, logf or ramp per element.
#pragma once

#include "ggml-cuda/common.cuh"

// GGML_OP_ROPE (forward) or GGML_OP_ROPE_BACK, fused with set_rows unless that is null. Returns false, with
// nothing done, if the environment asks for upstream's arithmetic (YARN_GGUF_UPSTREAM_ROPE=1), for comparisons.
bool ggml_rope_cuda_compute(ggml_backend_cuda_context & ctx, ggml_tensor * rope, const ggml_tensor * set_rows,
                            bool forward);

// RMS_NORM, MUL and ROPE in one, and SET_ROWS unless that is null. Returns as above.
bool ggml_rope_cuda_compute_normed(ggml_backend_cuda_context & ctx, const ggml_tensor * rms_norm,
                                   const ggml_tensor * mul, ggml_tensor * rope, const ggml_tensor * set_rows);
