// Dynamic scaling: the factor s follows the length of the text, and the cached keys follow s.
//
// The policy says which s, the table of frequencies for it goes into the context, and the rotation brings cached keys
// to it. Keys are rotated only when s changes.
#pragma once

#include "llama-rope-policy.h"
#include "llama-rope-rotation.h"
#include "yarn-gguf.h"

struct llama_context;
struct llama_ubatch;

class llama_rope_dynamic {
  public:
    // Throws std::exception for values that make no sense, or that this context cannot follow.
    llama_rope_dynamic(const yarn_gguf_dynamic_scaling & values, llama_context & ctx);

    // Puts the frequencies for a short text in force. The cache is empty.
    void begin(llama_context & ctx) const;

    // Brings frequencies, magnitude and cached keys to what the ubatch needs that is about to be computed. Returns
    // false, with the reason in the log and an empty cache, if the cache could not be rotated.
    bool follow(llama_context & ctx, const llama_ubatch & ubatch);

    // Does the same for a factor of the caller's choice. rotate: the cache is in use.
    bool set_factor(llama_context & ctx, double wanted, bool rotate);

    llama_rope_rotation rotation;
    llama_rope_policy policy; // built with the rotation's smallest step

    double factor          = 1.0; // in force
    uint64_t n_rotations   = 0;
    int64_t t_rotations_us = 0;

  private:
    void use(llama_context & ctx) const;
    bool rotate_cached(llama_context & ctx, double from, double to);

    double freq_base;
    int n_dims;
    double length_rotated = -1.0; // length of the text before the ubatch for which keys were last rotated
};
