// The policy of dynamic scaling: which factor s a text needs, and when s moves. Numbers only: it knows no context.
#pragma once

#include "rope-math.h"
#include "yarn-gguf.h"

#include <vector>

class llama_rope_policy {
  public:
    // n_ctx: tokens of the longest possible sequence. step_min: the smallest ratio by which cached keys can be rotated
    // (llama_rope_rotation::step_min). Throws std::invalid_argument, naming the value that makes no sense.
    llama_rope_policy(const yarn_gguf_dynamic_scaling & values, uint32_t n_ctx, double step_min);

    // Returns the formula of the scaling at a factor; none under LongRoPE.
    rope_scaling at(double factor) const;

    // Returns the frequencies at a factor, in radians per position.
    std::vector<double> inv_freq(double factor, double freq_base, int n_dims) const;

    // Returns the factor on q and on k at a factor.
    double magnitude(double factor) const;

    // Whether the frequencies at a factor need a table: they are not those of plain rope.
    bool has_table(double factor) const;

    // Returns the next s for a text of this length, in tokens, while `factor` is in force. has_keys: keys are cached,
    // so s can only move to where they can be rotated.
    double next(double factor, double length, bool has_keys) const;

    uint32_t n_ctx_reserved = 0; // tokens for which s is to suffice from now on

  private:
    double needed_for(double factor, double length) const;
    double reachable(double factor, double wanted) const;

    yarn_gguf_dynamic_scaling values;
    double step_min;
    double factor_min;
    double factor_max; // covers the whole context
    std::vector<double> short_factor;
    std::vector<double> long_factor;
};
