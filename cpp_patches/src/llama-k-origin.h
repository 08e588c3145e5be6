// Where cached keys come from, layer by layer, as the graph of a model shows.
//
// What rotates cached keys, by another position or to other frequencies, has to know whether they are rotated at all,
// and in which form they are stored. The architectures' parameters do not tell.
#pragma once

#include "ggml.h"

#include <map>

struct llama_cparams;

struct llama_k_origin {
    bool is_roped      = false; // rotated by their positions
    bool is_scaled     = false; // by a rope that has a table of frequencies
    bool is_normalized = false; // after their rope
    bool in_basis      = false; // stored in the basis of a Hadamard rotation
};

using llama_k_origins = std::map<const ggml_tensor *, llama_k_origin>; // by the tensor of the cache

// Notes those of the keys that a graph stores.
void llama_k_origins_note(llama_k_origins & origins, ggml_cgraph * gf);

// Those of a tensor of this context's cache. Where no graph has stored any yet: rotated, in the basis.
llama_k_origin llama_k_origin_of(const llama_cparams & cparams, const ggml_tensor * k);
