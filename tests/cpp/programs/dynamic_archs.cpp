// Dynamic scaling on upstream's small random models of every architecture (its tests/test-llama-archs.cpp).
//
// Attention's output projections are zero in all layers, or in all layers except one. Then the input of a layer's keys
// depends on the tokens alone. So in every layer, keys cached while s grew must equal the keys that static scaling at
// the final s caches. The logits must be equal too, if the layer that attends is the last scaled one.
//
//     dynamic_archs [NAME…]    prints a line for each form of an architecture, with fields separated by tabs:
//         name, form, "refused", reason, whether the context still works as before, whether static scaling has an effect
//         name, form, "accepted", layers that static scaling reaches, layers that it does not reach, relative errors:
//             of keys in scaled layers, of keys in other layers, and of all keys after a context shift, in f32; these
//             three in f16 and in q8_0; of logits in f32; 0 if a text that fits is read bit for bit as without scaling
//         name, form, "none", why there is no such model
#include "small_models.h"

static const uint32_t N_CTX_ORIG = 16;
static const uint32_t N_TOKENS   = 128;
static const double FACTOR       = 8.0; // final s
static const uint32_t N_SHIFT    = 8;   // all positions are then raised by this, before a last token
static const uint32_t N_CTX      = 144;
static const uint32_t N_UBATCH   = 16;
static const uint32_t N_SINGLE   = 24; // last tokens, read one at a time, so that s changes within the last window

// ---- contexts ----------------------------------------------------------------------------------------

// factor: s of static YaRN; 1: no scaling
static llama_context_ptr make_context(llama_model * model, ggml_type type_k, double factor) {
    const bool is_mla           = model->hparams.is_mla();
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = N_CTX;
    params.n_ubatch             = N_UBATCH;
    params.n_threads            = 1;
    params.n_threads_batch      = 1;
    params.swa_full             = true;
    params.type_k               = type_k;
    params.type_v               = is_mla ? type_k : GGML_TYPE_F32; // MLA has one cache for both
    params.flash_attn_type =
        is_mla && ggml_is_quantized(type_k) ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.rope_scaling_type = factor > 1.0 ? LLAMA_ROPE_SCALING_TYPE_YARN : LLAMA_ROPE_SCALING_TYPE_NONE;
    params.rope_freq_scale   = (float)(1.0 / factor);
    params.yarn_ext_factor   = factor > 1.0 ? 1.0f : 0.0f;
    params.yarn_attn_factor  = 1.0f;
    params.yarn_beta_fast    = 32.0f;
    params.yarn_beta_slow    = 1.0f;
    params.yarn_orig_ctx     = N_CTX_ORIG;
    return llama_context_ptr(llama_init_from_model(model, params));
}

using layer_keys = std::map<int, std::vector<float>>; // layer -> keys as they are cached

struct reading {
    layer_keys keys;
    std::vector<float> logits; // for the last token
    double factor = 1.0;       // final s, under dynamic scaling

    layer_keys shifted_keys; // after a context shift
    double shifted_factor = 1.0;
};

// Returns all keys except the first token's. That token leaves the window, so its cell may hold another token.
static std::vector<float> floats_of(const ggml_tensor * k) {
    const size_t n = (size_t)k->ne[0] * (N_TOKENS - 1);
    std::vector<uint8_t> bytes(ggml_row_size(k->type, n));
    ggml_backend_tensor_get(k, bytes.data(), ggml_row_size(k->type, k->ne[0]), bytes.size());
    std::vector<float> floats(n);
    if (k->type == GGML_TYPE_F32) {
        memcpy(floats.data(), bytes.data(), bytes.size());
    } else {
        ggml_get_type_traits(k->type)->to_float(bytes.data(), floats.data(), n);
    }
    return floats;
}

static layer_keys keys_of(llama_context * ctx) {
    layer_keys keys;
    for (const llama_kv_cache * kv : caches_of(llama_get_memory(ctx))) {
        for (uint32_t layer : kv->get_layer_ids()) {
            keys[layer] = floats_of(kv->get_k_storage(layer));
        }
    }
    return keys;
}

// Reads `count` tokens of the text from token `first` on, at positions from first + shift on.
static void decode(llama_context * ctx, uint32_t first, uint32_t count, uint32_t shift) {
    static const std::vector<llama_token> text = get_tokens(N_TOKENS + 1, 128, SEED);
    llama_batch batch                          = llama_batch_init(count, 0, 1);
    batch.n_tokens                             = count;
    for (uint32_t i = 0; i < count; ++i) {
        batch.token[i]     = text[first + i];
        batch.pos[i]       = first + i + shift;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i]    = i == count - 1;
    }
    const auto * model = llama_get_model(ctx);
    const bool encodes = llama_model_has_encoder(model) && llama_model_has_decoder(model) && first == 0;
    const int failed   = (encodes && llama_encode(ctx, batch)) || llama_decode(ctx, batch);
    llama_batch_free(batch);
    if (failed) {
        throw std::runtime_error("cannot decode: " + first_error);
    }
}

static reading read_text(llama_context * ctx, uint32_t shift = 0) {
    for (uint32_t first = 0; first < N_TOKENS - N_SINGLE; first += N_UBATCH) {
        decode(ctx, first, std::min(N_UBATCH, N_TOKENS - N_SINGLE - first), shift);
    }
    for (uint32_t first = N_TOKENS - N_SINGLE; first < N_TOKENS; ++first) {
        decode(ctx, first, 1, shift);
    }
    reading got;
    const float * logits = llama_get_logits_ith(ctx, -1);
    got.logits.assign(logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))));
    got.keys   = keys_of(ctx);
    got.factor = yarn_gguf_get_dynamic_state(ctx).factor;
    return got;
}

static void shift_text(llama_context * ctx, reading & got) {
    llama_memory_seq_add(llama_get_memory(ctx), 0, 0, -1, N_SHIFT);
    decode(ctx, N_TOKENS, 1, N_SHIFT);
    got.shifted_keys   = keys_of(ctx);
    got.shifted_factor = yarn_gguf_get_dynamic_state(ctx).factor;
}

static reading read_static(llama_model * model, ggml_type type_k, double factor, uint32_t shift = 0) {
    const auto ctx = make_context(model, type_k, factor);
    if (!ctx) {
        throw std::runtime_error("no context: " + first_error);
    }
    return read_text(ctx.get(), shift);
}

static bool make_dynamic(llama_context * ctx) {
    yarn_gguf_dynamic_scaling policy = yarn_gguf_dynamic_scaling_default();
    policy.n_ctx_orig                = N_CTX_ORIG;
    first_error.clear();
    return yarn_gguf_set_dynamic_scaling(ctx, &policy);
}

static reading read_dynamic(llama_model * model, ggml_type type_k) {
    const auto ctx = make_context(model, type_k, 1.0);
    if (!ctx || !make_dynamic(ctx.get())) {
        throw std::runtime_error("no dynamic context: " + first_error);
    }
    reading got = read_text(ctx.get());
    shift_text(ctx.get(), got);
    return got;
}

// ---- comparing ---------------------------------------------------------------------------------------

// Returns the largest relative error in some layers; NaN if any error is NaN.
static double error_of(const std::vector<int> & layers, const layer_keys & got, const layer_keys & expected) {
    double worst = 0.0;
    for (int layer : layers) {
        const double error = relative_error(got.at(layer), expected.at(layer));
        worst              = std::isnan(worst) || error <= worst ? worst : error;
    }
    return worst;
}

static std::string joined(const std::vector<int> & layers) {
    std::vector<std::string> parts;
    for (int layer : layers) {
        parts.push_back(std::to_string(layer));
    }
    return joined(parts, " ");
}

static std::string logits_error(llama_model * model, int attending) {
    attend(*model, attending);
    const auto expected = read_static(model, GGML_TYPE_F32, FACTOR);
    if (relative_error(read_static(model, GGML_TYPE_F32, 1.0).logits, expected.logits) < 1e-3) {
        return "-"; // the logits do not depend on this layer's scaling
    }
    return number(relative_error(read_dynamic(model, GGML_TYPE_F32).logits, expected.logits));
}

static std::vector<std::string> errors_of(llama_model * model, ggml_type type, const std::vector<int> & scaled,
                                          const std::vector<int> & others) {
    if (!can_have(*model, type)) {
        return {"-", "-", "-"};
    }
    const reading got      = read_dynamic(model, type);
    const reading expected = read_static(model, type, got.factor);
    const reading shifted  = read_static(model, type, got.shifted_factor, N_SHIFT);
    std::vector<int> both  = scaled;
    both.insert(both.end(), others.begin(), others.end());
    return {number(error_of(scaled, got.keys, expected.keys)), number(error_of(others, got.keys, expected.keys)),
            number(error_of(both, got.shifted_keys, shifted.keys))};
}

static bool is_reached_by_static(llama_model * model) {
    return read_static(model, GGML_TYPE_F32, FACTOR).logits != read_static(model, GGML_TYPE_F32, 1.0).logits;
}

// Returns whether a text that fits the original context is read bit for bit as without scaling.
static bool is_plain_below(llama_model * model) {
    const auto plain   = make_context(model, GGML_TYPE_F16, 1.0);
    const auto dynamic = make_context(model, GGML_TYPE_F16, 1.0);
    make_dynamic(dynamic.get());
    decode(plain.get(), 0, N_CTX_ORIG, 0);
    decode(dynamic.get(), 0, N_CTX_ORIG, 0);
    const size_t size = llama_vocab_n_tokens(llama_model_get_vocab(model)) * sizeof(float);
    return memcmp(llama_get_logits_ith(plain.get(), -1), llama_get_logits_ith(dynamic.get(), -1), size) == 0;
}

static std::string accepted(llama_model * model, const reading & plain) {
    const auto reached = read_static(model, GGML_TYPE_F32, FACTOR).keys;
    std::vector<int> scaled;
    std::vector<int> others;
    for (const auto & [layer, keys] : reached) {
        (keys == plain.keys.at(layer) ? others : scaled).push_back(layer);
    }
    std::vector<std::string> fields = {"accepted", joined(scaled), joined(others)};
    for (ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
        const auto errors = errors_of(model, type, scaled, others);
        fields.insert(fields.end(), errors.begin(), errors.end());
    }
    fields.push_back(scaled.empty() ? "-" : logits_error(model, scaled.back()));
    attend_everywhere(*model);
    fields.push_back(is_plain_below(model) ? "0" : "1");
    return joined(fields, "\t");
}

static std::string examine(const form & f) {
    if (f.arch == LLM_ARCH_JINA_BERT_V2 || f.arch == LLM_ARCH_RWKV6QWEN2) {
        return "none\tupstream's code aborts over it";
    }
    const auto model = make_model(f);
    const auto ctx   = model ? make_context(model.get(), GGML_TYPE_F32, 1.0) : nullptr;
    if (!ctx) {
        return "none\t" + without_function(first_error);
    }
    const bool is_dynamic    = make_dynamic(ctx.get());
    const std::string reason = without_function(first_error);
    const reading plain      = read_static(model.get(), GGML_TYPE_F32, 1.0);
    if (is_dynamic) {
        return accepted(model.get(), plain);
    }
    const reading got  = read_text(ctx.get());
    const bool goes_on = got.logits == plain.logits && got.keys == plain.keys;
    attend_everywhere(*model);
    return joined({"refused", reason, goes_on ? "yes" : "no", is_reached_by_static(model.get()) ? "yes" : "no"}, "\t");
}

int main(int argc, char ** argv) {
    examine_each(argc, argv, examine);
}
