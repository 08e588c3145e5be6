// The rope op on the CPU: exact angles, computed once for all heads, for Q and K and for all layers.
#pragma once

struct ggml_compute_params;
struct ggml_tensor;

// Computes GGML_OP_ROPE (forward) or GGML_OP_ROPE_BACK. Returns false and does nothing if the environment asks for
// upstream's arithmetic (YARN_GGUF_UPSTREAM_ROPE=1), for comparisons.
bool ggml_rope_cpu_compute(const ggml_compute_params * params, ggml_tensor * op, bool forward);
