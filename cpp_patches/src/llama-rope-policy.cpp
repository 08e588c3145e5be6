#include "llama-rope-policy.h"

#include "llama-require.h"

#include <algorithm>
#include <cmath>

static_assert((int)ROPE_METHOD_LINEAR == (int)YARN_GGUF_METHOD_LINEAR, "at() casts one to the other");
static_assert((int)ROPE_METHOD_NTK == (int)YARN_GGUF_METHOD_NTK, "at() casts one to the other");
static_assert((int)ROPE_METHOD_BY_PARTS == (int)YARN_GGUF_METHOD_BY_PARTS, "at() casts one to the other");
static_assert((int)ROPE_METHOD_YARN == (int)YARN_GGUF_METHOD_YARN, "at() casts one to the other");

static void check(const yarn_gguf_dynamic_scaling & values) {
    require(values.method > YARN_GGUF_METHOD_NONE && values.method <= YARN_GGUF_METHOD_YARN,
            "method must be a yarn_gguf_method other than none");
    require(values.n_ctx_orig > 0, "n_ctx_orig must be the context that the model was trained with, in tokens");
    require(std::isfinite(values.step) && std::isfinite(values.factor) && std::isfinite(values.ntk_factor) &&
                std::isfinite(values.beta_fast),
            "numbers must be finite");
    require(values.step >= 1.0f, "step must be at least 1");
    require(values.factor >= 1.0f, "factor must be at least 1");
    require(values.ntk_factor >= 1.0f, "ntk_factor must be at least 1");
    require(values.beta_slow > 0.0f && values.beta_fast > values.beta_slow, "beta_fast must be above beta_slow");
}

llama_rope_policy::llama_rope_policy(const yarn_gguf_dynamic_scaling & values, uint32_t n_ctx, double step_min)
    : values(values), step_min(step_min) {
    check(values);
    require(values.step >= step_min,
            "rounding would undo rotations as small as this: take steps of at least 1.01, or a K cache of type f32");
    factor_min = std::max(1.0, (double)values.factor);
    factor_max = std::max(factor_min, (double)n_ctx / values.n_ctx_orig);
}

rope_scaling llama_rope_policy::at(double factor) const {
    rope_scaling s;
    s.method       = (rope_method)values.method;
    s.factor       = factor;
    s.n_ctx_orig   = values.n_ctx_orig;
    s.beta_fast    = values.beta_fast;
    s.beta_slow    = values.beta_slow;
    s.by_rotations = values.by_rotations;
    s.truncate     = values.truncate;
    if (s.method == ROPE_METHOD_NTK) {
        s.factor = rope_dynamic_ntk_factor(values.ntk_factor, factor);
    }
    return s;
}

double llama_rope_policy::next(double factor, double length, bool has_keys) const {
    const double wanted = needed_for(factor, length);
    return has_keys ? reachable(factor, wanted) : wanted;
}

double llama_rope_policy::needed_for(double factor, double length) const {
    const double needed   = length / values.n_ctx_orig;
    const double reserved = std::min((double)n_ctx_reserved / values.n_ctx_orig, factor_max);
    if (std::max(needed, reserved) <= factor_min) {
        return factor_min;
    }
    if (reserved >= needed) {
        return reserved; // what was asked for, and no more
    }
    if (values.step == 1.0f) {
        return needed;
    }
    // one step ahead of what is needed, but not ahead of the whole context
    const double steps = std::ceil(std::log(needed) / std::log((double)values.step) - 1e-9);
    const double ahead = std::max(needed, std::min(std::pow((double)values.step, steps), factor_max));
    if (needed <= factor && factor <= ahead) {
        return factor;
    }
    return ahead;
}

// Returns the factor nearest to the wanted one that cached keys can be rotated to, and that suffices.
double llama_rope_policy::reachable(double factor, double wanted) const {
    if (wanted < factor && wanted > factor_min && factor < wanted * step_min) {
        return factor;
    }
    return wanted > factor ? std::max(wanted, factor * step_min) : wanted;
}
