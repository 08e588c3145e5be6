// Where the cached keys of each layer come from, read from the graph of a model.
//
// Code that rotates cached keys, to another position or to other frequencies, must know how they were rotated and in
// which form they are stored. The architectures' parameters do not say this: some graphs ignore the scaling, some
// layers have other bases, and some keys are normalized after their rope.
#pragma once

#include "ggml.h"

#include <array>
#include <map>

struct llama_cparams;
struct llama_memory_i;

using llama_rope_params = std::array<int32_t, GGML_MAX_OP_PARAMS / sizeof(int32_t)>; // op_params of a rope

struct llama_k_origin {
    bool is_roped      = false; // rotated by their positions
    bool is_scaled     = false; // rotated by a rope that has a table of frequencies
    bool is_normalized = false; // normalized after their rope
    bool in_basis      = false; // stored in the basis of a Hadamard rotation

    // The rope. Without one, these mean nothing.
    llama_rope_params params = {};
    ggml_tensor * factors    = nullptr; // the model's freq_factors; null if it has none, or if a table replaces them
    int64_t n_head           = 0;       // dimensions of a stored head
    int64_t n_before         = 0;       // dimensions of a head before the rotated ones
    const char * obstacle    = nullptr; // why another rotation of the stored keys would be wrong; null if it is right
};

using llama_k_origins = std::map<const ggml_tensor *, llama_k_origin>; // keyed by the cache's tensor

// Notes the origin of all keys that a graph stores.
void llama_k_origins_note(llama_k_origins & origins, ggml_cgraph * gf);

// Lets the caches of a context's memory see what is noted for the context.
void llama_k_origins_share(const llama_cparams & cparams, llama_memory_i * memory);

// Returns the origin of the keys in a tensor of a cache. If no graph has stored any, they are not rotated.
llama_k_origin llama_k_origin_of(const llama_k_origins & origins, const ggml_tensor * k);
