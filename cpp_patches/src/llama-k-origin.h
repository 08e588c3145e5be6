// Where the cached keys of each layer come from, read from the graph of a model.
//
// Code that rotates cached keys, to another position or to other frequencies, must know whether they are rotated at
// all and in which form they are stored. The architectures' parameters do not say this.
#pragma once

#include "ggml.h"

#include <map>

struct llama_cparams;

struct llama_k_origin {
    bool is_roped      = false; // rotated by their positions
    bool is_scaled     = false; // rotated by a rope that has a table of frequencies
    bool is_normalized = false; // normalized after their rope
    bool in_basis      = false; // stored in the basis of a Hadamard rotation
};

using llama_k_origins = std::map<const ggml_tensor *, llama_k_origin>; // keyed by the cache's tensor

// Notes the origin of all keys that a graph stores.
void llama_k_origins_note(llama_k_origins & origins, ggml_cgraph * gf);

// Returns the origin of the keys in a tensor of this context's cache. If no graph has stored any yet, they count as
// rotated, not scaled, and stored in the basis of a Hadamard rotation.
llama_k_origin llama_k_origin_of(const llama_cparams & cparams, const ggml_tensor * k);
