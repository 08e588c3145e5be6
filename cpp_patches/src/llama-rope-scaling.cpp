#include "llama-rope-scaling.h"

#include "llama-cparams.h"
#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"
#include "rope-math.h"

#include <cmath>
#include <stdexcept>

// Returns the factor that ggml's rope op itself applies (ggml-cpu/ops.cpp, rope_yarn), in its arithmetic.
static float op_magnitude(float freq_scale, float ext_factor) {
    return ext_factor != 0.0f ? 1.0f + 0.1f * logf(1.0f / freq_scale) : 1.0f;
}

[[noreturn]] static void refuse(llama_model_loader & ml, enum llm_kv kid, const std::string & value,
                                const char * expected) {
    throw std::runtime_error(
        format("bad rope key: %s = %s, expected %s", ml.llm_kv(kid).c_str(), value.c_str(), expected));
}

// Reads a float key that must satisfy a predicate. Returns whether the file has it.
template <typename Predicate>
static bool read_float(llama_model_loader & ml, enum llm_kv kid, float & value, Predicate is_valid,
                       const char * expected) {
    float found = 0.0f;
    if (!ml.get_key(kid, found, false)) {
        return false;
    }
    if (!is_valid(found)) {
        refuse(ml, kid, format("%g", found), expected);
    }
    value = found;
    return true;
}

static bool is_positive(float x) {
    return std::isfinite(x) && x > 0.0f;
}

static bool is_not_negative(float x) {
    return std::isfinite(x) && x >= 0.0f;
}

static bool is_base(float x) {
    return std::isfinite(x) && x > 1.0f;
}

static bool is_factor(float x) {
    return std::isfinite(x) && x >= 1.0f;
}

static bool is_factor_or_zero(float x) {
    return x == 0.0f || is_factor(x);
}

void llama_rope_scaling_type_require(llama_model_loader & ml, const std::string & name,
                                     enum llama_rope_scaling_type type) {
    if (type == LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED) {
        refuse(ml, LLM_KV_ROPE_SCALING_TYPE, "\"" + name + "\"", "none, linear, yarn or longrope");
    }
}

static void check_scalars(llama_model_loader & ml, enum llama_rope_scaling_type type) {
    float ignored         = 0.0f;
    const char * positive = "a number > 0";
    if (type != LLAMA_ROPE_SCALING_TYPE_NONE) {
        // llama_model_save_to_file writes factor 0 for "no scaling": only YaRN cannot have it
        const bool is_yarn  = type == LLAMA_ROPE_SCALING_TYPE_YARN;
        const auto is_scale = is_yarn ? is_factor : is_factor_or_zero;
        const char * scale  = is_yarn ? "a number >= 1" : "a number >= 1, or 0 for no scaling";
        read_float(ml, LLM_KV_ROPE_SCALING_FACTOR, ignored, is_scale, scale);
        read_float(ml, LLM_KV_ROPE_SCALE_LINEAR, ignored, is_scale, scale);
    }
    read_float(ml, LLM_KV_ROPE_SCALING_ATTN_FACTOR, ignored, is_positive, positive);
    read_float(ml, LLM_KV_ROPE_SCALING_YARN_LOG_MUL, ignored, is_not_negative, "a number >= 0");
}

static void check_rotated(llama_model_loader & ml, enum llm_kv kid, uint32_t n_embd_head) {
    uint32_t n_rot = 0;
    if (ml.get_key(kid, n_rot, false) && (n_rot % 2 != 0 || n_rot > n_embd_head)) {
        refuse(ml, kid, std::to_string(n_rot), "an even number, at most the size of a head");
    }
}

static void check_dimensions(llama_model_loader & ml, const llama_hparams & hparams) {
    uint32_t n_ctx_orig = 0;
    if (ml.get_key(LLM_KV_ROPE_SCALING_ORIG_CTX_LEN, n_ctx_orig, false) && n_ctx_orig == 0) {
        refuse(ml, LLM_KV_ROPE_SCALING_ORIG_CTX_LEN, "0", "the number of tokens that the model was trained with");
    }
    if (hparams.n_head() > 0) {
        check_rotated(ml, LLM_KV_ROPE_DIMENSION_COUNT, hparams.n_embd_head_k_full);
        check_rotated(ml, LLM_KV_ROPE_DIMENSION_COUNT_SWA, hparams.n_embd_head_k_swa);
    }
}

static void read_yarn(llama_model_loader & ml, llama_hparams & hparams) {
    const auto is_number = [](float x) { return std::isfinite(x); };
    read_float(ml, LLM_KV_ROPE_SCALING_YARN_EXT_FACTOR, hparams.yarn_ext_factor, is_number,
               "a number (negative: not set)");

    read_float(ml, LLM_KV_ROPE_SCALING_YARN_BETA_FAST, hparams.yarn_beta_fast, is_positive, "a number > 0");
    read_float(ml, LLM_KV_ROPE_SCALING_YARN_BETA_SLOW, hparams.yarn_beta_slow, is_positive, "a number > 0");
    if (!(hparams.yarn_beta_fast > hparams.yarn_beta_slow)) {
        refuse(ml, LLM_KV_ROPE_SCALING_YARN_BETA_FAST, format("%g", hparams.yarn_beta_fast),
               format("more than yarn_beta_slow = %g", hparams.yarn_beta_slow).c_str());
    }

    // The converter writes Hugging Face's attention_factor here, which is the magnitude. A file with this key may
    // also have attn_factor, for loaders that know only that one. Both mean the same.
    float magnitude = 1.0f;
    if (read_float(ml, LLM_KV_ROPE_SCALING_YARN_ATTN_FACTOR, magnitude, is_positive, "a number > 0")) {
        hparams.yarn_attn_factor = magnitude / op_magnitude(hparams.rope_freq_scale_train, 1.0f);
        hparams.rope_attn_factor = 1.0f;

        // exactly 1 stands for "not given", which means something else in a file with a yarn_log_multiplier
        float log_multiplier = 0.0f;
        ml.get_key(LLM_KV_ROPE_SCALING_YARN_LOG_MUL, log_multiplier, false);
        if (log_multiplier != 0.0f && hparams.yarn_attn_factor == 1.0f) {
            hparams.yarn_attn_factor = std::nextafter(1.0f, 2.0f);
        }
    }
}

void llama_rope_scaling_load(llama_model_loader & ml, llama_hparams & hparams) {
    const bool is_yarn = hparams.rope_scaling_type_train == LLAMA_ROPE_SCALING_TYPE_YARN;
    check_scalars(ml, hparams.rope_scaling_type_train);
    check_dimensions(ml, hparams);
    if (is_yarn) {
        read_yarn(ml, hparams);
    }
}

void llama_rope_scaling_require_rotation(llama_model_loader & ml, const llama_hparams & hparams) {
    if (hparams.rope_type == LLAMA_ROPE_TYPE_NONE || hparams.n_head() == 0) {
        return;
    }
    for (const enum llm_kv kid : {LLM_KV_ROPE_DIMENSION_COUNT, LLM_KV_ROPE_DIMENSION_COUNT_SWA}) {
        uint32_t n_rot = 0;
        if (ml.get_key(kid, n_rot, false) && n_rot == 0) {
            refuse(ml, kid, "0", "an even number > 0, as the architecture has a rotary embedding");
        }
    }
    float ignored = 0.0f;
    read_float(ml, LLM_KV_ROPE_FREQ_BASE, ignored, is_base, "a number > 1");
    read_float(ml, LLM_KV_ROPE_FREQ_BASE_SWA, ignored, is_base, "a number > 1");
}

// ---- the caller's parameters -------------------------------------------------------------------------

static void require_parameter(const char * name, double value, bool is_valid, const char * expected) {
    if (!is_valid) {
        throw std::runtime_error(format("%s = %g: expected %s", name, value, expected));
    }
}

static void check_caller(const llama_context_params & caller) {
    const auto is_unset = [](float x) { return std::isfinite(x) && x < 0.0f; };
    const float scale   = caller.rope_freq_scale;
    require_parameter("rope_freq_base", caller.rope_freq_base,
                      caller.rope_freq_base == 0.0f || is_base(caller.rope_freq_base),
                      "a number > 1, or 0 for the file's");
    require_parameter("rope_freq_scale", scale, scale == 0.0f || (is_positive(scale) && scale <= 1.0f),
                      "1/factor, above 0 and at most 1, or 0 for the file's");
    require_parameter("yarn_ext_factor", caller.yarn_ext_factor,
                      is_unset(caller.yarn_ext_factor) ||
                          (caller.yarn_ext_factor >= 0.0f && caller.yarn_ext_factor <= 1.0f),
                      "a number from 0 to 1, or -1 for the file's");
    for (const auto & [name, value] : {std::pair<const char *, float>{"yarn_attn_factor", caller.yarn_attn_factor},
                                       {"yarn_beta_fast", caller.yarn_beta_fast},
                                       {"yarn_beta_slow", caller.yarn_beta_slow}}) {
        require_parameter(name, value, is_unset(value) || is_positive(value), "a number > 0, or -1 for the file's");
    }
}

bool llama_rope_scaling_is_by_caller(const llama_context_params & caller) {
    return caller.rope_scaling_type != LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED || caller.rope_freq_scale != 0.0f ||
           caller.yarn_ext_factor >= 0.0f;
}

void llama_rope_scaling_of_caller(llama_cparams & cparams, const llama_context_params & caller,
                                  const llama_hparams & hparams) {
    check_caller(caller);
    const bool names_type = caller.rope_scaling_type != LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED;
    if (!names_type && hparams.rope_scaling_type_train == LLAMA_ROPE_SCALING_TYPE_NONE &&
        caller.rope_freq_scale != 0.0f) {
        cparams.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_LINEAR;
        cparams.rope_freq_scale   = caller.rope_freq_scale;
    }
}

// ---- the ramp ----------------------------------------------------------------------------------------

void llama_rope_scaling_require_ramp(const rope_scaling & scaling, float freq_base, uint32_t n_rot,
                                     const llama_rope_ramp_names & names) {
    const bool is_by_parts = scaling.method == ROPE_METHOD_BY_PARTS || scaling.method == ROPE_METHOD_YARN;
    if (!is_by_parts || scaling.by_rotations || n_rot == 0) {
        return;
    }
    const rope_ramp_bounds bounds = rope_bounds(scaling, freq_base, (int)n_rot);
    if (bounds.are_crossed()) {
        throw std::runtime_error(format(
            "%s = %.0f makes a ramp that ends (at dimension %g) before it begins (at %g), with %s = %g, %s = %g, "
            "%s = %g and %u rotary dimensions: give the context that the model was trained with, in tokens, "
            "and a beta_fast above beta_slow",
            names.n_ctx_orig.c_str(), scaling.n_ctx_orig, bounds.high, bounds.low, names.beta_fast.c_str(),
            scaling.beta_fast, names.beta_slow.c_str(), scaling.beta_slow, names.freq_base.c_str(), freq_base, n_rot));
    }
}

void llama_rope_scaling_require_ramp_of_file(llama_model_loader & ml, const llama_hparams & hparams, bool has_table) {
    const bool is_yarn   = hparams.rope_scaling_type_train == LLAMA_ROPE_SCALING_TYPE_YARN;
    const bool has_blend = hparams.yarn_ext_factor < 0.0f ? is_yarn : hparams.yarn_ext_factor != 0.0f;
    if (!has_blend || has_table || hparams.rope_type == LLAMA_ROPE_TYPE_NONE) {
        return;
    }
    uint32_t ignored        = 0;
    const bool has_original = ml.get_key(LLM_KV_ROPE_SCALING_ORIG_CTX_LEN, ignored, false);
    rope_scaling scaling;
    scaling.method     = ROPE_METHOD_YARN;
    scaling.n_ctx_orig = hparams.n_ctx_orig_yarn;
    scaling.beta_fast  = hparams.yarn_beta_fast;
    scaling.beta_slow  = hparams.yarn_beta_slow;
    llama_rope_scaling_require_ramp(
        scaling, hparams.rope_freq_base_train, hparams.n_rot_full,
        {"bad rope key: " + ml.llm_kv(has_original ? LLM_KV_ROPE_SCALING_ORIG_CTX_LEN : LLM_KV_CONTEXT_LENGTH),
         ml.llm_kv(LLM_KV_ROPE_SCALING_YARN_BETA_FAST), ml.llm_kv(LLM_KV_ROPE_SCALING_YARN_BETA_SLOW),
         ml.llm_kv(LLM_KV_ROPE_FREQ_BASE)});
}

void llama_rope_scaling_require_ramp_of_context(const llama_cparams & cparams, const llama_hparams & hparams) {
    if (cparams.yarn_ext_factor == 0.0f || hparams.rope_type == LLAMA_ROPE_TYPE_NONE) {
        return;
    }
    rope_scaling scaling;
    scaling.method     = ROPE_METHOD_YARN;
    scaling.n_ctx_orig = cparams.n_ctx_orig_yarn;
    scaling.beta_fast  = cparams.yarn_beta_fast;
    scaling.beta_slow  = cparams.yarn_beta_slow;
    llama_rope_scaling_require_ramp(scaling, cparams.rope_freq_base, hparams.n_rot_full,
                                    {"yarn_orig_ctx", "yarn_beta_fast", "yarn_beta_slow", "rope_freq_base"});
}

// ---- temperatures ------------------------------------------------------------------------------------

float llama_rope_scaling_saved_attn_factor(const llama_hparams & hparams) {
    const bool is_yarn = hparams.rope_scaling_type_train == LLAMA_ROPE_SCALING_TYPE_YARN;
    return hparams.yarn_attn_factor * op_magnitude(hparams.rope_freq_scale_train, is_yarn ? 1.0f : 0.0f);
}

float llama_rope_scaling_attn_factor(const llama_context_params & caller, const llama_hparams & hparams,
                                     float ext_factor, float fallback) {
    const float given = caller.yarn_attn_factor;
    if (ext_factor == 0.0f) {
        // Without YaRN there is no temperature of YaRN. If the caller names the scaling, the file's does not count.
        const bool by_caller = caller.rope_scaling_type != LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED;
        return (given >= 0.0f ? given : 1.0f) * (by_caller ? 1.0f : hparams.rope_attn_factor);
    }
    if (given >= 0.0f) {
        return given;
    }
    return hparams.yarn_attn_factor != 1.0f ? hparams.yarn_attn_factor : fallback;
}

float llama_rope_scaling_unit_attn_factor(float freq_scale, float ext_factor) {
    return 1.0f / op_magnitude(freq_scale, ext_factor);
}

bool llama_rope_scaling_is_inplace(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16;
}

float llama_rope_scaling_mla_mscale(const llama_hparams & hparams, float freq_scale, float ext_factor) {
    return ext_factor != 0.0f ? 1.0f + 0.1f * hparams.rope_yarn_log_mul * logf(1.0f / freq_scale) : 1.0f;
}
