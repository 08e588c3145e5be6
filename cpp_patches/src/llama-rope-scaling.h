// RoPE scaling: what a model file asks for, what the caller asks for, and which of them holds.
//
// ggml's rope op multiplies cos and sin by attn_factor, and under YaRN (ext_factor != 0) by
// 1 + 0.1 ln(1/freq_scale) as well. Here "magnitude" is the product, which Hugging Face calls
// attention_factor; "attn_factor" is ggml's operand alone.
#pragma once

#include "llama.h"

#include "ggml.h"

#include <string>

struct llama_hparams;
struct llama_model;
struct llama_model_loader;

// Throws std::runtime_error, naming the key and its value, where rope.scaling.type was not recognised.
void llama_rope_scaling_type_require(llama_model_loader & ml, const std::string & name,
                                     enum llama_rope_scaling_type type);

// Checks every scalar rope key of the file and reads the YaRN keys (yarn_ext_factor, yarn_attn_factor,
// yarn_beta_fast, yarn_beta_slow) into hparams, for every architecture. To be called when the other
// rope keys have been read and before the architecture's own. Throws std::runtime_error.
void llama_rope_scaling_load(llama_model_loader & ml, llama_hparams & hparams);

// Refuses a file that rotates no channel of an architecture with a rotary embedding. To be called when rope_type is
// known. Throws std::runtime_error.
void llama_rope_scaling_require_rotation(llama_model_loader & ml, const llama_hparams & hparams);

// What rope.scaling.yarn_attn_factor has to say in a file with these hparams: the magnitude.
float llama_rope_scaling_saved_attn_factor(const llama_hparams & hparams);

// The attn_factor in force: the caller's (negative: not given), else the file's, else fallback, which is
// what upstream computes.
float llama_rope_scaling_attn_factor(const llama_context_params & caller, const llama_hparams & hparams,
                                     float ext_factor, float fallback);

// The attn_factor with which the rope op only rotates: magnitude 1.
float llama_rope_scaling_unit_attn_factor(float freq_scale, float ext_factor);

// Whether layers with a sliding window are scaled like the others. If not, they have a base of their own
// and no scaling.
bool llama_rope_scaling_covers_swa(const llama_model & model);

// Whether the rope op works on K of this type; of another one, K takes the way through f32, whole heads at a time.
bool llama_rope_scaling_is_inplace(ggml_type type);

// The factor on q and on k of compressed attention (MLA), from mscale_all_dim: of the whole head, beside the
// temperature, which belongs to the rotated part.
float llama_rope_scaling_mla_mscale(const llama_hparams & hparams, float freq_scale, float ext_factor);
