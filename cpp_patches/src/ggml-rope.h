// The operands of ggml's rope op in exact terms: one phase step for each pair of dimensions, and a magnitude.
//
// Shared by the backends. The operands are those of ggml_rope_impl (ggml.c). An op may also carry the steps itself.
// Then op_params[0] is GGML_ROPE_STEPS, and src[2] holds two words a pair after the freq_factors, which other backends
// read.
#pragma once

#include "rope-math.h"

#include "ggml.h"

#include <cstdlib>
#include <cstring>

static const int32_t GGML_ROPE_STEPS = 0x59524e53;

// Returns whether the environment asks for upstream's arithmetic, for comparisons.
inline bool ggml_rope_wants_upstream() {
    static const bool wants = [] {
        const char * value = getenv("YARN_GGUF_UPSTREAM_ROPE");
        return value && atoi(value) != 0;
    }();
    return wants;
}

// Returns which of its token's four positions (time, height, width, extra) rotates pair i.
ROPE_MATH_FN int ggml_rope_component(int mode, const int32_t sections[4], int i) {
    if (!(mode & GGML_ROPE_TYPE_MROPE)) {
        return 0;
    }
    const int height = sections[0];
    const int width  = height + sections[1];
    const int extra  = width + sections[2];
    const int sector = i % (extra + sections[3]);
    if (mode == GGML_ROPE_TYPE_IMROPE) {
        const int which = sector % 3;
        const int limit = which == 0 ? sections[0] : which == 1 ? sections[1] : sections[2];
        return sector < 3 * limit ? which : 3;
    }
    return sector < height ? 0 : sector < width ? 1 : sector < extra ? 2 : 3;
}

// Returns 1/s in double for the factor s that a caller inverted. The op has it as a float, whose relative error of up
// to 6e-8 is 1e-2 radians at position 2^20 for s = 3. So look for an s that is a decimal number or a ratio of contexts.
inline double ggml_rope_exact_scale(float freq_scale) {
    for (double unit : {1000.0, 65536.0}) {
        const double s = std::nearbyint(unit / freq_scale) / unit;
        if (s > 0.0 && (float)(1.0 / s) == freq_scale) {
            return 1.0 / s;
        }
    }
    return freq_scale;
}

struct ggml_rope_operands {
    int32_t has_steps;
    int32_t n_dims;
    int32_t mode;
    int32_t unused;
    int32_t n_ctx_orig;
    float freq_base;
    float freq_scale;
    float ext_factor;
    float attn_factor;
    float beta_fast;
    float beta_slow;
    int32_t sections[4];
    int32_t n_offs;

    explicit ggml_rope_operands(const int32_t * params) {
        memcpy(this, params, sizeof(*this));
    }

    explicit ggml_rope_operands(const ggml_tensor * op) : ggml_rope_operands(op->op_params) {
    }

    bool is_vision() const {
        return mode == GGML_ROPE_TYPE_VISION;
    }

    bool is_multi() const {
        return mode & GGML_ROPE_TYPE_MROPE;
    }

    // number of rotated pairs of dimensions
    int n_pairs() const {
        return is_vision() ? n_dims : n_dims / 2;
    }

    // the factor on the rotated vector
    float magnitude() const {
        return ext_factor != 0.0f ? attn_factor * (float)(1.0 - 0.1 * std::log((double)freq_scale)) : attn_factor;
    }

    // whether upstream's assertions about the operands hold; n_all: channels of a head
    bool are_sound(int64_t n_all) const {
        if (is_multi() && (std::min({sections[0], sections[1], sections[2], sections[3]}) < 0 ||
                           sections[0] + sections[1] + sections[2] <= 0)) {
            return false;
        }
        const bool is_known = mode == GGML_ROPE_TYPE_NORMAL || mode == GGML_ROPE_TYPE_NEOX || is_vision() ||
                              mode == GGML_ROPE_TYPE_MROPE || mode == GGML_ROPE_TYPE_IMROPE;
        const bool is_whole = !is_vision() || 2 * (int64_t)n_dims == n_all;
        return is_known && is_whole && n_dims > 0 && n_dims % 2 == 0 && n_offs >= 0 &&
               n_offs + n_rotated(n_all) <= n_all;
    }

    // distance between the channels of a pair, in the modes where they are not neighbours
    int distance() const {
        return is_vision() ? n_dims : n_dims / 2;
    }

    // number of rotated channels; n_all: channels of a head
    int64_t n_rotated(int64_t n_all) const {
        return is_vision() ? n_all : n_dims;
    }

    // exponent of pair i; in vision mode each section starts at 0 again
    int exponent(int i) const {
        if (!is_vision()) {
            return i;
        }
        int sector = i % (sections[0] + sections[1] + sections[2] + sections[3]);
        for (int k = 0; k < 3 && sector >= sections[k]; ++k) {
            sector -= sections[k];
        }
        return sector;
    }

    // radians per position of each pair; freq_factors: their divisors, or null
    std::vector<double> inv_freq(const float * freq_factors) const {
        rope_scaling ramp;
        ramp.n_ctx_orig    = n_ctx_orig;
        ramp.beta_fast     = beta_fast;
        ramp.beta_slow     = beta_slow;
        const double scale = ggml_rope_exact_scale(freq_scale);
        std::vector<double> result(n_pairs());
        for (int i = 0; i < n_pairs(); ++i) {
            const double theta = rope_theta(freq_base, exponent(i), n_dims);
            double kept        = 0.0;
            if (ext_factor != 0.0f) {
                kept = ext_factor * rope_ramp(ramp, i, freq_base, n_dims);
            }
            const double scaled = theta * (scale * (1.0 - kept) + kept);
            result[i]           = freq_factors ? scaled / freq_factors[i] : scaled;
        }
        return result;
    }

    std::vector<uint64_t> steps(const float * freq_factors) const {
        std::vector<uint64_t> result;
        for (double frequency : inv_freq(freq_factors)) {
            result.push_back(rope_phase_step(frequency));
        }
        return result;
    }
};

static_assert(sizeof(ggml_rope_operands) == 16 * sizeof(int32_t), "the layout of op_params");

// Returns the content of src[2] for an op with GGML_ROPE_STEPS: freq_factors, then steps; 3 numbers a pair.
inline std::vector<float> ggml_rope_pack(double freq_base, const std::vector<double> & inv_freq) {
    const size_t n = inv_freq.size();
    std::vector<float> packed(3 * n);
    for (size_t i = 0; i < n; ++i) {
        const uint64_t step     = rope_phase_step(inv_freq[i]);
        const uint32_t words[2] = {(uint32_t)step, (uint32_t)(step >> 32)};
        const double theta      = rope_theta(freq_base, (int)i, 2 * (int)n);
        packed[i]               = inv_freq[i] != 0.0 ? (float)(theta / inv_freq[i]) : 1e30f;
        memcpy(&packed[n + 2 * i], words, sizeof(words));
    }
    return packed;
}
