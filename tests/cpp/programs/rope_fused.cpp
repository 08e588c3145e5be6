// Compares the fused CUDA kernels with the unfused one, on the host (kernels_on_host). Prints the largest difference in
// each case. For tests/cpp/test_rope_requests.py.
#include "ggml-rope-cuda.cu"

#include <cmath>
#include <cstdio>

static const int N_DIMS = 40, N_ALL = 64, N_HEADS = 3;

struct tensors {
    ggml_context * ctx = ggml_init({64u << 20, nullptr, false});

    ~tensors() {
        ggml_free(ctx);
    }

    ggml_tensor * make(ggml_type type, int64_t n0, int64_t n1 = 1, int64_t n2 = 1) const {
        ggml_tensor * tensor = ggml_new_tensor_3d(ctx, type, n0, n1, n2);
        memset(tensor->data, 0, ggml_nbytes(tensor));
        for (int64_t i = 0; type == GGML_TYPE_F32 && i < ggml_nelements(tensor); ++i) {
            ((float *)tensor->data)[i] = std::sin((float)(i + n0)) + 0.1f;
        }
        return tensor;
    }

    ggml_tensor * positions(int n_tokens) const {
        ggml_tensor * pos = make(GGML_TYPE_I32, n_tokens);
        for (int t = 0; t < n_tokens; ++t) {
            ((int32_t *)pos->data)[t] = 1000 * t + 7;
        }
        return pos;
    }

    ggml_tensor * rope(ggml_tensor * x, ggml_tensor * pos, int mode, bool has_factors) const {
        ggml_tensor * factors = has_factors ? make(GGML_TYPE_F32, N_DIMS / 2) : nullptr;
        for (int i = 0; has_factors && i < N_DIMS / 2; ++i) {
            ((float *)factors->data)[i] = 1.0f + 0.1f * i;
        }
        return ggml_rope_ext(ctx, x, pos, factors, N_DIMS, mode, 4096, 1e4f, 0.25f, 1.0f, 1.0f, 32.0f, 1.0f);
    }

    // scatters the tokens to rows in reverse order; gap: channels between two rows
    ggml_tensor * rows(ggml_tensor * rope, ggml_type type, int gap) const {
        const int64_t n_tokens = rope->ne[2], size = rope->ne[0] * rope->ne[1];
        ggml_tensor * indices = make(GGML_TYPE_I64, n_tokens);
        for (int64_t t = 0; t < n_tokens; ++t) {
            ((int64_t *)indices->data)[t] = n_tokens - 1 - t;
        }
        ggml_tensor * whole = make(type, size + gap, n_tokens);
        return ggml_set_rows(ctx, ggml_view_2d(ctx, whole, size, n_tokens, whole->nb[1], 0),
                             ggml_view_2d(ctx, rope, size, n_tokens, rope->nb[2], 0), indices);
    }
};

static double difference(const ggml_tensor * rows, const ggml_tensor * rope) {
    const int64_t n_tokens = rope->ne[2], size = rope->ne[0] * rope->ne[1];
    double worst = 0.0;
    for (int64_t i = 0; i < n_tokens * size; ++i) {
        const char * row     = (const char *)rows->data + (n_tokens - 1 - i / size) * rows->nb[1];
        const float got      = rows->type == GGML_TYPE_F32 ? ((float *)row)[i % size] : (float)((half *)row)[i % size];
        const float expected = ((const float *)rope->data)[i];
        worst = std::max(worst, std::fabs((double)got - (rows->type == GGML_TYPE_F32 ? expected : (half)expected)));
    }
    return worst;
}

static double fused_with_rows(int n_tokens, int mode, ggml_type type, bool has_factors) {
    tensors all;
    ggml_backend_cuda_context cuda;
    ggml_tensor * rope = all.rope(all.make(GGML_TYPE_F32, N_ALL, N_HEADS, n_tokens), all.positions(n_tokens), mode,
                                  has_factors);
    ggml_tensor * rows = all.rows(rope, type, has_factors);
    GGML_ASSERT(ggml_rope_cuda_compute(cuda, rope, nullptr, true) && ggml_rope_cuda_compute(cuda, rope, rows, true));
    return difference(rows, rope);
}

static double fused_with_norm(int n_tokens, int mode, ggml_type type, bool has_factors, bool is_scattered) {
    tensors all;
    ggml_backend_cuda_context cuda;
    ggml_tensor * x       = all.make(GGML_TYPE_F32, N_ALL, N_HEADS, n_tokens);
    ggml_tensor * weights = all.make(GGML_TYPE_F32, N_ALL);
    ggml_tensor * norm    = ggml_rms_norm(all.ctx, x, 0.01f);
    ggml_tensor * mul     = ggml_mul(all.ctx, norm, weights);
    ggml_tensor * rope    = all.rope(mul, all.positions(n_tokens), mode, has_factors);
    for (int64_t r = 0; r < ggml_nrows(x); ++r) {
        const float * from = (const float *)x->data + r * N_ALL;
        double sum         = 0.0;
        for (int c = 0; c < N_ALL; ++c) {
            sum += from[c] * from[c];
        }
        for (int c = 0; c < N_ALL; ++c) {
            ((float *)mul->data)[r * N_ALL + c] =
                (float)(from[c] / std::sqrt(sum / N_ALL + 0.01) * ((const float *)weights->data)[c]);
        }
    }
    GGML_ASSERT(ggml_rope_cuda_compute(cuda, rope, nullptr, true));
    ggml_tensor * fused = all.rope(mul, rope->src[1], mode, has_factors);
    ggml_tensor * rows  = is_scattered ? all.rows(fused, type, has_factors) : nullptr;
    GGML_ASSERT(ggml_rope_cuda_compute_normed(cuda, norm, mul, fused, rows));
    if (rows) {
        return difference(rows, rope);
    }
    double worst = 0.0;
    for (int64_t i = 0; i < ggml_nelements(rope); ++i) {
        worst = std::max(worst, std::fabs((double)((float *)fused->data)[i] - ((float *)rope->data)[i]));
    }
    return worst;
}

int main() {
    for (int n_tokens : {1, 5, 40}) {
        for (int mode : {GGML_ROPE_TYPE_NORMAL, GGML_ROPE_TYPE_NEOX}) {
            for (bool has_factors : {false, true}) {
                for (ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16}) {
                    printf("%s %g\n", ggml_type_name(type), fused_with_rows(n_tokens, mode, type, has_factors));
                    printf("%s %g\n", ggml_type_name(type), fused_with_norm(n_tokens, mode, type, has_factors, true));
                }
                printf("f32 %g\n", fused_with_norm(n_tokens, mode, GGML_TYPE_F32, has_factors, false));
            }
        }
    }
}
