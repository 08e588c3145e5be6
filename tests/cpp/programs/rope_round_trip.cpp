// Rotates and rotates back several times on one thread. Prints the largest difference that remains.
#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

static const int N_DIMS   = 64;
static const int N_TOKENS = 8;

static float round_trip(ggml_backend_t backend, int mode) {
    ggml_context * ctx = ggml_init({1u << 20, nullptr, true});
    ggml_tensor * x    = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, N_DIMS, 2, N_TOKENS);
    ggml_tensor * pos  = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, N_TOKENS);
    ggml_tensor * cur  = x;
    for (int i = 0; i < 3; ++i) {
        cur = ggml_rope_ext(ctx, cur, pos, nullptr, N_DIMS, mode, 4096, 10000.0f, 1.0f, 0.0f, 1.0f, 32.0f, 1.0f);
        cur = ggml_rope_ext_back(ctx, cur, pos, nullptr, N_DIMS, mode, 4096, 10000.0f, 1.0f, 0.0f, 1.0f, 32.0f, 1.0f);
    }
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, cur);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(ctx, backend);

    std::vector<float> before(ggml_nelements(x));
    for (size_t i = 0; i < before.size(); ++i) {
        before[i] = std::sin((float)i);
    }
    std::vector<int32_t> positions(N_TOKENS);
    for (int i = 0; i < N_TOKENS; ++i) {
        positions[i] = 1000 * i + 1;
    }
    ggml_backend_tensor_set(x, before.data(), 0, ggml_nbytes(x));
    ggml_backend_tensor_set(pos, positions.data(), 0, ggml_nbytes(pos));
    ggml_backend_graph_compute(backend, graph);
    std::vector<float> after(before.size());
    ggml_backend_tensor_get(cur, after.data(), 0, ggml_nbytes(cur));
    float worst = 0.0f;
    for (size_t i = 0; i < before.size(); ++i) {
        worst = std::max(worst, std::fabs(after[i] - before[i]));
    }
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
    return worst;
}

int main() {
    ggml_backend_load_all();
    ggml_backend_t backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, "n_threads=1");
    printf("%g\n%g\n", round_trip(backend, GGML_ROPE_TYPE_NORMAL), round_trip(backend, GGML_ROPE_TYPE_NEOX));
    ggml_backend_free(backend);
}
