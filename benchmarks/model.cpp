// Whole models, on the CPU or a GPU.
//
//     model write SHAPE OUT.gguf                  write a llama file of shape 1b or 8b with random Q4_0 weights
//     model widen IN.gguf OUT.gguf                a file of quantized weights, with weights in float16
//     model logits MODEL.gguf                     compare the GPU's last logits with the CPU's, under several scalings
//     model speed MODEL.gguf DEVICE KIND ROUNDS TEST…   tests as in llama-bench, pp512, tg64 or pp512@32768, in
//     tokens/s model growth MODEL.gguf DEVICE KIND N_CTX STEP    read a text of N_CTX tokens, STEP tokens a round, in
//     seconds model rotations MODEL.gguf DEVICE N_CTX     the cost of a change of s at depths from 16384 to N_CTX, in
//     ms model losses MODEL.gguf DEVICE KIND CACHE BATCH   the losses of the tokens on standard input (int32), one a
//     line;
//                                                       then the number of rotations of cached keys, and s
//
// DEVICE: cpu or gpu.
// KIND: none, or YaRN with 8192 tokens as the original context. static and request scale to the whole context, or by a
// given factor, as in static:2. growth has the default step, or a given one, as in growth:1.5. exact has no parameter.
// CACHE: a type of ggml.
// speed and growth take turns (turns.h). YARN_GGUF_UPSTREAM_ROPE=1 selects upstream's rope kernels.
#include "ggml-backend.h"
#include "gguf.h"
#include "llama.h"
#include "turns.h"
#include "yarn-gguf.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

static const uint32_t N_CTX_ORIG = 8192;

// a null pointer with an unpatched library
extern "C" yarn_gguf_dynamic_state yarn_gguf_get_dynamic_state(const llama_context * ctx) __attribute__((weak));

static yarn_gguf_dynamic_state dynamic_state(const llama_context * ctx) {
    return yarn_gguf_get_dynamic_state ? yarn_gguf_get_dynamic_state(ctx) : yarn_gguf_dynamic_state{1.0, 0, 0};
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
        params.n_threads            = (int32_t)std::thread::hardware_concurrency();
        params.n_threads_batch      = params.n_threads;
        if (factor > 1.0f) {
            params.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_YARN;
            params.rope_freq_scale   = 1.0f / factor;
            params.yarn_ext_factor   = 1.0f;
            params.yarn_orig_ctx     = N_CTX_ORIG;
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

    // step: 0 selects the default
    void follow(uint32_t n_ctx_orig, float step = 0.0f) {
        yarn_gguf_dynamic_scaling policy = yarn_gguf_dynamic_scaling_default();
        policy.n_ctx_orig                = n_ctx_orig;
        if (step > 0.0f) {
            policy.step = step;
        }
        if (!yarn_gguf_set_dynamic_scaling(ctx, &policy)) {
            exit(1);
        }
    }

    // Reads `count` tokens of a fixed pseudo-random sequence by position. Returns the seconds that this took.
    double read(int count, int batch, std::vector<float> * last = nullptr) {
        const int n_vocab  = llama_vocab_n_tokens(llama_model_get_vocab(model));
        const double start = seconds_now();
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
        return seconds_now() - start;
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
            factor    = dynamic_state(s.ctx).factor;
            rotations = dynamic_state(s.ctx).n_rotations;
        }
        printf("%-44s at 900: %.1e, at %d: %.1e (s = %.2f, %d rotations)\n", kind.name,
               relative(results[1][0], results[0][0]), kind.flash ? 9200 : 4200, relative(results[1][1], results[0][1]),
               factor, (int)rotations);
    }
}

// ---- a synthetic model -------------------------------------------------------------------------------

// Writes a model with the shape of Llama 3.2 1B or Llama 3.1 8B, except for the vocabulary.
static void write(const std::string & shape, const char * path) {
    const bool small    = shape == "1b";
    const int n_layer   = small ? 16 : 32;
    const int n_embd    = small ? 2048 : 4096;
    const int n_ff      = small ? 8192 : 14336;
    const int n_kv      = small ? 512 : 1024;
    const int n_vocab   = 32000;
    gguf_context * file = gguf_init_empty();
    gguf_set_val_str(file, "general.architecture", "llama");
    gguf_set_val_u32(file, "llama.block_count", n_layer);
    gguf_set_val_u32(file, "llama.context_length", N_CTX_ORIG);
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

static void widen(const char * from, const char * to) {
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype                       = LLAMA_FTYPE_MOSTLY_F16;
    params.allow_requantize            = true;
    if (llama_model_quantize(from, to, &params) != 0) {
        exit(1);
    }
}

// ---- speed -------------------------------------------------------------------------------------------

static std::unique_ptr<session> make_session(const char * path, const std::string & device, const std::string & kind,
                                             uint32_t n_ctx, ggml_type type = GGML_TYPE_F16, bool flash = true) {
    const size_t colon     = kind.find(':');
    const std::string name = kind.substr(0, colon);
    const float given      = colon == std::string::npos ? 0.0f : std::atof(kind.c_str() + colon + 1);
    const float factor     = given > 0.0f ? given : (float)n_ctx / N_CTX_ORIG;
    auto s = std::make_unique<session>(path, device == "gpu", n_ctx, type, name == "static" ? factor : 1.0f, flash);
    if (name == "growth" || name == "exact" || name == "request") {
        s->follow(N_CTX_ORIG, name == "exact" ? 1.0f : name == "growth" ? given : 0.0f);
    }
    if (name == "request") {
        yarn_gguf_reserve_context(s->ctx, (uint32_t)(factor * N_CTX_ORIG));
    }
    return s;
}

struct test {
    std::string name;
    bool is_prefill;
    int count;
    int depth;

    explicit test(const char * text) : name(text), is_prefill(name.substr(0, 2) == "pp"), depth(0) {
        count           = std::atoi(text + 2);
        const size_t at = name.find('@');
        if (at != std::string::npos) {
            depth = std::atoi(text + at + 1);
        }
    }
};

// Runs n_rounds rounds at each depth, from the shallowest to the deepest.
static void speed(const char * path, const std::string & device, const std::string & kind, int n_rounds,
                  char ** names) {
    std::map<int, std::vector<test>> tests;
    int longest = 0;
    for (; *names; ++names) {
        const test t(*names);
        tests[t.depth].push_back(t);
        longest = std::max(longest, t.depth + t.count);
    }
    const auto s = make_session(path, device, kind, std::max((int)N_CTX_ORIG, (longest + 1023) / 1024 * 1024));
    s->read(512, 512); // warm up
    auto at   = tests.begin();
    int round = 0;
    take_turns([&] {
        for (const test & t : at->second) {
            if (t.depth > s->n_past) {
                s->read(t.depth - s->n_past, 512);
            }
            llama_memory_seq_rm(llama_get_memory(s->ctx), 0, t.depth, -1);
            s->n_past = t.depth;
            report(t.name, t.count / s->read(t.count, t.is_prefill ? 512 : 1));
        }
        if (++round % n_rounds == 0) {
            ++at;
        }
        return at != tests.end();
    });
}

static void growth(const char * path, const std::string & device, const std::string & kind, int n_ctx, int step) {
    const auto s = make_session(path, device, kind, n_ctx);
    take_turns([&] {
        const yarn_gguf_dynamic_state before = dynamic_state(s->ctx);
        const double time                    = s->read(std::min(step, n_ctx - s->n_past), 512);
        const yarn_gguf_dynamic_state after  = dynamic_state(s->ctx);
        report("tokens", s->n_past);
        report("seconds", time);
        report("rotations", (double)(after.n_rotations - before.n_rotations));
        report("factor", after.factor);
        return s->n_past < n_ctx;
    });
}

static double median_of(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

// At each depth, prints the time of reading up to it, and how long the host was busy with rotations meanwhile (on a
// CPU, their whole time). Then prints the extra time of a token for which s changes over the token before it, as
// medians of nine. Every time includes waiting for the device.
static void rotations(const char * path, const std::string & device, int n_ctx) {
    const auto s       = make_session(path, device, "growth", n_ctx + n_ctx / 8); // room for s to change at the end
    const auto & model = s->model;
    const double bytes = 2.0 * llama_model_n_layer(model) * llama_model_n_head_kv(model) *
                         (llama_model_n_embd(model) / llama_model_n_head(model)) * sizeof(ggml_fp16_t);
    s->read(N_CTX_ORIG, 512);
    for (int depth = 2 * N_CTX_ORIG; depth <= n_ctx; depth *= 2) {
        const int64_t before = dynamic_state(s->ctx).t_rotations_us;
        const int first      = s->n_past;
        const double reading = s->read(depth - 128 - first, 512);
        printf("%d to %d\t%.2f s, of which %.3f s rotating\n", first, s->n_past, reading,
               1e-6 * (double)(dynamic_state(s->ctx).t_rotations_us - before));
        std::vector<double> changes;
        std::vector<double> tokens;
        double wanted = dynamic_state(s->ctx).factor * N_CTX_ORIG;
        for (int i = 0; i < 9; ++i) {
            s->read(3, 1);
            const double rests = s->read(1, 1);
            yarn_gguf_reserve_context(s->ctx, (uint32_t)(wanted *= 1.0105)); // smaller changes are postponed
            changes.push_back(s->read(1, 1) - rests);
            tokens.push_back(rests);
        }
        const double median = median_of(changes);
        printf("%d\t%.3f ms, beside %.3f ms for the token\t%.0f GB/s of K, read and written\n", depth, 1e3 * median,
               1e3 * median_of(tokens), bytes * s->n_past / median / 1e9);
        fflush(stdout);
    }
}

// ---- losses ------------------------------------------------------------------------------------------

// Returns -ln of the probability that a row of logits gives to a token.
static double loss_of(const float * logits, int n_vocab, llama_token token) {
    const float highest = *std::max_element(logits, logits + n_vocab);
    double sum          = 0.0;
    for (int i = 0; i < n_vocab; ++i) {
        sum += std::exp(logits[i] - highest);
    }
    return std::log(sum) + highest - logits[token];
}

// Returns the losses of the tokens that follow each of `count` rows of logits.
static std::vector<double> losses_of(const float * logits, int n_vocab, const llama_token * next, int count) {
    const int n_threads = std::min<int>(count, std::thread::hardware_concurrency());
    std::vector<double> result(count);
    std::vector<std::thread> threads;
    for (int t = 0; t < n_threads; ++t) {
        threads.emplace_back([&, t] {
            for (int i = t; i < count; i += n_threads) {
                result[i] = loss_of(logits + (size_t)i * n_vocab, n_vocab, next[i]);
            }
        });
    }
    for (auto & thread : threads) {
        thread.join();
    }
    return result;
}

static ggml_type type_of(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const char * known = ggml_type_name((ggml_type)i);
        if (known && name == known) {
            return (ggml_type)i;
        }
    }
    exit(1);
}

static void losses(const char * path, const std::string & device, const std::string & kind, const std::string & cache,
                   int n_batch) {
    std::vector<llama_token> tokens;
    for (llama_token token; fread(&token, sizeof(token), 1, stdin) == 1;) {
        tokens.push_back(token);
    }
    const int n_tokens = (int)tokens.size();
    const auto type    = type_of(cache);
    const bool flash   = type != GGML_TYPE_F32; // CUDA's flash attention does not support f32
    const auto s       = make_session(path, device, kind, n_tokens, type, flash);
    const int n_vocab  = llama_vocab_n_tokens(llama_model_get_vocab(s->model));
    llama_batch batch  = llama_batch_init(n_batch, 0, 1);
    for (int first = 0; first < n_tokens; first += n_batch) {
        batch.n_tokens = std::min(n_batch, n_tokens - first);
        for (int i = 0; i < batch.n_tokens; ++i) {
            batch.token[i]     = tokens[first + i];
            batch.pos[i]       = first + i;
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i]    = true;
        }
        if (llama_decode(s->ctx, batch) != 0) {
            exit(1);
        }
        const int count = std::min(batch.n_tokens, n_tokens - 1 - first);
        for (double loss : losses_of(llama_get_logits(s->ctx), n_vocab, &tokens[first + 1], count)) {
            printf("%.5f\n", loss);
        }
    }
    llama_batch_free(batch);
    const yarn_gguf_dynamic_state state = dynamic_state(s->ctx);
    report("rotations", (double)state.n_rotations);
    report("factor", state.factor);
}

int main(int argc, char ** argv) {
    llama_log_set(
        [](ggml_log_level level, const char * text, void *) {
            if (level == GGML_LOG_LEVEL_ERROR) {
                fputs(text, stderr);
            }
        },
        nullptr);
    ggml_backend_load_all();
    const std::string what = argc > 1 ? argv[1] : "";
    if (what == "write" && argc == 4) {
        write(argv[2], argv[3]);
    } else if (what == "widen" && argc == 4) {
        widen(argv[2], argv[3]);
    } else if (what == "logits" && argc == 3) {
        logits(argv[2]);
    } else if (what == "speed" && argc > 6) {
        speed(argv[2], argv[3], argv[4], std::atoi(argv[5]), argv + 6);
    } else if (what == "rotations" && argc == 5) {
        rotations(argv[2], argv[3], std::atoi(argv[4]));
    } else if (what == "losses" && argc == 7) {
        losses(argv[2], argv[3], argv[4], argv[5], std::atoi(argv[6]));
    } else if (what == "growth" && argc == 7) {
        growth(argv[2], argv[3], argv[4], std::atoi(argv[5]), std::atoi(argv[6]));
    } else {
        return 1;
    }
    return 0;
}
