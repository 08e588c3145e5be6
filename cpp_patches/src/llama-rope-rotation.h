// Rotation of cached keys to other rope frequencies, in place.
//
// The paper caches K before RoPE. Rotations compose, so the cached, already rotated K gives the same result: rotate it
// at its position by the difference of the two tables of frequencies, and multiply it by the ratio of the two
// magnitudes. This is one rope op per layer, on the backend that holds the cache.
#pragma once

#include "llama-k-origin.h"

#include <map>
#include <vector>

struct llama_context;
class llama_kv_cache;
class llm_graph_result;

class llama_rope_rotation {
  public:
    // Throws std::invalid_argument if the keys in this context's cache cannot be rotated.
    explicit llama_rope_rotation(llama_context & ctx);

    // Finds the layers that cache keys from a scaled rope, by building a graph of the architecture. Throws
    // std::invalid_argument if there are none, or if keys are normalized after the rope. Leaves the context unscaled.
    void find_layers(llama_context & ctx);

    // Reserves memory for rotating the whole cache, so that no rotation has to wait for more.
    void reserve(llama_context & ctx) const;

    // Rotates all cached keys: pair i at position p by p * difference[i] radians, times magnitude. Starts the work
    // without waiting for it. Returns false, with the reason in the log, if some keys could not be rotated.
    bool rotate(llama_context & ctx, const std::vector<double> & difference, float magnitude) const;

    // Returns the smallest ratio of two factors s for which a rotation is not lost in the rounding of K.
    double step_min() const;

  private:
    llm_graph_result * build_graph(llama_context & ctx, const llama_kv_cache & kv, const struct k_cells & cells,
                                   const std::vector<float> & factors, float magnitude) const;
    bool rotate_cache(llama_context & ctx, const llama_kv_cache & kv, const std::vector<float> & factors,
                      float magnitude) const;

    double freq_base;
    int n_dims;
    std::vector<llama_kv_cache *> caches;
    std::map<int, llama_k_origin> layers; // to rotate
};
