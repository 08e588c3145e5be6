// The maths of rotary embedding. Frequencies and temperatures under scaling are computed in double on the host. Exact
// angles are computed without double arithmetic, on the host and on CUDA devices. This is the only C++ home of these
// formulas.
//
// Notation as in docs/rope-scaling.md: n_dims rotary dimensions of a head, theta_i = base^(-2i/n_dims) for
// i = 0 .. n_dims/2-1, L the original context, s the factor. Sources: the YaRN paper (arXiv 2309.00071) and
// transformers' modeling_rope_utils. tests/cpp/test_rope_op.py compares them with Python's rope scaling (RopeScaling).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define ROPE_MATH_FN __host__ __device__ inline
#else
#define ROPE_MATH_FN inline
#endif

enum rope_method {
    ROPE_METHOD_NONE     = 0,
    ROPE_METHOD_LINEAR   = 1, // position interpolation
    ROPE_METHOD_NTK      = 2, // NTK-aware: another base
    ROPE_METHOD_BY_PARTS = 3, // NTK-by-parts
    ROPE_METHOD_YARN     = 4, // by parts, with a temperature
};

struct rope_scaling {
    rope_method method = ROPE_METHOD_NONE;
    double factor      = 1.0; // s
    double n_ctx_orig  = 0.0; // L, tokens
    double beta_fast   = 32.0;
    double beta_slow   = 1.0;
    bool by_rotations  = false; // the paper's ramp (Eq. 18) instead of the ramp in the dimension's index
    bool truncate      = true;  // round the bounds of the index ramp outwards
};

inline double rope_theta(double base, int i, int n_dims) {
    return std::pow(base, -2.0 * i / n_dims);
}

// NTK-aware b' = b s^(n_dims/(n_dims-2)) (Eq. 16)
inline double rope_ntk_base(double base, double factor, int n_dims) {
    return base * std::pow(factor, n_dims / (n_dims - 2.0));
}

// The factor of NTK-aware scaling for a text of s L tokens: f l'/L - (f - 1), transformers' "dynamic".
inline double rope_dynamic_ntk_factor(double ntk_factor, double factor) {
    return ntk_factor * factor - (ntk_factor - 1.0);
}

// sqrt(1/t) = 0.1 mscale ln(s) + 1 (Eq. 22)
inline double rope_yarn_mscale(double factor, double mscale = 1.0) {
    return factor > 1.0 ? 0.1 * mscale * std::log(factor) + 1.0 : 1.0;
}

// the (fractional) index of the frequency that turns `rotations` times within n_ctx_orig tokens
inline double rope_index_of_rotations(double rotations, double n_ctx_orig, double base, int n_dims) {
    const double pi = 3.14159265358979323846;
    return n_dims * std::log(n_ctx_orig / (rotations * 2.0 * pi)) / (2.0 * std::log(base));
}

// Where the index ramp begins and ends, in pairs of dimensions.
struct rope_ramp_bounds {
    double low;
    double high;

    // Whether the ramp ends before it begins. The paper defines no such ramp, and ggml and transformers take it for
    // different ones.
    bool are_crossed() const {
        return !(low <= high);
    }
};

inline rope_ramp_bounds rope_bounds(const rope_scaling & s, double base, int n_dims) {
    double low  = rope_index_of_rotations(s.beta_fast, s.n_ctx_orig, base, n_dims);
    double high = rope_index_of_rotations(s.beta_slow, s.n_ctx_orig, base, n_dims);
    if (s.truncate) {
        low  = std::floor(low);
        high = std::ceil(high);
    }
    return {std::clamp(low, 0.0, (double)n_dims), std::min(high, n_dims - 1.0)};
}

// gamma of Eq. 18 and 19: 1 where dimension pair i is left alone, 0 where it is interpolated
inline double rope_ramp(const rope_scaling & s, int i, double base, int n_dims) {
    const double pi = 3.14159265358979323846;
    if (s.by_rotations) {
        const double rotations = s.n_ctx_orig * rope_theta(base, i, n_dims) / (2.0 * pi);
        return std::clamp((rotations - s.beta_slow) / (s.beta_fast - s.beta_slow), 0.0, 1.0);
    }
    rope_ramp_bounds bounds = rope_bounds(s, base, n_dims);
    if (!(bounds.high - bounds.low >= 0.001)) {
        bounds.high = bounds.low + 0.001; // as in the reference code: a step rather than a division by zero
    }
    return 1.0 - std::clamp((i - bounds.low) / (bounds.high - bounds.low), 0.0, 1.0);
}

// radians per position, one for each pair of dimensions
inline std::vector<double> rope_inv_freq(const rope_scaling & s, double base, int n_dims) {
    std::vector<double> inv_freq(n_dims / 2);
    const bool is_ntk = s.method == ROPE_METHOD_NTK;
    for (int i = 0; i < n_dims / 2; ++i) {
        const double theta = rope_theta(is_ntk ? rope_ntk_base(base, s.factor, n_dims) : base, i, n_dims);
        double gamma       = 1.0; // for NTK, which changes the base instead, and for none
        if (s.method == ROPE_METHOD_LINEAR) {
            gamma = 0.0;
        } else if (s.method == ROPE_METHOD_BY_PARTS || s.method == ROPE_METHOD_YARN) {
            gamma = rope_ramp(s, i, base, n_dims);
        }
        inv_freq[i] = (1.0 - gamma) * theta / s.factor + gamma * theta;
    }
    return inv_freq;
}

// the factor on q and on k
inline double rope_magnitude(const rope_scaling & s) {
    return s.method == ROPE_METHOD_YARN ? rope_yarn_mscale(s.factor) : 1.0;
}

// ---- angles ------------------------------------------------------------------------------------------
//
// An angle is held as a phase, a fraction of a full turn. An integer product keeps every bit of it that matters. The
// error of position * step, modulo a turn, is less than position * 2^-65 turns. The error of a phase of 32 bits is
// 1.5e-9 radians. A float32 product loses 2^-24 of the whole angle, which is 4e-3 radians at position 131072.

// Returns the step of the phase from one position to the next, in turns / 2^64.
inline uint64_t rope_phase_step(double inv_freq) {
    const double two_pi = 6.28318530717958647692;
    const double turns  = inv_freq / two_pi;
    const double part   = turns - std::floor(turns);       // fraction of a turn
    const double high   = std::floor(part * 4294967296.0); // exact: a power of two
    const double low    = (part * 4294967296.0 - high) * 4294967296.0;
    return ((uint64_t)high << 32) + (uint64_t)std::nearbyint(low); // the sum may wrap around, as it should
}

// Returns the phase at a position, in turns / 2^32, from -1/2 to 1/2 turn.
ROPE_MATH_FN int32_t rope_phase(int32_t position, uint32_t step_low, uint32_t step_high) {
#if defined(__CUDA_ARCH__)
    const uint32_t carry = __umulhi((uint32_t)position, step_low);
#else
    const uint32_t carry = (uint32_t)(((uint64_t)(uint32_t)position * step_low) >> 32);
#endif
    const uint32_t borrow = position < 0 ? step_low : 0; // its upper half is -1, not 0
    return (int32_t)((uint32_t)position * step_high + carry - borrow);
}

#if defined(__CUDACC__) || defined(__HIPCC__)

// Returns the phase of position * turns / factor, for devices, where double arithmetic is slow. turns is the sum of two
// floats. Each product and quotient carries the part that its rounding lost. The intrinsics keep fast-math from
// removing these corrections.
static __device__ inline int32_t rope_phase_divided(int32_t position, float turns, float turns_rest, float factor) {
    const float q       = __fdiv_rn(turns, factor);
    const float rest    = __fadd_rn(__fmaf_rn(-q, factor, turns), turns_rest);
    const float q_rest  = __fdiv_rn(rest, factor);
    const float p       = (float)position;
    const float product = __fmul_rn(p, q);
    const float lost    = __fmaf_rn(p, q, -product);
    const float part    = __fadd_rn(product, -rintf(product));
    const float sum     = __fadd_rn(part, __fmaf_rn(p, q_rest, lost));
    return __float2int_rn(__fmul_rn(__fadd_rn(sum, -rintf(sum)), 4294967296.0f));
}

#endif

// Computes cosine and sine of a phase; the error of each is less than 2e-7.
ROPE_MATH_FN void rope_cos_sin(int32_t phase, float & cosine, float & sine) {
    const int32_t quarter = (int32_t)((uint32_t)phase + (1u << 29)) >> 30; // the nearest, -2 to 1
    const int32_t rest    = (int32_t)((uint32_t)phase - ((uint32_t)quarter << 30));
    const float a         = (float)rest * 1.46291807926715968e-9f; // 2 pi / 2^32: -pi/4 to pi/4 radians
    const float z         = a * a;
    // minimax polynomials of the Cephes library (sinf.c, cosf.c)
    const float s = a + a * z * (-1.6666654611e-1f + z * (8.3321608736e-3f - z * 1.9515295891e-4f));
    const float c =
        1.0f - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));

    const bool is_odd = quarter & 1;
    const float cc    = is_odd ? s : c;
    const float ss    = is_odd ? c : s;
    cosine            = (quarter + 1) & 2 ? -cc : cc;
    sine              = quarter & 2 ? -ss : ss;
}
