// Dynamic scaling: the factor s follows the length of the text, and the cached K follows s.
//
// The paper caches K before RoPE. Rotations compose, so the same K results from rotating what is cached, at its
// positions, by the difference of the two tables of frequencies, and multiplying by the ratio of the two
// temperatures: one rope op a layer, on the backend where the cache lives, and only when s changes.
#pragma once

#include "llama-rope-frequencies.h"
#include "rope-math.h"
#include "yarn-gguf.h"

#include <map>
#include <memory>
#include <vector>

struct llama_context;
struct llama_ubatch;
class llama_io_read_i;
class llama_io_write_i;
class llama_kv_cache;
class llm_graph_result;

class llama_rope_dynamic {
  public:
    // Throws std::invalid_argument for a policy that makes no sense, or that this context cannot follow.
    llama_rope_dynamic(const yarn_gguf_dynamic_scaling & policy, llama_context & ctx);

    // Brings frequencies, temperature and cached K to what the ubatch needs that is about to be computed.
    // Returns false, with the reason in the log and an empty cache, if that could not be rotated.
    bool follow(llama_context & ctx, const llama_ubatch & ubatch);

    // The same for a factor of one's own; rotate: the cache is in use.
    bool set_factor(llama_context & ctx, double factor, bool rotate);

    // Finds out which layers cache keys from a scaled rope: from a graph, as the architecture builds it. Throws
    // std::invalid_argument if there is none, or if keys are normalized after it.
    void find_layers(llama_context & ctx);

    // Memory for rotating the whole cache, so that no rotation has to wait for more.
    void reserve(llama_context & ctx) const;

    rope_scaling at(double factor) const; // the static scaling at a factor

    uint32_t n_ctx_reserved = 0;   // tokens for which s is to suffice from now on
    double factor           = 1.0; // in force
    uint64_t n_rotations    = 0;
    int64_t t_rotations_us  = 0;

  private:
    double factor_for(double length) const;
    double reachable(double wanted) const;
    bool rotate(llama_context & ctx, const rope_scaling & from, const rope_scaling & to) const;
    bool rotate_cache(llama_context & ctx, const llama_kv_cache & kv, const std::vector<float> & factors,
                      float magnitude) const;
    llm_graph_result * build_rotations(llama_context & ctx, const llama_kv_cache & kv, const struct k_cells & part,
                                       const std::vector<float> & factors, float magnitude) const;

    yarn_gguf_dynamic_scaling policy;
    double freq_base;
    double factor_min;
    double factor_max;            // at which the whole context is covered
    double step_min;              // of rotations that rounding does not undo
    double length_rotated = -1.0; // of the text, before the ubatch for which keys were last rotated
    int n_dims;
    std::vector<llama_kv_cache *> caches;
    std::map<int, bool> layers; // that are rotated; whether their keys are stored in the basis of a Hadamard rotation
};

// The part of a saved state that says how its K is rotated. Reading brings the context's dynamic scaling to the
// saved factor; throws std::runtime_error if the state was saved under another scaling.
void llama_rope_state_write(llama_io_write_i & io, llama_context & ctx);
void llama_rope_state_read(llama_io_read_i & io, llama_context & ctx);
