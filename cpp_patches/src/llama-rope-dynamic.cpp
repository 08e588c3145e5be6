#include "llama-rope-dynamic.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-memory.h"
#include "llama-model.h"
#include "llama-require.h"
#include "llama-rope-archs.h"
#include "llama-rope-caches.h"
#include "llama-rope-frequencies.h"
#include "llama-rope-scaling.h"

#include <algorithm>

static void check_model(const llama_model & model) {
    const auto & hparams = model.hparams;
    require(hparams.rope_type != LLAMA_ROPE_TYPE_NONE && hparams.n_rot_full > 2, "the model has no rotary embedding");
    require(hparams.n_pos_per_embd() == 1, "the model's positions have several components (M-RoPE)");
    const char * refusal = llama_rope_archs_table_refusal(model);
    require(!refusal, refusal);
}

static llama_rope_rotation rotation_of(llama_context & ctx) {
    check_model(ctx.get_model());
    return llama_rope_rotation(ctx);
}

llama_rope_dynamic::llama_rope_dynamic(const yarn_gguf_dynamic_scaling & values, llama_context & ctx)
    : rotation(rotation_of(ctx)), policy(values, ctx.get_cparams().n_ctx_seq, rotation.step_min()),
      freq_base(ctx.get_cparams().rope_freq_base), n_dims((int)ctx.get_model().hparams.n_rot_full) {
    llama_rope_scaling_require_ramp(policy.at(1.0), (float)freq_base, (uint32_t)n_dims,
                                    {"n_ctx_orig", "beta_fast", "beta_slow", "rope_freq_base"});
    require(values.method != YARN_GGUF_METHOD_LONGROPE || 2 * values.n_factors == (size_t)n_dims,
            "short_factor and long_factor must have one number for each pair of rotary dimensions");
}

// Puts the frequencies of the factor in force.
void llama_rope_dynamic::use(llama_context & ctx) const {
    llama_rope_frequencies_ptr table;
    if (policy.has_table(factor)) {
        table = llama_rope_frequencies_make(policy.inv_freq(factor, freq_base, n_dims));
    }
    ctx.set_rope_frequencies(std::move(table), (float)(1.0 / factor), (float)policy.magnitude(factor));
}

void llama_rope_dynamic::begin(llama_context & ctx) const {
    if (policy.has_table(factor)) {
        use(ctx);
        ctx.reserve_largest_graph();
    }
}

bool llama_rope_dynamic::follow(llama_context & ctx, const llama_ubatch & ubatch) {
    const double before = llama_rope_caches_length(ctx);
    double length       = before;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        length = std::max(length, ubatch.pos[i] + 1.0);
    }
    const double wanted = policy.next(factor, length, before > 0.0);
    if (wanted != factor) {
        if (before <= length_rotated) { // no ubatch was computed since the last rotation, which may be under way
            ggml_backend_sched_synchronize(ctx.get_sched());
        }
        length_rotated = before;
    }
    return set_factor(ctx, wanted, before > 0.0);
}

bool llama_rope_dynamic::set_factor(llama_context & ctx, double wanted, bool rotate) {
    if (wanted == factor) {
        return true;
    }
    const double before   = factor;
    const bool same_graph = policy.has_table(wanted) == policy.has_table(before);
    factor                = wanted;
    use(ctx);
    if (rotate && !rotate_cached(ctx, before, wanted)) {
        LLAMA_LOG_ERROR("%s: some keys are rotated and others not: the cache is cleared\n", __func__);
        ctx.get_memory()->clear(true);
        return false;
    }
    if (!same_graph) {
        ctx.reserve_largest_graph();
    }
    return true;
}

bool llama_rope_dynamic::rotate_cached(llama_context & ctx, double from, double to) {
    const int64_t start = ggml_time_us();
    auto difference     = policy.inv_freq(to, freq_base, n_dims);
    const auto before   = policy.inv_freq(from, freq_base, n_dims);
    for (size_t i = 0; i < difference.size(); ++i) {
        difference[i] -= before[i];
    }
    if (!rotation.rotate(ctx, difference, (float)(policy.magnitude(to) / policy.magnitude(from)))) {
        return false;
    }
    n_rotations++;
    t_rotations_us += ggml_time_us() - start;
    return true;
}

void llama_context::set_rope_dynamic(std::shared_ptr<llama_rope_dynamic> dynamic) {
    const llama_cparams before = cparams;
    cparams.rope_dynamic       = std::move(dynamic);
    set_rope_frequencies(nullptr, 1.0f, 1.0f);
    if (!cparams.rope_dynamic) {
        return;
    }
    try {
        cparams.rope_dynamic->rotation.find_layers(*this);
    } catch (...) {
        cparams = before;
        throw;
    }
    cparams.rope_dynamic->rotation.reserve(*this);
    cparams.rope_dynamic->begin(*this);
}
