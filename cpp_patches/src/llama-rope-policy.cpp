#include "llama-rope-policy.h"

#include "llama-require.h"

#include <algorithm>
#include <cmath>

static_assert((int)ROPE_METHOD_LINEAR == (int)YARN_GGUF_METHOD_LINEAR, "at() casts one to the other");
static_assert((int)ROPE_METHOD_NTK == (int)YARN_GGUF_METHOD_NTK, "at() casts one to the other");
static_assert((int)ROPE_METHOD_BY_PARTS == (int)YARN_GGUF_METHOD_BY_PARTS, "at() casts one to the other");
static_assert((int)ROPE_METHOD_YARN == (int)YARN_GGUF_METHOD_YARN, "at() casts one to the other");

static bool are_positive(const double * values, size_t n) {
    return values && std::all_of(values, values + n, [](double x) { return std::isfinite(x) && x > 0.0; });
}

static void check_longrope(const yarn_gguf_dynamic_scaling & values) {
    require(are_positive(values.short_factor, values.n_factors) && are_positive(values.long_factor, values.n_factors),
            "short_factor and long_factor must be numbers > 0");
    require(std::isfinite(values.attention_factor) && values.attention_factor > 0.0f,
            "attention_factor must be a number > 0");
    require(values.factor > 1.0f, "factor must be above 1");
}

static void check(const yarn_gguf_dynamic_scaling & values) {
    require(values.method > YARN_GGUF_METHOD_NONE && values.method <= YARN_GGUF_METHOD_LONGROPE,
            "method must be a yarn_gguf_method other than none");
    if (values.method == YARN_GGUF_METHOD_LONGROPE) {
        check_longrope(values);
    }
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
    if (values.method == YARN_GGUF_METHOD_LONGROPE) {
        short_factor.assign(values.short_factor, values.short_factor + values.n_factors);
        long_factor.assign(values.long_factor, values.long_factor + values.n_factors);
    }
}

rope_scaling llama_rope_policy::at(double factor) const {
    rope_scaling s;
    if (!long_factor.empty()) {
        return s;
    }
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

std::vector<double> llama_rope_policy::inv_freq(double factor, double freq_base, int n_dims) const {
    auto found = rope_inv_freq(at(factor), freq_base, n_dims);
    if (!long_factor.empty()) {
        const auto & divisors = factor > 1.0 ? long_factor : short_factor;
        for (size_t i = 0; i < found.size(); ++i) {
            found[i] /= divisors[i];
        }
    }
    return found;
}

double llama_rope_policy::magnitude(double factor) const {
    return long_factor.empty() ? rope_magnitude(at(factor)) : values.attention_factor;
}

bool llama_rope_policy::has_table(double factor) const {
    return factor > 1.0 || !long_factor.empty();
}

double llama_rope_policy::next(double factor, double length, bool has_keys) const {
    const double wanted = needed_for(factor, length);
    return has_keys ? reachable(factor, wanted) : wanted;
}

double llama_rope_policy::needed_for(double factor, double length) const {
    if (!long_factor.empty()) {
        return std::max(length, (double)n_ctx_reserved) > values.n_ctx_orig ? factor_min : 1.0;
    }
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
