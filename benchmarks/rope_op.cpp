// The rope op: worst chord error against float64, and speed next to a plain copy of the same bytes.
//
//     rope_op accuracy DEVICE
//     rope_op speed DEVICE THREADS    takes turns (turns.h)
//
// DEVICE: cpu or gpu. YARN_GGUF_UPSTREAM_ROPE=1 takes upstream's arithmetic.
#include "ggml-backend.h"
#include "ggml-rope.h"
#include "ggml.h"
#include "turns.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
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

    // tensors that share the memory of another one
    std::vector<std::pair<ggml_tensor *, ggml_tensor *>> twins;

    void allocate(ggml_backend_t backend) {
        for (const auto & [tensor, other] : twins) {
            tensor->data = other; // any address, so that it is not allocated
        }
        buffer = ggml_backend_alloc_ctx_tensors(ctx, backend);
        for (const auto & [tensor, other] : twins) {
            tensor->data   = other->data;
            tensor->buffer = other->buffer;
        }
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
    bool by_table;   // src[2] has the frequencies as steps
    bool by_factors; // src[2] has the frequencies as freq_factors alone
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

// Returns the worst difference between q.k at positions (m, n) and q.k a million tokens later, relative to |q||k|.
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

// Q and K of 30 layers. On a GPU, whose cache is large, every layer has its own tensors. On a CPU all layers share
// them, as in the graph of a model.
struct layers {
    int n_heads_q;
    int n_heads_k;
    int n_dims;
    int n_tokens;
    int mode;
    ggml_type type;
    bool is_copy;
    bool own_tensors;
};

static const int N_LAYERS = 30;

// like: an op of the same kind whose tensors are used again, or null
static ggml_tensor * build_op(graph & g, const layers & l, int n_heads, ggml_tensor * pos, ggml_tensor * like) {
    ggml_tensor * x = like ? like->src[0] : ggml_new_tensor_3d(g.ctx, l.type, l.n_dims, n_heads, l.n_tokens);
    if (l.is_copy) {
        return ggml_cpy(g.ctx, x, like ? like->view_src : ggml_dup_tensor(g.ctx, x));
    }
    ggml_tensor * y =
        ggml_rope_ext(g.ctx, x, pos, nullptr, l.n_dims, l.mode, 8192, 1e4f, 0.25f, 1.0f, 1.0f, 32.0f, 1.0f);
    if (like) {
        g.twins.emplace_back(y, like);
    }
    return y;
}

// Returns the median time in microseconds per layer.
static double time_layers(ggml_backend_t backend, const layers & l, int n_repeats) {
    graph g;
    ggml_tensor * pos      = ggml_new_tensor_1d(g.ctx, GGML_TYPE_I32, l.n_tokens);
    const int heads[2]     = {l.n_heads_q, l.n_heads_k};
    ggml_tensor * first[2] = {};
    for (int layer = 0; layer < N_LAYERS; ++layer) {
        for (int which = 0; which < 2; ++which) {
            ggml_tensor * y = build_op(g, l, heads[which], pos, l.own_tensors ? nullptr : first[which]);
            ggml_build_forward_expand(g.gf, y);
            first[which] = layer == 0 ? y : first[which];
        }
    }
    g.allocate(backend);
    std::vector<int32_t> positions(l.n_tokens);
    for (int t = 0; t < l.n_tokens; ++t) {
        positions[t] = 100000 + t;
    }
    ggml_backend_buffer_clear(g.buffer, 0);
    ggml_backend_tensor_set(pos, positions.data(), 0, ggml_nbytes(pos));

    std::vector<double> times;
    for (int repeat = 0; repeat < n_repeats + 2; ++repeat) {
        ggml_backend_synchronize(backend);
        const double start = seconds_now();
        ggml_backend_graph_compute(backend, g.gf);
        ggml_backend_synchronize(backend);
        times.push_back((seconds_now() - start) * 1e6 / N_LAYERS);
    }
    std::sort(times.begin() + 2, times.end()); // the first two warm up
    return times[2 + n_repeats / 2];
}

static void report_speed(ggml_backend_t backend, bool is_cpu) {
    const std::vector<int> ubatches       = is_cpu ? std::vector<int>{1, 32, 512} : std::vector<int>{1, 512, 4096};
    const std::vector<ggml_type> types    = {GGML_TYPE_F32, GGML_TYPE_F16};
    const std::pair<int, int> all_heads[] = {{32, 8}, {9, 3}, {16, 16}, {64, 8}};
    for (const auto & [q, k] : all_heads) {
        for (int n_dims : {64, 128}) {
            if (!is_cpu && (q != 32 || n_dims != 128)) {
                continue;
            }
            for (int mode : {GGML_ROPE_TYPE_NEOX, GGML_ROPE_TYPE_NORMAL}) {
                for (ggml_type type : types) {
                    if (is_cpu && type != GGML_TYPE_F32) {
                        continue; // llama.cpp's graphs have a rope of f16 for cached keys only
                    }
                    for (int n_tokens : ubatches) {
                        const std::string name = std::string(mode == GGML_ROPE_TYPE_NEOX ? "neox" : "norm") + " " +
                                                 ggml_type_name(type) + " " + std::to_string(q) + "+" +
                                                 std::to_string(k) + "x" + std::to_string(n_dims) + " " +
                                                 std::to_string(n_tokens);
                        layers l               = {q, k, n_dims, n_tokens, mode, type, false, !is_cpu};
                        const int n_repeats    = is_cpu && n_tokens < 512 ? 9 : is_cpu ? 3 : 15;
                        report("rope " + name, time_layers(backend, l, n_repeats));
                        l.is_copy = true;
                        report("copy " + name, time_layers(backend, l, n_repeats));
                    }
                }
            }
        }
    }
}

static void set_threads(ggml_backend_t backend, int n_threads) {
    ggml_backend_reg_t cpu = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
    ((ggml_backend_set_n_threads_t)ggml_backend_reg_get_proc_address(cpu, "ggml_backend_set_n_threads"))(backend,
                                                                                                         n_threads);
}

int main(int argc, char ** argv) {
    ggml_backend_load_all();
    const std::string what = argc > 1 ? argv[1] : "";
    const bool is_cpu      = argc < 3 || std::string(argv[2]) != "gpu";
    ggml_backend_t backend =
        is_cpu ? ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr) : ggml_backend_init_best();
    if (what == "accuracy" && argc == 3) {
        printf("%s, %s rope\n", ggml_backend_name(backend), getenv("YARN_GGUF_UPSTREAM_ROPE") ? "upstream's" : "our");
        accuracy(backend);
    } else if (what == "speed" && argc == 4) {
        if (is_cpu) {
            set_threads(backend, std::atoi(argv[3]));
        }
        take_turns([&] {
            report_speed(backend, is_cpu);
            return true;
        });
    } else {
        return 1;
    }
    return 0;
}
