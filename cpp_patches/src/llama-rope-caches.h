// The attention caches of a context, whichever kind of memory holds them.
#pragma once

#include <vector>

struct llama_context;
struct llama_memory_i;
class llama_kv_cache;
class llama_memory_recurrent;

// Returns the caches of the memory: one, or one each for layers with and without a sliding window. Empty for a kind of
// memory whose keys we cannot rotate.
std::vector<llama_kv_cache *> llama_rope_caches_of(llama_memory_i * memory);

// Returns all caches of keys in the memory, of indexers too.
std::vector<llama_kv_cache *> llama_rope_caches_of_keys(llama_memory_i * memory);

// Returns the states of recurrent layers in the memory; null if it has none.
llama_memory_recurrent * llama_rope_caches_recurrent(llama_memory_i * memory);

// Returns the tokens in the longest sequence of the context, counted by position. After a cut, the cache of sliding
// windows may have lost the sequence, so every cache is asked.
double llama_rope_caches_length(llama_context & ctx);
