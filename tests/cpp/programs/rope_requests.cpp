// Computes rope ops on the CPU, one at a time, and writes their results as float32, for tests/cpp/test_rope_op.py.
//
//     rope_requests N_COPIES < requests
//
// N_COPIES threads do this at the same time, each with its own backend. A request is a line of numbers: the integers and
// floats of `struct request`, then positions, then the numbers that decide the angles (radians per position for a table
// of steps, or freq_factors). Channel i of the input, in memory order, is input(i).
// Compiled with ROPE_KERNELS, it runs the CUDA kernels on the host (kernels_on_host).
#ifdef ROPE_KERNELS
#include "ggml-rope-cuda.cu"
#endif

#include "ggml-backend.h"
#include "ggml-rope.h"
#include "ggml.h"

#include <cstdio>
#include <thread>
#include <vector>

struct request {
    int n_threads, is_f16, mode, n_dims, n_offs, n_ctx_orig, sections[4];
    int is_forward, is_inplace, is_table;
    int n_all, n_heads, n_tokens, n_batches; // shape of the op
    int n_pad;                               // channels and heads around the op's view in the whole tensor
    int n_positions, n_factors;
    float base, scale, ext_factor, attn_factor, beta_fast, beta_slow;
    std::vector<int32_t> positions;
    std::vector<double> factors;
};

static bool read(request & r) {
    int * integers[] = {&r.n_threads,   &r.is_f16,      &r.mode,        &r.n_dims,      &r.n_offs,     &r.n_ctx_orig,
                        &r.sections[0], &r.sections[1], &r.sections[2], &r.sections[3], &r.is_forward, &r.is_inplace,
                        &r.is_table,    &r.n_all,       &r.n_heads,     &r.n_tokens,    &r.n_batches,  &r.n_pad,
                        &r.n_positions, &r.n_factors};
    for (int * each : integers) {
        if (scanf("%d", each) != 1) {
            return false;
        }
    }
    for (float * each : {&r.base, &r.scale, &r.ext_factor, &r.attn_factor, &r.beta_fast, &r.beta_slow}) {
        if (scanf("%f", each) != 1) {
            return false;
        }
    }
    r.positions.resize(r.n_positions);
    for (int32_t & each : r.positions) {
        if (scanf("%d", &each) != 1) {
            return false;
        }
    }
    r.factors.resize(r.n_factors);
    for (double & each : r.factors) {
        if (scanf("%lf", &each) != 1) {
            return false;
        }
    }
    return true;
}

static float input(size_t i) {
    return (float)((uint32_t)i * 2654435761u / 4294967296.0 - 0.5);
}

static ggml_tensor * build(ggml_context * ctx, const request & r, ggml_tensor * x, ggml_tensor * pos,
                           ggml_tensor * factors) {
    int sections[4];
    std::copy(r.sections, r.sections + 4, sections);
    const bool is_multi = r.mode & GGML_ROPE_TYPE_MROPE;
    ggml_tensor * y;
    if (is_multi) {
        const auto build = !r.is_forward  ? ggml_rope_multi_back
                           : r.is_inplace ? ggml_rope_multi_inplace
                                          : ggml_rope_multi;
        y = build(ctx, x, pos, factors, r.n_dims, sections, r.mode, r.n_ctx_orig, r.base, r.scale, r.ext_factor,
                  r.attn_factor, r.beta_fast, r.beta_slow);
    } else {
        const auto build = !r.is_forward ? ggml_rope_ext_back : r.is_inplace ? ggml_rope_ext_inplace : ggml_rope_ext;
        y = build(ctx, x, pos, factors, r.n_dims, r.mode, r.n_ctx_orig, r.base, r.scale, r.ext_factor, r.attn_factor,
                  r.beta_fast, r.beta_slow);
    }
    if (r.n_offs) {
        ggml_rope_set_offset(y, r.n_offs);
    }
    if (r.is_table) {
        y->op_params[0] = GGML_ROPE_STEPS;
    }
    return y;
}

static void set_floats(ggml_tensor * tensor, const std::vector<float> & values) {
    if (tensor->type == GGML_TYPE_F32) {
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    } else {
        std::vector<ggml_fp16_t> halves(values.size());
        ggml_fp32_to_fp16_row(values.data(), halves.data(), values.size());
        ggml_backend_tensor_set(tensor, halves.data(), 0, ggml_nbytes(tensor));
    }
}

// Appends the op's result row by row, because it may be a view.
static void get_floats(const ggml_tensor * tensor, std::vector<float> & values) {
    const size_t n = tensor->ne[0];
    std::vector<ggml_fp16_t> halves(n);
    for (int64_t r = 0; r < ggml_nrows(tensor); ++r) {
        const int64_t i1 = r % tensor->ne[1], i2 = r / tensor->ne[1] % tensor->ne[2],
                      i3     = r / tensor->ne[1] / tensor->ne[2];
        const size_t offset  = i1 * tensor->nb[1] + i2 * tensor->nb[2] + i3 * tensor->nb[3];
        const size_t present = values.size();
        values.resize(present + n);
        if (tensor->type == GGML_TYPE_F32) {
            ggml_backend_tensor_get(tensor, &values[present], offset, n * sizeof(float));
        } else {
            ggml_backend_tensor_get(tensor, halves.data(), offset, n * sizeof(ggml_fp16_t));
            ggml_fp16_to_fp32_row(halves.data(), &values[present], n);
        }
    }
}

static void compute(ggml_backend_t backend, const request & r, std::vector<float> & results) {
    ggml_context * ctx  = ggml_init({1u << 20, nullptr, true});
    const auto type     = r.is_f16 ? GGML_TYPE_F16 : GGML_TYPE_F32;
    ggml_tensor * whole = ggml_new_tensor_4d(ctx, type, r.n_all + 2 * r.n_pad, r.n_heads + 2 * r.n_pad, r.n_tokens,
                                             r.n_batches);
    ggml_tensor * x     = ggml_view_4d(ctx, whole, r.n_all, r.n_heads, r.n_tokens, r.n_batches, whole->nb[1],
                                       whole->nb[2], whole->nb[3], r.n_pad * (whole->nb[0] + whole->nb[1]));
    ggml_tensor * pos   = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, r.n_positions);
    std::vector<float> numbers(r.factors.begin(), r.factors.end());
    if (r.is_table) {
        numbers = ggml_rope_pack(r.base, r.factors);
    }
    ggml_tensor * factors = numbers.empty() ? nullptr : ggml_new_tensor_1d(ctx, GGML_TYPE_F32, numbers.size());
    ggml_tensor * y       = build(ctx, r, x, pos, factors);
    ggml_cgraph * graph   = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, y);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(ctx, backend);

    std::vector<float> values(ggml_nelements(whole));
    for (size_t i = 0; i < values.size(); ++i) {
        values[i] = input(i);
    }
    set_floats(whole, values);
    ggml_backend_tensor_set(pos, r.positions.data(), 0, ggml_nbytes(pos));
    if (factors) {
        set_floats(factors, numbers);
    }
    ggml_backend_reg_t cpu = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
    ((ggml_backend_set_n_threads_t)ggml_backend_reg_get_proc_address(cpu, "ggml_backend_set_n_threads"))(backend,
                                                                                                         r.n_threads);
#ifdef ROPE_KERNELS
    ggml_backend_cuda_context cuda;
    GGML_ASSERT(ggml_rope_cuda_compute(cuda, y, nullptr, r.is_forward));
#else
    ggml_backend_graph_compute(backend, graph);
#endif
    get_floats(y, results);
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
}

int main(int argc, char ** argv) {
    std::vector<request> requests;
    for (request r; read(r);) {
        requests.push_back(r);
    }
    ggml_backend_load_all();
    std::vector<std::vector<float>> results(argc > 1 ? std::atoi(argv[1]) : 1);
    std::vector<std::thread> threads;
    for (auto & mine : results) {
        threads.emplace_back([&] {
            ggml_backend_t backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
            for (const request & r : requests) {
                compute(backend, r, mine);
            }
            ggml_backend_free(backend);
        });
    }
    for (auto & each : threads) {
        each.join();
    }
    for (const auto & mine : results) {
        fwrite(mine.data(), sizeof(float), mine.size(), stdout);
    }
}
