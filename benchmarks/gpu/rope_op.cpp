// The rope op on a GPU: worst chord error against float64, and speed against a device copy of the same bytes.
//
//     rope_op accuracy | speed
//
// Run it once as it is and once with YARN_GGUF_UPSTREAM_ROPE=1, which takes upstream's kernels.
#include "ggml-backend.h"
#include "ggml-rope.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

struct graph {
    ggml_context * ctx;
    ggml_cgraph * gf;
    ggml_backend_buffer_t buffer = nullptr;

    graph() {
        ctx = ggml_init({64u << 20, nullptr, true});
        gf  = ggml_new_graph_custom(ctx, 8192, false);
    }

    void allocate(ggml_backend_t backend) {
        buffer = ggml_backend_alloc_ctx_tensors(ctx, backend);
    }

    ~graph() {
        ggml_backend_buffer_free(buffer);
        ggml_free(ctx);
    }
};

// ---- accuracy ----------------------------------------------------------------------------------------

struct kind {
    const char * name;
    rope_method method;
    double factor;
    bool by_table;   // the frequencies in src[2], as steps
    bool by_factors; // the frequencies in src[2], as freq_factors alone
};

static double worst_chord_error(ggml_backend_t backend, const kind & k, int mode, int n_dims, float base) {
    const int n_tokens = 4096;
    rope_scaling scaling;
    scaling.method      = k.method;
    scaling.factor      = k.factor;
    scaling.n_ctx_orig  = 4096;
    const auto inv_freq = rope_inv_freq(scaling, base, n_dims);

    graph g;
    ggml_tensor * x   = ggml_new_tensor_3d(g.ctx, GGML_TYPE_F32, n_dims, 1, n_tokens);
    ggml_tensor * pos = ggml_new_tensor_1d(g.ctx, GGML_TYPE_I32, n_tokens);
    ggml_tensor * ff  = nullptr;
    std::vector<float> factors(n_dims / 2);
    std::vector<double> exact = inv_freq;
    for (int i = 0; i < n_dims / 2; ++i) {
        const double theta = rope_theta(base, i, n_dims);
        factors[i]         = (float)(theta / inv_freq[i]);
        if (k.by_factors) {
            exact[i] = theta / factors[i];
        }
    }
    const auto packed = ggml_rope_pack(base, inv_freq);
    if (k.by_table) {
        ff = ggml_new_tensor_1d(g.ctx, GGML_TYPE_F32, packed.size());
    } else if (k.by_factors) {
        ff = ggml_new_tensor_1d(g.ctx, GGML_TYPE_F32, factors.size());
    }
    const bool by_op   = !k.by_table && !k.by_factors;
    const bool is_yarn = by_op && k.method == ROPE_METHOD_YARN;
    const float scale  = by_op && k.method != ROPE_METHOD_NONE ? (float)(1.0 / k.factor) : 1.0f;
    const float attn   = is_yarn ? (float)(1.0 / rope_yarn_mscale(k.factor)) : 1.0f;
    ggml_tensor * y =
        ggml_rope_ext(g.ctx, x, pos, ff, n_dims, mode, 4096, base, scale, is_yarn ? 1.0f : 0.0f, attn, 32.0f, 1.0f);
    if (k.by_table) {
        y->op_params[0] = GGML_ROPE_STEPS;
    }
    ggml_build_forward_expand(g.gf, y);
    g.allocate(backend);

    std::mt19937 generator(0);
    std::vector<int32_t> positions(n_tokens);
    for (int t = 0; t < n_tokens; ++t) {
        positions[t] = t < 64 ? (1 << 20) - t : (int32_t)(generator() % (1 << 20));
    }
    std::vector<float> input(n_dims * n_tokens, 0.0f);
    const bool is_neox = mode == GGML_ROPE_TYPE_NEOX;
    for (int t = 0; t < n_tokens; ++t) {
        for (int i = 0; i < n_dims / 2; ++i) {
            input[t * n_dims + (is_neox ? i : 2 * i)] = 1.0f;
        }
    }
    ggml_backend_tensor_set(x, input.data(), 0, ggml_nbytes(x));
    ggml_backend_tensor_set(pos, positions.data(), 0, ggml_nbytes(pos));
    if (ff) {
        ggml_backend_tensor_set(ff, k.by_table ? packed.data() : factors.data(), 0, ggml_nbytes(ff));
    }
    ggml_backend_graph_compute(backend, g.gf);
    std::vector<float> output(n_dims * n_tokens);
    ggml_backend_tensor_get(y, output.data(), 0, ggml_nbytes(y));

    double worst = 0.0;
    for (int t = 0; t < n_tokens; ++t) {
        for (int i = 0; i < n_dims / 2; ++i) {
            const double angle  = std::remainder(positions[t] * exact[i], 2.0 * M_PI);
            const double cosine = output[t * n_dims + (is_neox ? i : 2 * i)];
            const double sine   = output[t * n_dims + (is_neox ? i + n_dims / 2 : 2 * i + 1)];
            worst               = std::max(worst, std::hypot(cosine - std::cos(angle), sine - std::sin(angle)));
        }
    }
    return worst;
}

// q.k at positions (m, n) and a million tokens later: the worst difference, relative to |q||k|
static double worst_shift(ggml_backend_t backend) {
    const int n_dims = 128, n_pairs = 1024, far = 1000000;
    graph g;
    ggml_tensor * x   = ggml_new_tensor_3d(g.ctx, GGML_TYPE_F32, n_dims, 1, 4 * n_pairs);
    ggml_tensor * pos = ggml_new_tensor_1d(g.ctx, GGML_TYPE_I32, 4 * n_pairs);
    ggml_tensor * y =
        ggml_rope_ext(g.ctx, x, pos, nullptr, n_dims, GGML_ROPE_TYPE_NEOX, 4096, 1e4f, 0.25f, 1.0f, 1.0f, 32.0f, 1.0f);
    ggml_build_forward_expand(g.gf, y);
    g.allocate(backend);

    // for each pair q at m, k at n, q at m + far, k at n + far
    std::mt19937 generator(0);
    std::normal_distribution<float> normal;
    std::vector<float> input(4 * n_pairs * n_dims);
    std::vector<int32_t> positions(4 * n_pairs);
    for (int i = 0; i < n_pairs; ++i) {
        for (int d = 0; d < 2 * n_dims; ++d) {
            input[4 * i * n_dims + d] = input[(4 * i + 2) * n_dims + d] = normal(generator);
        }
        for (int t = 0; t < 2; ++t) {
            positions[4 * i + t]     = (int32_t)(generator() % 4096);
            positions[4 * i + t + 2] = positions[4 * i + t] + far;
        }
    }
    ggml_backend_tensor_set(x, input.data(), 0, ggml_nbytes(x));
    ggml_backend_tensor_set(pos, positions.data(), 0, ggml_nbytes(pos));
    ggml_backend_graph_compute(backend, g.gf);
    std::vector<float> output(input.size());
    ggml_backend_tensor_get(y, output.data(), 0, ggml_nbytes(y));

    const auto dot = [&](int a, int b) {
        double sum = 0.0;
        for (int d = 0; d < n_dims; ++d) {
            sum += (double)output[a * n_dims + d] * output[b * n_dims + d];
        }
        return sum;
    };
    double worst = 0.0;
    for (int i = 0; i < 4 * n_pairs; i += 4) {
        const double scale = std::sqrt(dot(i, i) * dot(i + 1, i + 1));
        worst              = std::max(worst, std::fabs(dot(i, i + 1) - dot(i + 2, i + 3)) / scale);
    }
    return worst;
}

static void accuracy(ggml_backend_t backend) {
    printf("q.k a million tokens later, relative difference: %.2e\n", worst_shift(backend));
    const kind kinds[] = {
        {"none", ROPE_METHOD_NONE, 1.0, false, false},
        {"linear 4", ROPE_METHOD_LINEAR, 4.0, false, false},
        {"yarn 4", ROPE_METHOD_YARN, 4.0, false, false},
        {"yarn 32", ROPE_METHOD_YARN, 32.0, false, false},
        {"table yarn 4", ROPE_METHOD_YARN, 4.0, true, false},
        {"table ntk 8", ROPE_METHOD_NTK, 8.0, true, false},
        {"freq_factors 4", ROPE_METHOD_BY_PARTS, 4.0, false, true},
    };
    for (const kind & k : kinds) {
        double worst = 0.0;
        for (int mode : {GGML_ROPE_TYPE_NORMAL, GGML_ROPE_TYPE_NEOX}) {
            for (int n_dims : {64, 96, 128, 256}) {
                for (float base : {1e4f, 1e5f, 1e6f, 1e7f}) {
                    worst = std::max(worst, worst_chord_error(backend, k, mode, n_dims, base));
                }
            }
        }
        printf("chord error to position 2^20, %-15s %.2e\n", k.name, worst);
    }
}

// ---- speed -------------------------------------------------------------------------------------------

static double median_us(ggml_backend_t backend, ggml_cgraph * gf, int n_ops) {
    std::vector<double> times;
    for (int repeat = 0; repeat < 25; ++repeat) {
        ggml_backend_synchronize(backend);
        const auto start = std::chrono::steady_clock::now();
        ggml_backend_graph_compute(backend, gf);
        ggml_backend_synchronize(backend);
        if (repeat >= 5) {
            times.push_back(
                std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
        }
    }
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    return times[times.size() / 2] / n_ops;
}

// one Q of 32 heads and one K of 8, n_layers times, each on tensors of its own
static double time_ops(ggml_backend_t backend, int mode, ggml_type type, int n_tokens, bool copy) {
    const int n_layers = n_tokens >= 4096 ? 8 : 32;
    graph g;
    ggml_tensor * pos = ggml_new_tensor_1d(g.ctx, GGML_TYPE_I32, n_tokens);
    for (int layer = 0; layer < n_layers; ++layer) {
        for (int n_heads : {32, 8}) {
            ggml_tensor * x = ggml_new_tensor_3d(g.ctx, type, 128, n_heads, n_tokens);
            ggml_tensor * y =
                copy ? ggml_cpy(g.ctx, x, ggml_new_tensor_3d(g.ctx, type, 128, n_heads, n_tokens))
                     : ggml_rope_ext(g.ctx, x, pos, nullptr, 128, mode, 8192, 1e4f, 0.25f, 1.0f, 1.0f, 32.0f, 1.0f);
            ggml_build_forward_expand(g.gf, y);
        }
    }
    g.allocate(backend);
    std::vector<int32_t> positions(n_tokens);
    for (int t = 0; t < n_tokens; ++t) {
        positions[t] = 100000 + t;
    }
    ggml_backend_buffer_clear(g.buffer, 0);
    ggml_backend_tensor_set(pos, positions.data(), 0, ggml_nbytes(pos));
    return median_us(backend, g.gf, n_layers);
}

static void speed(ggml_backend_t backend) {
    printf("us for Q and K of (32 + 8) x 128, medians of 20\n");
    printf("%-6s %-5s %7s %9s %9s %7s\n", "mode", "type", "ubatch", "rope", "copy", "share");
    for (int mode : {GGML_ROPE_TYPE_NEOX, GGML_ROPE_TYPE_NORMAL}) {
        for (ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16}) {
            for (int n_tokens : {1, 512, 4096}) {
                const double rope = time_ops(backend, mode, type, n_tokens, false);
                const double copy = time_ops(backend, mode, type, n_tokens, true);
                printf("%-6s %-5s %7d %9.2f %9.2f %6.1f%%\n", mode == GGML_ROPE_TYPE_NEOX ? "neox" : "norm",
                       ggml_type_name(type), n_tokens, rope, copy, 100.0 * copy / rope);
            }
        }
    }
}

int main(int argc, char ** argv) {
    ggml_backend_load_all();
    const std::string what = argc > 1 ? argv[1] : "";
    ggml_backend_t backend = argc > 2 && std::string(argv[2]) == "cpu"
                                 ? ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr)
                                 : ggml_backend_init_best();
    printf("%s, %s rope\n", ggml_backend_name(backend), getenv("YARN_GGUF_UPSTREAM_ROPE") ? "upstream's" : "our");
    if (what == "accuracy") {
        accuracy(backend);
    } else if (what == "speed") {
        speed(backend);
    } else {
        return 1;
    }
    return 0;
}
