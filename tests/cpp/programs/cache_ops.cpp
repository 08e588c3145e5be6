// Operations on the cache, under every way to scale the rope, on upstream's small random models of every architecture.
//
// Attention's output projections are zero in all layers except the last. Then the input of a layer's keys depends on
// the tokens alone, not on what the tokens see. So after an operation, the cached keys must equal those of a fresh
// context that reads the same tokens at their new positions. So must the logits of the next token.
//
//     cache_ops [NAME…]    prints a line for each form of an architecture, with fields separated by tabs:
//         name, form, "none", why there is no such model
//         name, form, a field for each way of SCALINGS, each with a verdict and a text, separated by ": "
//             "right":   the largest relative errors of keys in f32, of logits, and of keys in q8_0; "-": no such keys
//             "refused": why positions cannot change; copies, cuts and the text itself are right
//             "none":    why there is no such scaling
//             "wrong":   the first operation whose result is wrong, and what is wrong
#include "small_models.h"

#include <cstdarg>

static const uint32_t N_CTX_ORIG = 16;
static const uint32_t N_TOKENS   = 40;
static const uint32_t N_UBATCH   = 16;
static const double FACTOR       = 8.0;

// relative errors; a wrong rotation makes 0.1 and more
static const std::map<std::string, double> LIMITS = {{"f32", 1e-6}, {"logits", 1e-4}, {"q8_0", 4e-2}};

// ---- scalings ----------------------------------------------------------------------------------------

static const std::vector<std::string> SCALINGS = {"none", "file", "caller", "table", "dynamic"};

static void add_scaling(gguf_context * gguf, const std::string & prefix) {
    gguf_set_val_str(gguf, (prefix + "rope.scaling.type").c_str(), "yarn");
    gguf_set_val_f32(gguf, (prefix + "rope.scaling.factor").c_str(), (float)FACTOR);
    gguf_set_val_u32(gguf, (prefix + "rope.scaling.original_context_length").c_str(), N_CTX_ORIG);
}

static void scale_by_caller(llama_context_params & params, double factor) {
    params.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_YARN;
    params.rope_freq_scale   = (float)(1.0 / factor);
    params.yarn_ext_factor   = 1.0f;
    params.yarn_attn_factor  = 1.0f;
    params.yarn_beta_fast    = 32.0f;
    params.yarn_beta_slow    = 1.0f;
    params.yarn_orig_ctx     = N_CTX_ORIG;
}

static bool scale_by_table(llama_context * ctx) {
    const auto & hparams = llama_get_model(ctx)->hparams;
    std::vector<double> inv_freq(hparams.n_rot_full / 2);
    for (size_t i = 0; i < inv_freq.size(); ++i) {
        inv_freq[i] = std::pow(hparams.rope_freq_base_train, -2.0 * i / hparams.n_rot_full) / (1.0 + 0.25 * i);
    }
    return yarn_gguf_set_rope_frequencies(ctx, inv_freq.data(), inv_freq.size(), (float)FACTOR, 1.2f);
}

static bool scale_dynamically(llama_context * ctx) {
    yarn_gguf_dynamic_scaling policy = yarn_gguf_dynamic_scaling_default();
    policy.n_ctx_orig                = N_CTX_ORIG;
    return yarn_gguf_set_dynamic_scaling(ctx, &policy);
}

// ---- contexts ----------------------------------------------------------------------------------------

struct setup {
    llama_model * model;
    std::string scaling;
    ggml_type type_k = GGML_TYPE_F32;
    bool streams     = false; // each sequence has a part of the cache of its own
};

// Returns a context for two sequences; null, with first_error, if it cannot be scaled so. dynamic_factor: if > 0, the
// context is scaled by this constant factor, as the witness of a dynamic one.
static llama_context_ptr make_context(const setup & s, double dynamic_factor = 0.0) {
    const bool is_mla           = s.model->hparams.is_mla() || s.model->arch == LLM_ARCH_DEEPSEEK4;
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = 256;
    params.n_ubatch             = N_UBATCH;
    params.n_seq_max            = 2;
    params.kv_unified           = !s.streams;
    params.n_threads            = 1;
    params.n_threads_batch      = 1;
    params.swa_full             = true;
    params.type_k               = s.type_k;
    params.type_v               = is_mla ? s.type_k : GGML_TYPE_F32; // one cache for both
    params.flash_attn_type =
        is_mla && ggml_is_quantized(s.type_k) ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    if (s.scaling == "caller") {
        scale_by_caller(params, FACTOR);
    } else if (s.scaling == "dynamic" && dynamic_factor > 1.0) {
        scale_by_caller(params, dynamic_factor);
    }
    first_error.clear();
    llama_context_ptr ctx(llama_init_from_model(s.model, params));
    const bool is_refused = !ctx || (s.scaling == "table" && !scale_by_table(ctx.get())) ||
                            (s.scaling == "dynamic" && dynamic_factor == 0.0 && !scale_dynamically(ctx.get()));
    return is_refused ? nullptr : std::move(ctx);
}

// ---- texts -------------------------------------------------------------------------------------------

struct word {
    llama_token token;
    llama_pos pos;
};

using text = std::vector<word>;

static text first_text() {
    static const std::vector<llama_token> tokens = get_tokens(N_TOKENS + 1, 128, SEED);
    text words;
    for (uint32_t i = 0; i < N_TOKENS; ++i) {
        words.push_back({tokens[i], (llama_pos)i});
    }
    return words;
}

static llama_batch batch_of(const std::vector<llama_seq_id> & sequences, const word * words, size_t n) {
    llama_batch batch = llama_batch_init((int32_t)n, 0, (int32_t)sequences.size());
    batch.n_tokens    = (int32_t)n;
    for (size_t i = 0; i < n; ++i) {
        batch.token[i]    = words[i].token;
        batch.pos[i]      = words[i].pos;
        batch.n_seq_id[i] = (int32_t)sequences.size();
        batch.logits[i]   = i == n - 1;
        std::copy(sequences.begin(), sequences.end(), batch.seq_id[i]);
    }
    return batch;
}

// The encoder of a model that has one always reads the same words, for both sequences.
static int encode(llama_context * ctx) {
    const text words  = first_text();
    llama_batch batch = batch_of({0, 1}, words.data(), N_UBATCH);
    const int failed  = llama_encode(ctx, batch);
    llama_batch_free(batch);
    return failed;
}

static void decode(llama_context * ctx, llama_seq_id seq, const word * words, size_t n, bool is_first) {
    llama_batch batch  = batch_of({seq}, words, n);
    const auto * model = llama_get_model(ctx);
    const bool encodes = llama_model_has_encoder(model) && llama_model_has_decoder(model) && is_first;
    const int failed   = (encodes && encode(ctx)) || llama_decode(ctx, batch);
    llama_batch_free(batch);
    if (failed) {
        throw std::runtime_error("cannot decode: " + first_error);
    }
}

// Reads a text into a sequence. Words of equal position go into one batch, as the library demands.
static void read(llama_context * ctx, llama_seq_id seq, const text & words) {
    for (size_t first = 0; first < words.size();) {
        size_t stop = std::min(first + N_UBATCH, words.size());
        while (stop < words.size() && words[stop].pos == words[stop - 1].pos) {
            --stop;
        }
        decode(ctx, seq, &words[first], stop - first, first == 0);
        first = stop;
    }
}

// The token that follows a text. To read it applies pending changes of positions to the keys.
static word next_of(const text & words) {
    return {get_tokens(N_TOKENS + 1, 128, SEED).back(), words.back().pos + 1};
}

// ---- what a cache holds ------------------------------------------------------------------------------

struct place {
    size_t cache;
    uint32_t layer;
    llama_pos pos;
    llama_token token;

    bool operator<(const place & other) const {
        return std::tie(cache, layer, pos, token) < std::tie(other.cache, other.layer, other.pos, other.token);
    }
};

using keys = std::map<place, std::vector<float>>;

// Returns the numbers in a cell that were written for it. (GLM 5 Next writes the last third for some cells alone.)
static std::vector<float> row_of(const ggml_tensor * k, size_t offset) {
    std::vector<uint8_t> bytes(ggml_row_size(k->type, k->ne[0]));
    ggml_backend_tensor_get(k, bytes.data(), offset, bytes.size());
    std::vector<float> floats(k->ne[0]);
    if (k->type == GGML_TYPE_F32) {
        memcpy(floats.data(), bytes.data(), bytes.size());
    } else {
        ggml_get_type_traits(k->type)->to_float(bytes.data(), floats.data(), k->ne[0]);
    }
    return floats;
}

static keys keys_of(llama_context * ctx, llama_seq_id seq) {
    const bool has_groups = llama_get_model(ctx)->hparams.indexer_kpool > 0;
    keys found;
    const auto caches = caches_of(llama_get_memory(ctx));
    for (size_t c = 0; c < caches.size(); ++c) {
        const auto & cells = caches[c]->get_cells(seq);
        for (uint32_t layer : caches[c]->get_layer_ids()) {
            const ggml_tensor * k = caches[c]->get_k_storage(layer);
            for (uint32_t i = 0; i < cells.size(); ++i) {
                if (!cells.is_empty(i) && cells.seq_has(i, seq)) {
                    auto & row = found[{c, layer, cells.pos_get(i), cells.ext_get(i).tok}];
                    row        = row_of(k, caches[c]->get_stream(seq) * k->nb[2] + i * k->nb[1]);
                    row.resize(has_groups && c == 1 ? row.size() / 3 * 2 : row.size()); // see row_of
                }
            }
        }
    }
    return found;
}

// Returns the last token's logits without those that are masked (Chameleon's).
static std::vector<float> logits_of(llama_context * ctx) {
    const float * all = llama_get_logits_ith(ctx, -1);
    const int n       = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
    std::vector<float> logits;
    std::copy_if(all, all + n, std::back_inserter(logits), [](float x) { return x > -1e30f; });
    return logits;
}

// ---- comparing ---------------------------------------------------------------------------------------

struct outcome {
    std::map<std::string, double> errors; // "f32", "q8_0", "logits"

    // Remembers the largest error. Throws if it exceeds the limit.
    void add(const std::string & what, double error) {
        errors[what] = std::max(errors[what], error);
        if (!(error <= LIMITS.at(what))) {
            throw std::runtime_error(what + " differs by " + number(error));
        }
    }

    std::string to_string() const {
        std::vector<std::string> parts;
        for (const auto & [what, _] : LIMITS) {
            parts.push_back(errors.count(what) ? number(errors.at(what)) : "-");
        }
        return joined(parts, " ");
    }
};

static std::string format_text(const char * format, ...) {
    char buffer[512];
    va_list args;
    va_start(args, format);
    vsnprintf(buffer, sizeof(buffer), format, args);
    va_end(args);
    return buffer;
}

// Returns the largest relative error of the keys in a layer. Throws if the caches do not hold the same words. In layers
// with a sliding window, words outside of it may be overwritten.
static double error_of(const llama_model & model, const keys & got, const keys & expected) {
    std::map<std::pair<size_t, uint32_t>, std::pair<std::vector<float>, std::vector<float>>> layers;
    const auto require_window = [&](const place & where) {
        if (!model.hparams.is_swa(where.layer)) {
            throw std::runtime_error(format_text("cells differ at position %d of layer %u", where.pos, where.layer));
        }
    };
    for (const auto & [where, key] : expected) {
        const auto found = got.find(where);
        if (found == got.end()) {
            require_window(where);
            continue;
        }
        auto & [ours, theirs] = layers[{where.cache, where.layer}];
        ours.insert(ours.end(), found->second.begin(), found->second.end());
        theirs.insert(theirs.end(), key.begin(), key.end());
    }
    for (const auto & [where, _] : got) {
        if (expected.find(where) == expected.end()) {
            require_window(where);
        }
    }
    double worst = 0.0;
    for (const auto & [_, layer] : layers) {
        const double error = relative_error(layer.first, layer.second);
        worst              = std::isnan(worst) || error <= worst ? worst : error;
    }
    return worst;
}

// Compares a sequence with a fresh context that reads `words`. Both then hold the next token, too.
static void compare(const setup & s, llama_context * ctx, llama_seq_id seq, const text & words, outcome & result) {
    const word next = next_of(words);
    decode(ctx, seq, &next, 1, false);
    const double factor = s.scaling == "dynamic" ? yarn_gguf_get_dynamic_state(ctx).factor : 0.0;
    const auto fresh    = make_context(s, factor);
    if (!fresh) {
        throw std::runtime_error("no fresh context: " + first_error);
    }
    read(fresh.get(), seq, words);
    decode(fresh.get(), seq, &next, 1, false);
    result.add(ggml_type_name(s.type_k), error_of(*s.model, keys_of(ctx, seq), keys_of(fresh.get(), seq)));
    if (s.type_k == GGML_TYPE_F32) {
        result.add("logits", relative_error(logits_of(ctx), logits_of(fresh.get())));
    }
}

// ---- operations --------------------------------------------------------------------------------------

static void move(text & words, size_t first, size_t stop, llama_pos delta, int divisor = 1) {
    for (size_t i = first; i < stop; ++i) {
        words[i].pos = (words[i].pos + delta) / divisor;
    }
}

static void add(const setup & s, llama_context * ctx, text & words, outcome & result) {
    llama_memory_seq_add(llama_get_memory(ctx), 0, 0, -1, 8);
    move(words, 0, words.size(), 8);
    compare(s, ctx, 0, words, result);
}

// a context shift: remove a part, close the gap
static void remove_and_add(const setup & s, llama_context * ctx, text & words, outcome & result) {
    if (!llama_memory_seq_rm(llama_get_memory(ctx), 0, 8, 16)) {
        return; // a recurrent state cannot forget a part
    }
    llama_memory_seq_add(llama_get_memory(ctx), 0, 16, -1, -8);
    words.erase(words.begin() + 8, words.begin() + 16);
    move(words, 8, words.size(), -8);
    compare(s, ctx, 0, words, result);
}

// self-extend: groups of words have one position; some words are moved first
static void divide(const setup & s, llama_context * ctx, text & words, outcome & result) {
    llama_memory_seq_add(llama_get_memory(ctx), 0, 0, -1, 8);
    llama_memory_seq_div(llama_get_memory(ctx), 0, 0, -1, 2);
    move(words, 0, words.size(), 8, 2);
    compare(s, ctx, 0, words, result);
}

static void copy(const setup & s, llama_context * ctx, text & words, outcome & result) {
    llama_memory_seq_cp(llama_get_memory(ctx), 0, 1, -1, -1);
    compare(s, ctx, 1, words, result);
    compare(s, ctx, 0, words, result);
}

static void copy_and_add(const setup & s, llama_context * ctx, text & words, outcome & result) {
    llama_memory_seq_cp(llama_get_memory(ctx), 0, 1, -1, -1);
    llama_memory_seq_rm(llama_get_memory(ctx), 0, -1, -1);
    llama_memory_seq_add(llama_get_memory(ctx), 1, 0, -1, 8);
    move(words, 0, words.size(), 8);
    compare(s, ctx, 1, words, result);
}

// A change of positions is pending when the sequence is copied. The copy moves on, if it shares no cell.
static void add_and_copy(const setup & s, llama_context * ctx, text & words, outcome & result) {
    llama_memory_seq_add(llama_get_memory(ctx), 0, 0, -1, 8);
    move(words, 0, words.size(), 8);
    text copied = words;
    llama_memory_seq_cp(llama_get_memory(ctx), 0, 1, -1, -1);
    first_error.clear();
    llama_memory_seq_add(llama_get_memory(ctx), 1, 0, -1, 4);
    if (first_error.empty()) {
        move(copied, 0, copied.size(), 4);
    }
    compare(s, ctx, 1, copied, result);
    compare(s, ctx, 0, words, result);
}

static void copy_a_part(const setup & s, llama_context * ctx, text & words, outcome & result) {
    llama_memory_seq_cp(llama_get_memory(ctx), 0, 1, 0, 24);
    if (llama_memory_seq_pos_max(llama_get_memory(ctx), 1) < 0) {
        return; // refused
    }
    words.resize(24);
    compare(s, ctx, 1, words, result);
}

static void remove(const setup & s, llama_context * ctx, text & words, outcome & result) {
    if (!llama_memory_seq_rm(llama_get_memory(ctx), 0, 24, -1)) {
        return; // a recurrent state cannot go back
    }
    words.resize(24);
    compare(s, ctx, 0, words, result);
}

struct operation {
    const char * name;
    void (*run)(const setup &, llama_context *, text &, outcome &);
    bool moves;   // changes positions
    bool streams; // needs separate parts of the cache
    bool q8_0;    // also with quantized keys
};

static const operation OPERATIONS[] = {
    {"seq_add", add, true, false, true},
    {"seq_rm and seq_add", remove_and_add, true, false, false},
    {"seq_add and seq_div", divide, true, false, true},
    {"seq_cp", copy, false, false, false},
    {"seq_cp and seq_add", copy_and_add, true, false, false},
    {"seq_add, seq_cp and seq_add", add_and_copy, true, false, false},
    {"seq_cp to another stream", copy, false, true, true},
    {"seq_add, seq_cp to another stream and seq_add", add_and_copy, true, true, true},
    {"seq_cp of a part", copy_a_part, false, false, false},
    {"seq_cp of a part to another stream", copy_a_part, false, true, false},
    {"seq_rm", remove, false, false, false},
};

static void run(const operation & op, setup s, outcome & result) {
    s.streams = op.streams;
    for (ggml_type type : {GGML_TYPE_F32, GGML_TYPE_Q8_0}) {
        if (type == GGML_TYPE_Q8_0 && !(op.q8_0 && can_have(*s.model, type))) {
            continue;
        }
        s.type_k       = type;
        const auto ctx = make_context(s);
        if (!ctx) {
            throw std::runtime_error("no context: " + first_error);
        }
        text words = first_text();
        read(ctx.get(), 0, words);
        op.run(s, ctx.get(), words, result);
    }
}

// Throws unless an attempt to change positions is an error that changes nothing.
static void require_refusal(const setup & s) {
    const auto ctx    = make_context(s);
    const text words  = first_text();
    const auto memory = llama_get_memory(ctx.get());
    read(ctx.get(), 0, words);
    const keys before = keys_of(ctx.get(), 0);
    for (int divisor : {1, 2}) {
        first_error.clear();
        if (divisor == 1) {
            llama_memory_seq_add(memory, 0, 0, -1, 8);
        } else {
            llama_memory_seq_div(memory, 0, 0, -1, divisor);
        }
        if (first_error.empty() || llama_memory_seq_pos_max(memory, 0) != N_TOKENS - 1) {
            throw std::runtime_error("it is no error, although llama_memory_can_shift is false");
        }
    }
    const std::string reason = first_error;
    outcome unused;
    if (error_of(*s.model, keys_of(ctx.get(), 0), before) != 0.0) {
        throw std::runtime_error("a refusal changes keys");
    }
    compare(s, ctx.get(), 0, words, unused);
    first_error = reason;
}

static std::string outcome_of(const setup & s) {
    const auto ctx = make_context(s);
    if (!ctx) {
        return "none: " + without_function(first_error);
    }
    const bool can_shift = llama_memory_can_shift(llama_get_memory(ctx.get()));
    const char * name    = "a refusal";
    outcome result;
    std::string reason;
    try {
        if (!can_shift) {
            require_refusal(s);
            reason = without_function(first_error);
        }
        for (const operation & op : OPERATIONS) {
            name = op.name;
            const bool is_possible = !op.streams || s.model->hparams.n_rel_attn_bkts == 0; // T5 reads one stream alone
            if (is_possible && (can_shift || !op.moves)) {
                run(op, s, result);
            }
        }
    } catch (const std::exception & error) {
        return std::string("wrong: ") + name + ": " + error.what();
    }
    return can_shift ? "right: " + result.to_string() : "refused: " + reason;
}

static std::string examine(const form & f) {
    if (f.arch == LLM_ARCH_JINA_BERT_V2 || f.arch == LLM_ARCH_RWKV6QWEN2) {
        return "none\tupstream's code aborts over it";
    }
    std::vector<std::string> fields;
    for (const auto & scaling : SCALINGS) {
        const auto model = make_model(f, scaling == "file" ? add_scaling : edit_keys());
        if (!model) {
            return "none\t" + without_function(first_error);
        }
        attend(*model, (int)model->hparams.n_layer() - 1);
        const setup s = {model.get(), scaling};
        if (const auto ctx = make_context(s); ctx && !llama_get_memory(ctx.get())) {
            return "none\tthe context has no cache";
        }
        fields.push_back(outcome_of(s));
    }
    return joined(fields, "\t");
}

int main(int argc, char ** argv) {
    examine_each(argc, argv, examine);
}
