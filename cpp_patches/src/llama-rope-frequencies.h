// Explicit rope frequencies: any table, in the place of what ggml's rope op derives from a factor.
//
// The op knows linear and YaRN scaling with one kind of ramp. Every other method reaches it as
// freq_factors, which all backends and all modes of the op have: they divide the unscaled frequencies.
// The tensor is one small input of the graph, given to every rope of a scaled layer, whatever the
// architecture, once the graph is built.
#pragma once

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

// What a file says for contexts within and beyond the original one; null where it says nothing.
struct llama_rope_frequencies_of_file {
    llama_rope_frequencies_ptr within;
    llama_rope_frequencies_ptr beyond;
};

// The tables of <arch>.rope.scaling.inv_freq, or of short_factor and long_factor (LongRoPE). Throws
// std::runtime_error, naming the key, for an array that is not n_rot/2 numbers > 0.
llama_rope_frequencies_of_file llama_rope_frequencies_load(llama_model_loader & ml, const llama_hparams & hparams);

// Why one table cannot be given to the model's scaled layers (some architectures have several bases for them); null
// where it can.
const char * llama_rope_frequencies_refusal(const llama_model & model);

// Puts the model's table into force, unless the caller asks for a scaling of his own. To be called when
// the temperature and the size of the context have been decided. Throws std::runtime_error where one table does not do.
void llama_rope_frequencies_init(llama_cparams & cparams, const llama_model & model,
                                 const llama_context_params & params);

llama_rope_frequencies_ptr llama_rope_frequencies_make(std::vector<double> inv_freq);

// Puts a table into force; null: no scaling. freq_scale: 1/factor; magnitude: the whole factor on q and on k.
void llama_rope_frequencies_use(llama_cparams & cparams, llama_rope_frequencies_ptr table, float freq_scale,
                                float magnitude);

// Gives the table in force to the ropes of the scaled layers in a graph that has just been built, and sees to
// it that the others (sliding windows of some architectures) have no temperature. Notes where its keys come from.
void llama_rope_frequencies_apply(const llama_cparams & cparams, llm_graph_result & res);
