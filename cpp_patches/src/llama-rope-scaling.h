// RoPE scaling: what a model file asks for, what the caller asks for, and which one is in force.
//
// ggml's rope op multiplies cos and sin by attn_factor, and under YaRN (ext_factor != 0) also by
// 1 + 0.1 ln(1/freq_scale). Here "magnitude" is the product, which Hugging Face calls attention_factor. "attn_factor"
// is ggml's operand alone.
#pragma once

#include "llama.h"

#include "ggml.h"

#include <string>

struct llama_cparams;
struct llama_hparams;
struct llama_model;
struct llama_model_loader;
struct rope_scaling;

// Throws std::runtime_error, naming the key and its value, if rope.scaling.type was not recognized.
void llama_rope_scaling_type_require(llama_model_loader & ml, const std::string & name,
                                     enum llama_rope_scaling_type type);

// Checks every scalar rope key of the file, and reads the YaRN keys (yarn_ext_factor, yarn_attn_factor,
// yarn_beta_fast, yarn_beta_slow) into hparams, for every architecture. Call it after the other rope keys are read and
// before the architecture's own keys. Throws std::runtime_error.
void llama_rope_scaling_load(llama_model_loader & ml, llama_hparams & hparams);

// Throws std::runtime_error if the architecture has a rotary embedding and the file rotates no channel. Call it once
// rope_type is known.
void llama_rope_scaling_require_rotation(llama_model_loader & ml, const llama_hparams & hparams);

// Whether the caller asks for a scaling of its own, instead of the file's. A base alone is none: the file's scaling
// stays.
bool llama_rope_scaling_is_by_caller(const llama_context_params & caller);

// Checks the caller's rope parameters. Applies a factor without a type, as linear scaling, to a model whose file says
// that it is not scaled: llama.cpp ignores it. Throws std::runtime_error, naming the parameter.
void llama_rope_scaling_of_caller(llama_cparams & cparams, const llama_context_params & caller,
                                  const llama_hparams & hparams);

// The names of a scaling's values where it was given: keys, parameters or fields. For messages.
struct llama_rope_ramp_names {
    std::string n_ctx_orig;
    std::string beta_fast;
    std::string beta_slow;
    std::string freq_base;
};

// Throws std::runtime_error, naming the values and the remedy, if the scaling has an index ramp that ends before it
// begins. The ramp does not depend on the factor.
void llama_rope_scaling_require_ramp(const rope_scaling & scaling, float freq_base, uint32_t n_rot,
                                     const llama_rope_ramp_names & names);

// Checks the ramp of the file's own scaling, unless the file has a table of frequencies instead. Call it once rope_type
// is known. Throws std::runtime_error.
void llama_rope_scaling_require_ramp_of_file(llama_model_loader & ml, const llama_hparams & hparams, bool has_table);

// Checks the ramp of the scaling that a context has in force without a table. Throws std::runtime_error.
void llama_rope_scaling_require_ramp_of_context(const llama_cparams & cparams, const llama_hparams & hparams);

// Returns the value of rope.scaling.yarn_attn_factor for a file with these hparams: the magnitude.
float llama_rope_scaling_saved_attn_factor(const llama_hparams & hparams);

// Returns the attn_factor in force: the caller's (negative: not given), else the file's, else fallback, which upstream
// computed.
float llama_rope_scaling_attn_factor(const llama_context_params & caller, const llama_hparams & hparams,
                                     float ext_factor, float fallback);

// Returns the attn_factor with which the rope op only rotates: magnitude 1.
float llama_rope_scaling_unit_attn_factor(float freq_scale, float ext_factor);

// Returns whether the rope op works on K of this type. K of another type is converted to f32 and back, whole heads at a
// time.
bool llama_rope_scaling_is_inplace(ggml_type type);

// Returns the factor on q and on k of compressed attention (MLA), from mscale_all_dim. It applies to the whole head.
// The temperature, which applies to the rotated part, is separate.
float llama_rope_scaling_mla_mscale(const llama_hparams & hparams, float freq_scale, float ext_factor);
