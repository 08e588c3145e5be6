// The tensors of rope factors in a file. Upstream's converter writes them: divisors of the unscaled frequencies.
//
// rope_freqs scales (Llama 3.1), or keeps pairs of dimensions from rotating (Gemma 4), or both. rope_factors_short and
// rope_factors_long are LongRoPE's. Graphs pass them to the rope op. So a scaling in their place has to take them away,
// and has to leave the pairs that do not rotate.
#pragma once

#include <memory>
#include <vector>

struct llama_cparams;
struct llama_model;
struct ggml_tensor;

struct llama_rope_factors {
    std::vector<float> freqs;        // the tensors, one number for each pair of dimensions; empty where there is none
    std::vector<float> short_factor; // for contexts up to the original one
    std::vector<float> long_factor;

    // Whether the tensors scale the pairs that rotate.
    bool is_scaling() const;

    // Returns frequencies with 0 for the pairs that do not rotate, whatever the scaling.
    std::vector<double> hold_still(std::vector<double> inv_freq) const;
};

using llama_rope_factors_ptr = std::shared_ptr<const llama_rope_factors>;

// Returns the tensors of a model; none for a model without weights. Throws std::runtime_error, naming the tensor, for
// numbers that no frequency can be divided by.
llama_rope_factors_ptr llama_rope_factors_of(const llama_model & model);

// Takes the factors away from a rope op that was just built, if another scaling than theirs is in force.
void llama_rope_factors_drop(const llama_cparams & cparams, ggml_tensor * op);
