// The C API's functions on the rope scaling of a context. A context has one scaling in force: that of its parameters, a
// table of frequencies, or one that follows the text. Setting one ends the other.
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"
#include "llama-require.h"
#include "llama-rope-archs.h"
#include "llama-rope-caches.h"
#include "llama-rope-dynamic.h"
#include "llama-rope-frequencies.h"
#include "yarn-gguf.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

// Runs a function of the C API. Returns false, with the reason in the log, if it throws.
template <typename Function>
static bool attempt(const char * name, Function function) {
    try {
        function();
    } catch (const std::exception & error) {
        LLAMA_LOG_ERROR("%s: %s\n", name, error.what());
        return false;
    }
    return true;
}

static void require_empty_cache(llama_context & ctx) {
    bool is_empty         = llama_rope_caches_length(ctx) == 0.0;
    llama_memory_t memory = ctx.get_memory();
    for (llama_seq_id s = 0; memory && s < (llama_seq_id)ctx.n_seq_max(); ++s) {
        is_empty &= llama_memory_seq_pos_max(memory, s) < 0;
    }
    require(is_empty, "the cache holds keys that were rotated by other frequencies: clear it first");
}

// ---- a table -----------------------------------------------------------------------------------------

static void require_table(const llama_model & model, const double * inv_freq, size_t n, float factor,
                          float attention_factor) {
    const uint32_t n_pairs = model.hparams.n_rot_full / 2;
    require(n == n_pairs,
            format("%zu frequencies given, the model has %u pairs of rotary dimensions", n, n_pairs).c_str());
    const char * refusal = llama_rope_archs_table_refusal(model);
    require(!refusal, refusal);
    const auto is_positive = [](double x) { return std::isfinite(x) && x > 0.0; };
    require(inv_freq && std::all_of(inv_freq, inv_freq + n, is_positive) && is_positive(factor) &&
                is_positive(attention_factor),
            "frequencies, factor and attention_factor must be numbers > 0");
}

bool yarn_gguf_set_rope_frequencies(llama_context * ctx, const double * inv_freq, size_t n, float factor,
                                    float attention_factor) {
    return attempt(__func__, [&] {
        require_table(ctx->get_model(), inv_freq, n, factor, attention_factor);
        require_empty_cache(*ctx);
        auto table = llama_rope_frequencies_make(std::vector<double>(inv_freq, inv_freq + n));
        ctx->set_rope_dynamic(nullptr);
        ctx->set_rope_frequencies(std::move(table), 1.0f / factor, attention_factor);
        if (ctx->get_memory()) {
            ctx->reserve_largest_graph(); // a context shift reads the ropes of the last graph
        }
    });
}

// ---- one that follows the text -----------------------------------------------------------------------

yarn_gguf_dynamic_scaling yarn_gguf_dynamic_scaling_default(void) {
    yarn_gguf_dynamic_scaling policy = {};
    policy.method                    = YARN_GGUF_METHOD_YARN;
    policy.factor                    = 1.0f;
    policy.ntk_factor                = 1.0f;
    policy.step                      = 1.0905077f; // 2^(1/8)
    policy.beta_fast                 = 32.0f;
    policy.beta_slow                 = 1.0f;
    policy.truncate                  = true;
    return policy;
}

bool yarn_gguf_set_dynamic_scaling(llama_context * ctx, const yarn_gguf_dynamic_scaling * policy) {
    return attempt(__func__, [&] {
        require(ctx->get_memory(), "the context has no cache");
        require_empty_cache(*ctx);
        ctx->set_rope_dynamic(std::make_shared<llama_rope_dynamic>(*policy, *ctx));
    });
}

void yarn_gguf_reserve_context(llama_context * ctx, uint32_t n_tokens) {
    if (auto dynamic = ctx->get_cparams().rope_dynamic) {
        dynamic->policy.n_ctx_reserved = n_tokens;
    }
}

yarn_gguf_dynamic_state yarn_gguf_get_dynamic_state(const llama_context * ctx) {
    yarn_gguf_dynamic_state state = {};
    state.factor                  = 1.0;
    if (auto dynamic = ctx->get_cparams().rope_dynamic) {
        state.factor         = dynamic->factor;
        state.n_rotations    = dynamic->n_rotations;
        state.t_rotations_us = dynamic->t_rotations_us;
    }
    return state;
}
