// Explicit rope frequencies: any table, instead of the frequencies that ggml's rope op derives from a factor.
//
// The op knows linear and YaRN scaling, with one kind of ramp. Every other method reaches it as freq_factors, which
// divide the unscaled frequencies. All backends and all modes of the op have them. The table is one small input of the
// graph. Once a graph is built, for any architecture, every rope of a scaled layer gets that input.
#pragma once

#include "llama-rope-factors.h"
#include "llama.h"

#include <memory>
#include <vector>

struct llama_cparams;
struct llama_hparams;
struct llama_model;
struct llama_model_loader;
class llm_graph_result;

struct llama_rope_frequencies {
    std::vector<double> inv_freq; // radians per position, one for each pair of rotary dimensions
};

using llama_rope_frequencies_ptr = std::shared_ptr<const llama_rope_frequencies>;

// The file's tables for contexts within and beyond the original one; null where it has none.
struct llama_rope_frequencies_of_file {
    llama_rope_frequencies_ptr within;
    llama_rope_frequencies_ptr beyond;
};

// Reads the tables of <arch>.rope.scaling.inv_freq, or of short_factor and long_factor (LongRoPE). Throws
// std::runtime_error, naming the key, for an array that is not n_rot/2 numbers > 0.
llama_rope_frequencies_of_file llama_rope_frequencies_load(llama_model_loader & ml, const llama_hparams & hparams);

// Puts the model's table in force, from its keys or its tensors of rope factors, unless the caller asks for another
// scaling. A base of the caller keeps the model's factors. Call it once the temperature and the size of the context are
// decided. Throws std::runtime_error for parameters that make no sense, if one table does not suffice for the model, or
// if the ramp that is in force without a table makes no sense.
void llama_rope_frequencies_init(llama_cparams & cparams, const llama_model & model,
                                 const llama_context_params & params);

// Returns a table of these frequencies, in radians per position.
llama_rope_frequencies_ptr llama_rope_frequencies_make(std::vector<double> inv_freq);

// Puts a table in force; null: no scaling. freq_scale: 1/factor. magnitude: the whole factor on q and on k.
void llama_rope_frequencies_use(llama_cparams & cparams, llama_rope_frequencies_ptr table, float freq_scale,
                                float magnitude);

// Returns the input that holds the table in force, for a graph's ropes with GGML_ROPE_STEPS. A graph has it once.
ggml_tensor * llama_rope_frequencies_input(const llama_cparams & cparams, llm_graph_result & res);

// Gives the table in force to the ropes of the scaled layers in a graph that has just been built. Removes the
// temperature from all other ropes (sliding windows of some architectures). Notes where the graph's keys come from.
void llama_rope_frequencies_apply(const llama_cparams & cparams, llm_graph_result & res);
