// Quantizers for q4_K, q5_K and q6_K, which work on eight groups of weights at a time, and for q8_0.
//
// For each group of 32 weights (16 in q6_K) of a K type, upstream tries some twenty scales. It sums the error of each
// scale in an order that no compiler may change, so it cannot use vectors. Here lane i of every vector belongs to
// group i. Each group's sums are upstream's, in upstream's order, so the bytes are the same
// (tests/native/test_quantize.py). With AVX2 this is five times as fast. Without AVX2, for other types and under an
// importance matrix, upstream's quantizers are used.
#include "yarn-gguf.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#include <cmath>
#include <cstring>

// without FMA, which would round differently
#define AVX2 __attribute__((target("avx2")))
#define AVX2_INLINE __attribute__((target("avx2"), always_inline)) static inline

typedef float floats __attribute__((vector_size(32)));
typedef int32_t ints __attribute__((vector_size(32)));

static const int N_LANES = 8;

AVX2_INLINE floats choose(ints mask, floats a, floats b) {
    return (floats)(((ints)a & mask) | ((ints)b & ~mask));
}

AVX2_INLINE ints choose(ints mask, ints a, ints b) {
    return (a & mask) | (b & ~mask);
}

AVX2_INLINE floats to_floats(ints a) {
    return __builtin_convertvector(a, floats);
}

AVX2_INLINE floats magnitude(floats a) {
    return (floats)((ints)a & 0x7fffffff);
}

// upstream's nearest_int, clamped to [low, high]
AVX2_INLINE ints nearest(floats a, int low, int high) {
    ints i = ((ints)(a + 12582912.f) & 0x007fffff) - 0x00400000;
    i      = choose(i < high, i, ints{} + high);
    return choose(i > low, i, ints{} + low);
}

static int nearest_int(float a) {
    const float shifted = a + 12582912.f;
    int32_t i;
    memcpy(&i, &shifted, sizeof(i));
    return (i & 0x007fffff) - 0x00400000;
}

// Writes weight i of 8 neighbouring groups to the lanes of out[i]. size: weights in a group.
AVX2_INLINE void side_by_side(const float * x, int size, floats * out) {
    for (int i = 0; i < size; i++) {
        for (int lane = 0; lane < N_LANES; lane++) {
            out[i][lane] = x[size * lane + i];
        }
    }
}

// ---- q4_K and q5_K: scale and minimum of groups of 32 ------------------------------------------------

struct minimum_search {
    int max;           // largest quantized weight
    float first, step; // the k-th try maps the range to max + first + step * k
    int n_steps;
};

struct scaled_groups {
    floats scale, minimum; // minimum has upstream's sign
    ints quants[32];
};

// upstream's make_qkx2_quants, with the error weights of its callers
AVX2_INLINE void find_scales(const floats * x, const minimum_search & search, scaled_groups & out) {
    const floats zero = {};
    floats squares    = zero;
    for (int i = 0; i < 32; i++) {
        squares += x[i] * x[i];
    }
    floats rms;
    for (int lane = 0; lane < N_LANES; lane++) {
        rms[lane] = sqrtf(squares[lane] / 32);
    }
    floats weights[32];
    for (int i = 0; i < 32; i++) {
        weights[i] = rms + magnitude(x[i]);
    }
    floats min = x[0], max = x[0], sum_w = weights[0], sum_x = weights[0] * x[0];
    for (int i = 1; i < 32; i++) {
        min = choose(x[i] < min, x[i], min);
        max = choose(x[i] > max, x[i], max);
        sum_w += weights[i];
        sum_x += weights[i] * x[i];
    }
    min               = choose(min > 0, zero, min);
    const ints is_one = max == min; // all weights of the group are equal

    floats inverse = (float)search.max / (max - min);
    floats scale = 1.0f / inverse, best = zero;
    for (int i = 0; i < 32; i++) {
        out.quants[i]     = nearest(inverse * (x[i] - min), 0, search.max);
        const floats diff = scale * to_floats(out.quants[i]) + min - x[i];
        best += weights[i] * (diff * diff);
    }
    for (int step = 0; step <= search.n_steps; step++) {
        inverse      = (search.first + search.step * step + search.max) / (max - min);
        floats sum_l = zero, sum_l2 = zero, sum_xl = zero;
        ints tried[32];
        for (int i = 0; i < 32; i++) {
            tried[i]        = nearest(inverse * (x[i] - min), 0, search.max);
            const floats l  = to_floats(tried[i]);
            const floats wl = weights[i] * l;
            sum_l += wl;
            sum_l2 += wl * l;
            sum_xl += wl * x[i];
        }
        const floats determinant = sum_w * sum_l2 - sum_l * sum_l;
        floats this_scale        = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        floats this_min          = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        const ints above_zero    = this_min > 0;
        this_scale               = choose(above_zero, sum_xl / sum_l2, this_scale);
        this_min                 = choose(above_zero, zero, this_min);
        floats error             = zero;
        for (int i = 0; i < 32; i++) {
            const floats diff = this_scale * to_floats(tried[i]) + this_min - x[i];
            error += weights[i] * (diff * diff);
        }
        const ints is_better = (determinant > 0) & (error < best);
        for (int i = 0; i < 32; i++) {
            out.quants[i] = choose(is_better, tried[i], out.quants[i]);
        }
        best  = choose(is_better, error, best);
        scale = choose(is_better, this_scale, scale);
        min   = choose(is_better, this_min, min);
    }
    for (int i = 0; i < 32; i++) {
        out.quants[i] &= ~is_one;
    }
    out.scale   = choose(is_one, zero, scale);
    out.minimum = -min;
}

// Packs 8 scales and 8 minima of 6 bits into 12 bytes.
static void pack_scales(const uint8_t * scales, const uint8_t * minima, uint8_t * out) {
    for (int i = 0; i < 4; i++) {
        out[i]     = scales[i] | (scales[i + 4] >> 4) << 6;
        out[i + 4] = minima[i] | (minima[i + 4] >> 4) << 6;
        out[i + 8] = (scales[i + 4] & 15) | (minima[i + 4] & 15) << 4;
    }
}

// Quantizes the scales of a block to 6 bits, and the weights by these scales into `out.quants`.
template <typename block>
AVX2_INLINE void quantize_block(const floats * x, int max, scaled_groups & out, block & y) {
    float max_scale = 0, max_minimum = 0;
    for (int lane = 0; lane < N_LANES; lane++) {
        max_scale   = out.scale[lane] > max_scale ? out.scale[lane] : max_scale;
        max_minimum = out.minimum[lane] > max_minimum ? out.minimum[lane] : max_minimum;
    }
    const float inverse_scale   = max_scale > 0 ? 63.f / max_scale : 0.f;
    const float inverse_minimum = max_minimum > 0 ? 63.f / max_minimum : 0.f;
    y.d                         = ggml_fp32_to_fp16(max_scale / 63.f);
    y.dmin                      = ggml_fp32_to_fp16(max_minimum / 63.f);
    uint8_t scales[N_LANES], minima[N_LANES];
    floats scale, minimum;
    for (int lane = 0; lane < N_LANES; lane++) {
        const uint8_t s = nearest_int(inverse_scale * out.scale[lane]);
        const uint8_t m = nearest_int(inverse_minimum * out.minimum[lane]);
        scales[lane]    = s < 63 ? s : 63;
        minima[lane]    = m < 63 ? m : 63;
        scale[lane]     = ggml_fp16_to_fp32(y.d) * scales[lane];
        minimum[lane]   = ggml_fp16_to_fp32(y.dmin) * minima[lane];
    }
    pack_scales(scales, minima, y.scales);
    const ints has_scale = scale != 0;
    for (int i = 0; i < 32; i++) {
        out.quants[i] = choose(has_scale, nearest((x[i] + minimum) / scale, 0, max), out.quants[i]);
    }
}

AVX2 static void quantize_q4_K(const float * x, block_q4_K * y, int64_t n_blocks) {
    for (int64_t b = 0; b < n_blocks; b++) {
        floats columns[32];
        scaled_groups groups;
        side_by_side(x + QK_K * b, 32, columns);
        find_scales(columns, {15, -1.f, 0.1f, 20}, groups);
        quantize_block(columns, 15, groups, y[b]);
        for (int pair = 0; pair < 4; pair++) {
            for (int i = 0; i < 32; i++) {
                y[b].qs[32 * pair + i] = groups.quants[i][2 * pair] | groups.quants[i][2 * pair + 1] << 4;
            }
        }
    }
}

AVX2 static void quantize_q5_K(const float * x, block_q5_K * y, int64_t n_blocks) {
    for (int64_t b = 0; b < n_blocks; b++) {
        floats columns[32];
        scaled_groups groups;
        side_by_side(x + QK_K * b, 32, columns);
        find_scales(columns, {31, -0.5f, 0.1f, 15}, groups);
        quantize_block(columns, 31, groups, y[b]);
        for (int i = 0; i < 32; i++) {
            const ints q = groups.quants[i];
            y[b].qh[i]   = 0;
            for (int lane = 0; lane < N_LANES; lane++) {
                y[b].qh[i] |= (q[lane] >> 4) << lane;
            }
            for (int pair = 0; pair < 4; pair++) {
                y[b].qs[32 * pair + i] = (q[2 * pair] & 15) | (q[2 * pair + 1] & 15) << 4;
            }
        }
    }
}

// ---- q6_K: the scale of groups of 16 -----------------------------------------------------------------

// upstream's make_qx_quants, with squares as error weights. Returns the scales; quants: from 0 to 63.
AVX2_INLINE floats find_symmetric_scales(const floats * x, ints * quants) {
    const floats zero = {};
    floats max = zero, max_magnitude = zero;
    for (int i = 0; i < 16; i++) {
        const ints is_larger = magnitude(x[i]) > max_magnitude;
        max_magnitude        = choose(is_larger, magnitude(x[i]), max_magnitude);
        max                  = choose(is_larger, x[i], max);
    }
    const ints is_zero = max_magnitude < 1e-15f;
    floats scale = zero, best = zero;
    for (int n = 0; n < 19; n++) { // tenths: 0 at first, then -9 to -1 and 1 to 9
        const int step       = n == 0 ? 0 : n < 10 ? n - 10 : n - 9;
        const floats inverse = -(32 + 0.1f * step) / max;
        floats sum_lx = zero, sum_l2 = zero;
        ints tried[16];
        for (int i = 0; i < 16; i++) {
            tried[i]            = nearest(inverse * x[i], -32, 31);
            const floats l      = to_floats(tried[i]);
            const floats weight = x[i] * x[i];
            sum_lx += weight * x[i] * l;
            sum_l2 += weight * l * l;
        }
        const floats this_scale = choose(sum_l2 != 0, sum_lx / sum_l2, zero);
        const ints is_better    = n == 0 ? ints{} - 1 : (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2);
        for (int i = 0; i < 16; i++) {
            quants[i] = choose(is_better, tried[i] + 32, quants[i]);
        }
        scale = choose(is_better, this_scale, scale);
        best  = choose(is_better, this_scale * sum_lx, best);
    }
    for (int i = 0; i < 16; i++) {
        quants[i] &= ~is_zero;
    }
    return choose(is_zero, zero, scale);
}

// Packs a block; weight i of group g is quants[i + 16 * (g / 8)][g % 8].
AVX2_INLINE void pack_q6_K(const ints * quants, block_q6_K & y) {
    uint8_t q[QK_K];
    for (int i = 0; i < QK_K; i++) {
        q[i] = quants[i % 16 + 16 * (i / 128)][i / 16 % 8];
    }
    for (int half = 0; half < 2; half++) {
        for (int i = 0; i < 32; i++) {
            const uint8_t * own      = q + 128 * half + i;
            y.ql[64 * half + i]      = (own[0] & 15) | (own[64] & 15) << 4;
            y.ql[64 * half + i + 32] = (own[32] & 15) | (own[96] & 15) << 4;
            y.qh[32 * half + i]      = own[0] >> 4 | (own[32] >> 4) << 2 | (own[64] >> 4) << 4 | (own[96] >> 4) << 6;
        }
    }
}

AVX2 static void quantize_q6_K(const float * x, block_q6_K * y, int64_t n_blocks) {
    for (int64_t b = 0; b < n_blocks; b++) {
        floats columns[32], found[2];
        ints quants[32];
        for (int half = 0; half < 2; half++) {
            side_by_side(x + QK_K * b + 128 * half, 16, columns + 16 * half);
            found[half] = find_symmetric_scales(columns + 16 * half, quants + 16 * half);
        }
        float max = 0;
        for (int group = 0; group < 16; group++) {
            const float scale = found[group / N_LANES][group % N_LANES];
            max               = fabsf(scale) > fabsf(max) ? scale : max;
        }
        if (fabsf(max) < 1e-15f) {
            memset(&y[b], 0, sizeof(y[b]));
            continue;
        }
        const float inverse = -128.f / max;
        y[b].d              = ggml_fp32_to_fp16(1 / inverse);
        floats scales[2];
        for (int group = 0; group < 16; group++) {
            const int scale                          = nearest_int(inverse * found[group / N_LANES][group % N_LANES]);
            y[b].scales[group]                       = scale < 127 ? scale : 127;
            scales[group / N_LANES][group % N_LANES] = ggml_fp16_to_fp32(y[b].d) * y[b].scales[group];
        }
        for (int i = 0; i < 32; i++) {
            const floats scale = scales[i / 16];
            quants[i]          = choose(scale != 0, nearest(columns[i] / scale, -32, 31) + 32, quants[i]);
        }
        pack_q6_K(quants, y[b]);
    }
}

// ---- q8_0: no search, but roundf keeps a compiler from using vectors ---------------------------------

// roundf within the range of int32. It rounds halves away from zero. The addend is the float before 0.5, so that a
// value just below a half does not reach the next integer.
AVX2_INLINE ints rounded(floats a) {
    const ints sign = (ints)a & (int32_t)0x80000000;
    return __builtin_convertvector(a + (floats)((ints)(floats{} + 0.49999997f) | sign), ints);
}

AVX2 static void quantize_q8_0(const float * x, block_q8_0 * y, int64_t n_blocks) {
    for (int64_t b = 0; b < n_blocks; b++) {
        floats part[4], max = {};
        memcpy(part, x + QK8_0 * b, sizeof(part));
        for (const floats & each : part) {
            max = choose(magnitude(each) > max, magnitude(each), max);
        }
        float largest = 0;
        for (int lane = 0; lane < N_LANES; lane++) {
            largest = max[lane] > largest ? max[lane] : largest;
        }
        const float d       = largest / 127;
        const float inverse = d ? 1.0f / d : 0.0f;
        y[b].d              = ggml_fp32_to_fp16(d);
        ints quants[4];
        for (int i = 0; i < 4; i++) {
            quants[i] = rounded(part[i] * inverse);
        }
        for (int i = 0; i < QK8_0; i++) {
            y[b].qs[i] = ((const int32_t *)quants)[i];
        }
    }
}

static bool quantize_by_lanes(ggml_type type, const float * src, void * dst, int64_t n_blocks) {
    if (!__builtin_cpu_supports("avx2")) {
        return false;
    }
    switch (type) {
    case GGML_TYPE_Q8_0:
        quantize_q8_0(src, (block_q8_0 *)dst, n_blocks);
        return true;
    case GGML_TYPE_Q4_K:
        quantize_q4_K(src, (block_q4_K *)dst, n_blocks);
        return true;
    case GGML_TYPE_Q5_K:
        quantize_q5_K(src, (block_q5_K *)dst, n_blocks);
        return true;
    case GGML_TYPE_Q6_K:
        quantize_q6_K(src, (block_q6_K *)dst, n_blocks);
        return true;
    default:
        return false;
    }
}
#else
static bool quantize_by_lanes(ggml_type, const float *, void *, int64_t) {
    return false;
}
#endif

void yarn_gguf_quantize(enum ggml_type type, const float * src, void * dst, int64_t n_rows, int64_t n_per_row,
                        const float * imatrix) {
    const int64_t n_blocks = n_rows * n_per_row / ggml_blck_size(type);
    if (imatrix != nullptr || !quantize_by_lanes(type, src, dst, n_blocks)) {
        ggml_quantize_chunk(type, src, dst, 0, n_rows, n_per_row, imatrix);
    }
}
