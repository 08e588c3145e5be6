// Whole models on a GPU.
//
//     model logits MODEL.gguf      the GPU's logits against the CPU's, under plain, static and dynamic scaling
//     model write SYNTHETIC.gguf   write an 8B-shaped llama file with random Q4_0 weights
//     model speed SYNTHETIC.gguf   prefill and decode at depth
//     model growth SYNTHETIC.gguf  growth from 8k to 128k against static scaling
//
// YARN_GGUF_UPSTREAM_ROPE=1 takes upstream's rope kernels.
#include "ggml-backend.h"
#include "gguf.h"
#include "llama.h"
#include "yarn-gguf.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

using seconds = std::chrono::duration<double>;

static double now() {
    return seconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct session {
    llama_model * model;
    llama_context * ctx;
    int n_past = 0;

    session(const char * path, bool gpu, uint32_t n_ctx, ggml_type type, float factor, bool flash) {
        llama_model_params model_params  = llama_model_default_params();
        model_params.n_gpu_layers        = gpu ? 999 : 0;
        static ggml_backend_dev_t none[] = {nullptr};
        if (!gpu) {
            model_params.devices = none;
        }
        model                       = llama_model_load_from_file(path, model_params);
        llama_context_params params = llama_context_default_params();
        params.n_ctx                = n_ctx;
        params.n_batch              = 512;
        params.n_ubatch             = 512;
        params.type_k               = type;
        params.type_v               = flash ? type : GGML_TYPE_F32;
        params.flash_attn_type      = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        params.offload_kqv          = gpu;
        params.n_threads            = 16;
        params.n_threads_batch      = 16;
        if (factor > 1.0f) {
            params.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_YARN;
            params.rope_freq_scale   = 1.0f / factor;
            params.yarn_ext_factor   = 1.0f;
            params.yarn_orig_ctx     = 8192;
        }
        ctx = llama_init_from_model(model, params);
        if (!ctx) {
            exit(1);
        }
    }

    ~session() {
        llama_free(ctx);
        llama_model_free(model);
    }

    void follow(uint32_t n_ctx_orig) {
        yarn_gguf_dynamic_scaling policy = yarn_gguf_dynamic_scaling_default();
        policy.n_ctx_orig                = n_ctx_orig;
        if (!yarn_gguf_set_dynamic_scaling(ctx, &policy)) {
            exit(1);
        }
    }

    // seconds; tokens are a fixed pseudo-random sequence by position
    double read(int count, int batch, std::vector<float> * last = nullptr) {
        const int n_vocab  = llama_vocab_n_tokens(llama_model_get_vocab(model));
        const double start = now();
        for (int done = 0; done < count; done += batch) {
            const int n = std::min(batch, count - done);
            std::vector<llama_token> tokens(n);
            for (int i = 0; i < n; ++i) {
                tokens[i] = 100 + (uint32_t)(n_past + i) * 2654435761u % (uint32_t)(n_vocab - 200);
            }
            if (llama_decode(ctx, llama_batch_get_one(tokens.data(), n)) != 0) {
                printf("decode failed at %d\n", n_past);
                exit(1);
            }
            n_past += n;
        }
        llama_synchronize(ctx);
        if (last) {
            last->assign(llama_get_logits_ith(ctx, -1), llama_get_logits_ith(ctx, -1) + n_vocab);
        }
        return now() - start;
    }
};

static double relative(const std::vector<float> & a, const std::vector<float> & b) {
    double difference = 0.0;
    double norm       = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
        difference += (double)(a[i] - b[i]) * (a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return std::sqrt(difference / norm);
}

static void logits(const char * path) {
    struct {
        const char * name;
        ggml_type type;
        float factor;
        uint32_t dynamic;
        bool flash;
    } kinds[] = {
        {"plain, f16", GGML_TYPE_F16, 1.0f, 0, true},
        {"static YaRN 2, f16", GGML_TYPE_F16, 2.0f, 0, true},
        {"static YaRN 2, f32, no flash attention", GGML_TYPE_F32, 2.0f, 0, false},
        {"growth from 1024, f16", GGML_TYPE_F16, 1.0f, 1024, true},
        {"growth from 1024, f32, no flash attention", GGML_TYPE_F32, 1.0f, 1024, false},
        {"growth from 1024, q8_0", GGML_TYPE_Q8_0, 1.0f, 1024, true},
    };
    printf("relative L2 difference of the last logits, GPU against CPU\n");
    for (const auto & kind : kinds) {
        std::vector<float> results[2][2];
        double factor      = 1.0;
        uint64_t rotations = 0;
        for (int gpu = 0; gpu < 2; ++gpu) {
            session s(path, gpu, 10240, kind.type, kind.factor, kind.flash);
            if (kind.dynamic) {
                s.follow(kind.dynamic);
            }
            s.read(900, 300, &results[gpu][0]);
            s.read(kind.flash ? 8300 : 3300, 300, &results[gpu][1]);
            factor    = yarn_gguf_get_dynamic_state(s.ctx).factor;
            rotations = yarn_gguf_get_dynamic_state(s.ctx).n_rotations;
        }
        printf("%-44s at 900: %.1e, at %d: %.1e (s = %.2f, %d rotations)\n", kind.name,
               relative(results[1][0], results[0][0]), kind.flash ? 9200 : 4200, relative(results[1][1], results[0][1]),
               factor, (int)rotations);
    }
}

// ---- a synthetic model -------------------------------------------------------------------------------

static void write(const char * path) {
    const int n_layer = 32, n_embd = 4096, n_ff = 14336, n_kv = 1024, n_vocab = 32000;
    gguf_context * file = gguf_init_empty();
    gguf_set_val_str(file, "general.architecture", "llama");
    gguf_set_val_u32(file, "llama.block_count", n_layer);
    gguf_set_val_u32(file, "llama.context_length", 8192);
    gguf_set_val_u32(file, "llama.embedding_length", n_embd);
    gguf_set_val_u32(file, "llama.feed_forward_length", n_ff);
    gguf_set_val_u32(file, "llama.attention.head_count", 32);
    gguf_set_val_u32(file, "llama.attention.head_count_kv", 8);
    gguf_set_val_f32(file, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_set_val_f32(file, "llama.rope.freq_base", 500000.0f);
    gguf_set_val_u32(file, "llama.vocab_size", n_vocab);
    gguf_set_val_str(file, "tokenizer.ggml.model", "no_vocab");
    ggml_context * ctx = ggml_init({(size_t)6 << 30, nullptr, false});
    std::mt19937_64 generator(0);
    const auto add = [&](const std::string & name, ggml_type type, int64_t a, int64_t b) {
        ggml_tensor * t = b ? ggml_new_tensor_2d(ctx, type, a, b) : ggml_new_tensor_1d(ctx, type, a);
        ggml_set_name(t, name.c_str());
        if (type == GGML_TYPE_F32) {
            std::fill_n((float *)t->data, a, 1.0f);
        } else {
            uint8_t * block         = (uint8_t *)t->data;
            const ggml_fp16_t scale = ggml_fp32_to_fp16(0.2f / std::sqrt((float)a));
            for (size_t i = 0; i < ggml_nbytes(t) / 18; ++i, block += 18) {
                const uint64_t bits[2] = {generator(), generator()};
                memcpy(block, &scale, 2);
                memcpy(block + 2, bits, 16);
            }
        }
        gguf_add_tensor(file, t);
    };
    add("token_embd.weight", GGML_TYPE_Q4_0, n_embd, n_vocab);
    add("output_norm.weight", GGML_TYPE_F32, n_embd, 0);
    add("output.weight", GGML_TYPE_Q4_0, n_embd, n_vocab);
    for (int il = 0; il < n_layer; ++il) {
        const std::string p = "blk." + std::to_string(il) + ".";
        add(p + "attn_norm.weight", GGML_TYPE_F32, n_embd, 0);
        add(p + "attn_q.weight", GGML_TYPE_Q4_0, n_embd, n_embd);
        add(p + "attn_k.weight", GGML_TYPE_Q4_0, n_embd, n_kv);
        add(p + "attn_v.weight", GGML_TYPE_Q4_0, n_embd, n_kv);
        add(p + "attn_output.weight", GGML_TYPE_Q4_0, n_embd, n_embd);
        add(p + "ffn_norm.weight", GGML_TYPE_F32, n_embd, 0);
        add(p + "ffn_gate.weight", GGML_TYPE_Q4_0, n_embd, n_ff);
        add(p + "ffn_up.weight", GGML_TYPE_Q4_0, n_embd, n_ff);
        add(p + "ffn_down.weight", GGML_TYPE_Q4_0, n_ff, n_embd);
    }
    gguf_write_to_file(file, path, false);
    gguf_free(file);
    ggml_free(ctx);
}

static double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

static void speed(const char * path) {
    session s(path, true, 131072 + 2048, GGML_TYPE_F16, 16.0f, true);
    s.read(512, 512); // warm up
    printf("static YaRN 16: tokens/s\n");
    for (int depth : {0, 32768, 131072 - 1024}) {
        if (depth > s.n_past) {
            s.read(depth - s.n_past, 512);
        }
        std::vector<double> prefill;
        std::vector<double> decode;
        for (int repeat = 0; repeat < 5; ++repeat) {
            llama_memory_seq_rm(llama_get_memory(s.ctx), 0, depth, -1);
            s.n_past = depth;
            prefill.push_back(512 / s.read(512, 512));
            decode.push_back(64 / s.read(64, 1));
        }
        printf("depth %6d: prefill %8.1f, decode %7.2f\n", depth, median(prefill), median(decode));
    }
}

static void growth(const char * path) {
    const char * names[] = {"growth", "by request of 128k", "static YaRN 16"};
    for (int kind : {0, 1, 2, 2, 1, 0}) {
        session s(path, true, 131072, GGML_TYPE_F16, kind == 2 ? 16.0f : 1.0f, true);
        if (kind != 2) {
            s.follow(8192);
        }
        if (kind == 1) {
            yarn_gguf_reserve_context(s.ctx, 131072);
        }
        s.read(8192, 512);
        const double time                   = s.read(131072 - 8192 - 512, 512);
        const yarn_gguf_dynamic_state state = yarn_gguf_get_dynamic_state(s.ctx);
        printf("%-18s 8k to 128k by 512: %.2f s; %d rotations\n", names[kind], time, (int)state.n_rotations);
        fflush(stdout);
    }
}

int main(int argc, char ** argv) {
    if (argc < 3) {
        return 1;
    }
    llama_log_set(
        [](ggml_log_level level, const char * text, void *) {
            if (level == GGML_LOG_LEVEL_ERROR) {
                fputs(text, stderr);
            }
        },
        nullptr);
    ggml_backend_load_all();
    const std::string what = argv[1];
    printf("%s, %s rope\n", what.c_str(), getenv("YARN_GGUF_UPSTREAM_ROPE") ? "upstream's" : "our");
    if (what == "logits") {
        logits(argv[2]);
    } else if (what == "write") {
        write(argv[2]);
    } else if (what == "speed") {
        speed(argv[2]);
    } else if (what == "growth") {
        growth(argv[2]);
    } else {
        return 1;
    }
    return 0;
}
