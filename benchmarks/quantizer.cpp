// Upstream's quantizer, on the CPU.
//
//     quantizer file SOURCE.gguf TARGET.gguf FTYPE THREADS    llama_model_quantize
//     quantizer memory SOURCE.gguf LIKE.gguf THREADS          the quantizers alone, in seconds: SOURCE's tensors, as
//                                                             float32 in memory, to the types that they have in LIKE
#include "ggml.h"
#include "gguf.h"
#include "llama.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

struct task {
    const char * name;
    ggml_type type;
    int64_t rows, per_row;
    std::vector<float> data;
};

static int quantize_file(char ** argv) {
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype                       = (llama_ftype)atoi(argv[2]);
    params.nthread                     = atoi(argv[3]);
    return (int)llama_model_quantize(argv[0], argv[1], &params);
}

static std::vector<task> read_tensors(const char * source, const char * like) {
    ggml_context *in, *out;
    gguf_context * from = gguf_init_from_file(source, {false, &in});
    gguf_context * to   = gguf_init_from_file(like, {true, &out});
    std::vector<task> tasks;
    for (ggml_tensor * each = ggml_get_first_tensor(in); each; each = ggml_get_next_tensor(in, each)) {
        const ggml_tensor * target = ggml_get_tensor(out, ggml_get_name(each));
        if (!target) { // the block that holds all other tensors
            continue;
        }
        task t{ggml_get_name(each), target->type, ggml_nrows(each), each->ne[0], {}};
        t.data.resize(ggml_nelements(each));
        if (each->type == GGML_TYPE_F32) {
            memcpy(t.data.data(), each->data, ggml_nbytes(each));
        } else {
            ggml_get_type_traits(each->type)->to_float(each->data, t.data.data(), ggml_nelements(each));
        }
        tasks.push_back(std::move(t));
    }
    gguf_free(from);
    gguf_free(to);
    return tasks;
}

static void quantize(const task & t, int n_threads, std::vector<char> & target) {
    const int64_t chunk = std::max<int64_t>(1, (1 << 16) / t.per_row);
    std::atomic<int64_t> next{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < n_threads; i++) {
        threads.emplace_back([&] {
            for (int64_t row; (row = next.fetch_add(chunk)) < t.rows;) {
                const int64_t count = std::min(chunk, t.rows - row);
                ggml_quantize_chunk(t.type, t.data.data(), target.data(), row * t.per_row, count, t.per_row, nullptr);
            }
        });
    }
    for (auto & thread : threads) {
        thread.join();
    }
}

static int quantize_memory(char ** argv) {
    const std::vector<task> tasks = read_tensors(argv[0], argv[1]);
    size_t size                   = 0;
    for (const task & t : tasks) {
        size = std::max(size, ggml_row_size(t.type, t.per_row) * t.rows);
        ggml_quantize_init(t.type);
    }
    std::vector<char> target(size); // touched before the clock starts
    const auto start = std::chrono::steady_clock::now();
    for (const task & t : tasks) {
        quantize(t, atoi(argv[2]), target);
    }
    printf("%.6f\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    return 0;
}

int main(int argc, char ** argv) {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    if (argc == 6 && std::string(argv[1]) == "file") {
        return quantize_file(argv + 2);
    }
    if (argc == 5 && std::string(argv[1]) == "memory") {
        return quantize_memory(argv + 2);
    }
    fprintf(stderr, "see the head of quantizer.cpp\n");
    return 2;
}
