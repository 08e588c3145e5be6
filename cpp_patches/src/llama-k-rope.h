// A rope of keys that are cached already, in place, in whichever form they are stored.
#pragma once

#include "llama-k-origin.h"

struct llama_k_rope {
    llama_rope_params params; // which dimensions of a head they rotate does not matter here: the origin says it
    ggml_tensor * positions;  // one for each cell
    ggml_tensor * factors;    // freq_factors, or null
    ggml_tensor * hadamard;   // the matrix of the cache, or null
};

// Returns the op that rotates the keys in some cells: whole rows of a cache's tensor. Their origin must have a rope.
ggml_tensor * llama_k_rope_build(ggml_context * ctx, ggml_tensor * cells, const llama_k_origin & origin,
                                 const llama_k_rope & rope);
