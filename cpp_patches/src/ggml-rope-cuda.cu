#include "ggml-rope-cuda.cuh"

#include "ggml-cuda/convert.cuh"
#include "ggml-rope.h"

#include <array>
#include <map>
#include <mutex>
#include <type_traits>

// ---- angles ------------------------------------------------------------------------------------------

// The frequency of one pair of dimensions: as a phase step, and in turns as the sum of two floats, for division.
struct rope_pair {
    uint32_t low;
    uint32_t high;
    float turns;
    float turns_rest;
};

struct rope_angles {
    const int32_t * pos;
    int n_tokens;
    const rope_pair * pairs; // from the op's operands, or
    const uint32_t * given;  // steps from the op's src[2]
    const float * factors;   // divisors of pairs, or null
    float magnitude;
    float sine_sign;
    int mode;
    int32_t sections[4];
};

// Computes the rotation of pair i of a token. pair: angles.pairs[i], which the caller reads ahead if it can.
static __device__ void rope_rotation(const rope_angles & angles, const rope_pair & pair, int token, int i,
                                     float & cosine, float & sine) {
    const int component    = ggml_rope_component(angles.mode, angles.sections, i);
    const int32_t position = angles.pos[token + component * angles.n_tokens];
    int32_t phase;
    if (angles.given) {
        phase = rope_phase(position, angles.given[2 * i], angles.given[2 * i + 1]);
    } else {
        phase = angles.factors ? rope_phase_divided(position, pair.turns, pair.turns_rest, angles.factors[i])
                               : rope_phase(position, pair.low, pair.high);
    }
    rope_cos_sin(phase, cosine, sine);
    cosine *= angles.magnitude;
    sine *= angles.magnitude * angles.sine_sign;
}

// ---- the op ------------------------------------------------------------------------------------------

struct rope_geometry {
    int n_heads;
    int n_tokens;
    int n_all; // channels of a head
    int n_pairs;
    int distance; // between the channels of a pair, where they are not neighbours
    int first;    // rotated channel
    int n_rotated;
    int64_t s1; // strides of the source, in elements
    int64_t s2;
    int64_t s3;
    int64_t d1; // strides of the destination
    int64_t d2;
    int64_t d3;
    const int64_t * rows; // rows of the destination, for fused set_rows, or null
    int64_t row_stride;
    bool copies; // copy the channels that are not rotated
};

template <typename T, int n, size_t alignment = sizeof(T) * n>
struct alignas(alignment) rope_vector {
    T v[n];
};

// n pairs of one head in registers.
template <typename T, typename D, bool halves, int n>
struct rope_part {
    static constexpr int width = halves ? n : 2 * n;
    // a single pair may come from a view that is aligned to one element only
    using in  = rope_vector<T, width, sizeof(T) * (n == 1 ? 1 : width)>;
    using out = rope_vector<D, width, sizeof(D) * (n == 1 ? 1 : width)>;
    in one;
    rope_vector<T, halves ? n : 1> other;

    __device__ void load(const T * source, int distance) {
        one = *(const decltype(one) *)source;
        if (halves) {
            other = *(const decltype(other) *)(source + distance);
        }
    }

    __device__ void rotate(D * target, int distance, const float * cosines, const float * sines) const {
        out first;
        rope_vector<D, halves ? n : 1> second;
#pragma unroll
        for (int k = 0; k < n; ++k) {
            const float a = ggml_cuda_cast<float>(one.v[halves ? k : 2 * k]);
            const float b = ggml_cuda_cast<float>(halves ? other.v[halves ? k : 0] : one.v[halves ? 0 : 2 * k + 1]);
            const D x     = ggml_cuda_cast<D>(a * cosines[k] - b * sines[k]);
            const D y     = ggml_cuda_cast<D>(a * sines[k] + b * cosines[k]);
            if (halves) {
                first.v[k]               = x;
                second.v[halves ? k : 0] = y;
            } else {
                first.v[halves ? 0 : 2 * k]     = x;
                first.v[halves ? 0 : 2 * k + 1] = y;
            }
        }
        *(decltype(first) *)target = first;
        if (halves) {
            *(decltype(second) *)(target + distance) = second;
        }
    }
};

// A block computes the rotations of one token once and applies them to its heads. A thread has n pairs of `at_once`
// heads in flight.
//
// No pointer here is __restrict__. With that promise the compiler may move a read before ggml_cuda_pdl_sync, while the
// kernel that writes the data is still running (upstream's pull request 24030).
template <typename T, typename D, bool halves, int n, int at_once>
static __global__ void rope_rows(const T * x, D * dst, const rope_geometry g, const rope_angles angles) {
    extern __shared__ float rotations[];
    ggml_cuda_pdl_lc();
    const int thread  = threadIdx.y * blockDim.x + threadIdx.x;
    const int threads = blockDim.x * blockDim.y;
    const int token   = blockIdx.x % g.n_tokens;
    const int batch   = blockIdx.x / g.n_tokens;
    const int step    = gridDim.y * blockDim.y;
    const int at      = g.first + (halves ? n : 2 * n) * threadIdx.x;
    int head          = blockIdx.y * blockDim.y + threadIdx.y;
    rope_pair ahead   = {};
    if (angles.pairs && thread < g.n_pairs) {
        ahead = angles.pairs[thread]; // constant, so there is no need to wait for the previous kernel
    }

    ggml_cuda_pdl_sync();
    const T * source = x + batch * g.s3 + token * g.s2 + head * g.s1;
    rope_part<T, D, halves, n> parts[at_once];
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
        if (head + k * step < g.n_heads) {
            parts[k].load(source + k * step * g.s1 + at, g.distance);
        }
    }
    for (int i = thread; i < g.n_pairs; i += threads) {
        const rope_pair pair = i == thread || !angles.pairs ? ahead : angles.pairs[i];
        rope_rotation(angles, pair, token, i, rotations[i], rotations[g.n_pairs + i]);
    }
    const int64_t to = g.rows ? g.rows[token] * g.row_stride : batch * g.d3 + token * g.d2;
    __syncthreads();

    float cosines[n];
    float sines[n];
#pragma unroll
    for (int k = 0; k < n; ++k) {
        cosines[k] = rotations[n * threadIdx.x + k];
        sines[k]   = rotations[g.n_pairs + n * threadIdx.x + k];
    }
    while (head < g.n_heads) {
#pragma unroll
        for (int k = 0; k < at_once; ++k) {
            if (head + k * step < g.n_heads) {
                D * target = dst + to + (head + k * step) * g.d1;
                parts[k].rotate(target + at, g.distance, cosines, sines);
                if (g.copies) {
                    const T * copied = source + k * step * g.s1;
                    for (int c = threadIdx.x; c < g.n_all - g.n_rotated; c += blockDim.x) {
                        const int channel = c < g.first ? c : c + g.n_rotated;
                        target[channel]   = ggml_cuda_cast<D>(ggml_cuda_cast<float>(copied[channel]));
                    }
                }
            }
        }
        head += at_once * step;
        source += at_once * step * g.s1;
#pragma unroll
        for (int k = 0; k < at_once; ++k) {
            if (head + k * step < g.n_heads) {
                parts[k].load(source + k * step * g.s1 + at, g.distance);
            }
        }
    }
}

static bool is_multiple(std::initializer_list<int64_t> values, int64_t of) {
    for (int64_t value : values) {
        if (value % of != 0) {
            return false;
        }
    }
    return true;
}

// Returns whether all vectors of `width` elements are aligned to their own size.
template <typename T, typename D>
static bool is_aligned(const T * x, const D * dst, const rope_geometry & g, int width) {
    const bool pointers = (uintptr_t)x % (width * sizeof(T)) == 0 && (uintptr_t)dst % (width * sizeof(D)) == 0;
    return pointers && is_multiple({g.first, g.s1, g.s2, g.s3, g.d1, g.d2, g.d3, g.row_stride}, width);
}

template <typename T, typename D, bool halves, int n>
static void launch(const T * x, D * dst, const rope_geometry & g, const rope_angles & angles, int n_batches,
                   cudaStream_t stream) {
    const int n_columns = g.n_tokens * n_batches;
    const int threads   = g.n_pairs / n;
    // Few tokens: small blocks, which finish early. Many: one block for all heads of a token, which computes its
    // rotations once, with two heads in flight (on an H100 at 4096 tokens, 3% to 6% faster than with one).
    const bool is_many                          = n_columns >= 1024;
    const int most                              = n_columns >= 256 ? 256 : 128;
    const int heads                             = std::max(1, std::min(g.n_heads / (is_many ? 2 : 1), most / threads));
    const int rows                              = is_many ? 1 : (g.n_heads + heads - 1) / heads;
    const ggml_cuda_kernel_launch_params params = {dim3(n_columns, rows, 1), dim3(threads, heads, 1),
                                                   2 * g.n_pairs * sizeof(float), stream};
    if (is_many) {
        ggml_cuda_kernel_launch(rope_rows<T, D, halves, n, 2>, params, x, dst, g, angles);
    } else {
        ggml_cuda_kernel_launch(rope_rows<T, D, halves, n, 1>, params, x, dst, g, angles);
    }
}

template <typename T, typename D>
static void compute(const T * x, D * dst, const rope_geometry & g, const rope_angles & angles, int n_batches,
                    bool is_normal, cudaStream_t stream) {
    constexpr int wide = 16 / sizeof(T);              // elements in 16 bytes
    const bool is_few  = g.n_tokens * n_batches < 16; // then latency counts, not bandwidth
    if (is_normal) {
        constexpr int n = wide / 2;
        if (!is_few && g.n_pairs % n == 0 && is_aligned(x, dst, g, wide)) {
            launch<T, D, false, n>(x, dst, g, angles, n_batches, stream);
        } else {
            launch<T, D, false, 1>(x, dst, g, angles, n_batches, stream);
        }
    } else if (!is_few && is_multiple({g.n_pairs, g.distance}, wide) && is_aligned(x, dst, g, wide)) {
        launch<T, D, true, wide>(x, dst, g, angles, n_batches, stream);
    } else {
        launch<T, D, true, 1>(x, dst, g, angles, n_batches, stream);
    }
}

// ---- steps on the device -----------------------------------------------------------------------------

// Returns the steps for the operands on the device. A context has few kinds of rope, and captured graphs may point to
// their steps, so these stay on the device.
static const rope_pair * pairs_on_device(const ggml_rope_operands & operands, int device) {
    static std::mutex mutex;
    static std::map<std::array<int32_t, 17>, rope_pair *> known;

    ggml_rope_operands decisive = operands;
    decisive.attn_factor        = 0.0f;
    decisive.n_offs             = 0;
    std::array<int32_t, 17> key;
    memcpy(key.data(), &decisive, sizeof(decisive));
    key[16] = device;

    std::lock_guard<std::mutex> lock(mutex);
    rope_pair *& pairs = known[key];
    if (!pairs) {
        const auto steps = operands.steps(nullptr);
        std::vector<rope_pair> host(steps.size());
        for (size_t i = 0; i < steps.size(); ++i) {
            const double turns = (double)steps[i] * 0x1p-64;
            host[i].low        = (uint32_t)steps[i];
            host[i].high       = (uint32_t)(steps[i] >> 32);
            host[i].turns      = (float)turns;
            host[i].turns_rest = (float)(turns - host[i].turns);
        }
        // its own stream, because the op's stream may be under capture
        cudaStream_t stream;
        CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        CUDA_CHECK(cudaMalloc(&pairs, host.size() * sizeof(rope_pair)));
        CUDA_CHECK(
            cudaMemcpyAsync(pairs, host.data(), host.size() * sizeof(rope_pair), cudaMemcpyHostToDevice, stream));
        CUDA_CHECK(cudaStreamSynchronize(stream));
        CUDA_CHECK(cudaStreamDestroy(stream));
    }
    return pairs;
}

static rope_angles angles_of(const ggml_tensor * rope, const ggml_rope_operands & operands, int device, bool forward) {
    rope_angles angles = {};
    angles.pos         = (const int32_t *)rope->src[1]->data;
    angles.n_tokens    = rope->ne[2];
    angles.magnitude   = operands.magnitude();
    angles.sine_sign   = forward ? 1.0f : -1.0f;
    angles.mode        = operands.mode;
    memcpy(angles.sections, operands.sections, sizeof(angles.sections));
    const float * factors = rope->src[2] ? (const float *)rope->src[2]->data : nullptr;
    if (operands.has_steps == GGML_ROPE_STEPS) {
        angles.given = (const uint32_t *)(factors + operands.n_pairs());
    } else {
        angles.pairs   = pairs_on_device(operands, device);
        angles.factors = factors;
    }
    return angles;
}

// ---- what the patch calls ----------------------------------------------------------------------------

bool ggml_rope_cuda_compute(ggml_backend_cuda_context & ctx, ggml_tensor * rope, const ggml_tensor * set_rows,
                            bool forward) {
    const ggml_tensor * src = rope->src[0];
    const ggml_rope_operands operands(rope);
    if (ggml_rope_wants_upstream() || operands.n_pairs() > 1024) {
        return false;
    }
    const size_t size    = ggml_type_size(src->type);
    const ggml_type type = set_rows ? set_rows->type : rope->type;
    void * dst           = set_rows ? set_rows->data : rope->data;

    rope_geometry g = {};
    g.n_heads       = src->ne[1];
    g.n_tokens      = src->ne[2];
    g.n_all         = src->ne[0];
    g.n_pairs       = operands.n_pairs();
    g.distance      = operands.distance();
    g.first         = operands.n_offs;
    g.n_rotated     = operands.n_rotated(g.n_all);
    g.s1            = src->nb[1] / size;
    g.s2            = src->nb[2] / size;
    g.s3            = src->nb[3] / size;
    g.d1            = rope->nb[1] / ggml_type_size(rope->type);
    g.d2            = rope->nb[2] / ggml_type_size(rope->type);
    g.d3            = rope->nb[3] / ggml_type_size(rope->type);
    g.copies        = g.n_rotated < g.n_all && src->data != dst;
    if (set_rows) {
        g.rows       = (const int64_t *)set_rows->src[1]->data;
        g.row_stride = set_rows->nb[1] / ggml_type_size(type);
    }
    const rope_angles angles = angles_of(rope, operands, ctx.device, forward);
    const bool is_normal     = operands.mode == GGML_ROPE_TYPE_NORMAL;
    const int n_batches      = src->ne[3];
    if (src->type == GGML_TYPE_F32 && type == GGML_TYPE_F32) {
        compute((const float *)src->data, (float *)dst, g, angles, n_batches, is_normal, ctx.stream());
    } else if (src->type == GGML_TYPE_F32 && type == GGML_TYPE_F16) {
        compute((const float *)src->data, (half *)dst, g, angles, n_batches, is_normal, ctx.stream());
    } else if (src->type == GGML_TYPE_F16 && type == GGML_TYPE_F16) {
        compute((const half *)src->data, (half *)dst, g, angles, n_batches, is_normal, ctx.stream());
    } else {
        return false;
    }
    return true;
}

// ---- RMS_NORM, MUL and ROPE in one ---------------------------------------------------------------------

struct rope_norm_geometry {
    int n_heads;
    int n_tokens;
    int n_rows; // number of heads of all tokens
    int n_all;
    int n_dims;
    int64_t s1;
    int64_t s2;
    int64_t s3;
    int64_t d1;
    int64_t d2;
    int64_t d3;
    const int64_t * rows;
    int64_t row_stride;
    int mul_ne[4];
    int64_t mul_s[4];
    float eps;
};

// Each warp computes one head.
template <typename D, bool halves>
static __global__ void rope_normed_rows(const float * x, const float * mul, D * dst, const rope_norm_geometry g,
                                        const rope_angles angles) {
    ggml_cuda_pdl_lc();
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= g.n_rows) {
        return;
    }
    const int head  = row % g.n_heads;
    const int token = row / g.n_heads % g.n_tokens;
    const int batch = row / g.n_heads / g.n_tokens;

    x += batch * g.s3 + token * g.s2 + head * g.s1;
    mul += batch % g.mul_ne[3] * g.mul_s[3] + token % g.mul_ne[2] * g.mul_s[2] + head % g.mul_ne[1] * g.mul_s[1];

    ggml_cuda_pdl_sync();
    dst += head * g.d1 + (g.rows ? g.rows[token] * g.row_stride : batch * g.d3 + token * g.d2);
    float sum = 0.0f;
    for (int c = threadIdx.x; c < g.n_all; c += WARP_SIZE) {
        sum += x[c] * x[c];
    }
    const float scale = rsqrtf(warp_reduce_sum(sum) / g.n_all + g.eps);

    for (int i = threadIdx.x; i < g.n_all / 2; i += WARP_SIZE) {
        const bool rotated = 2 * i < g.n_dims;
        const int c0       = halves && rotated ? i : 2 * i;
        const int c1       = halves && rotated ? i + g.n_dims / 2 : 2 * i + 1;
        const float x0     = scale * x[c0] * mul[c0 % g.mul_ne[0]];
        const float x1     = scale * x[c1] * mul[c1 % g.mul_ne[0]];
        float cosine       = 1.0f;
        float sine         = 0.0f;
        if (rotated) {
            rope_rotation(angles, angles.pairs ? angles.pairs[i] : rope_pair{}, token, i, cosine, sine);
        }
        dst[c0] = ggml_cuda_cast<D>(x0 * cosine - x1 * sine);
        dst[c1] = ggml_cuda_cast<D>(x0 * sine + x1 * cosine);
    }
}

template <typename D>
static void compute_normed(const float * x, const float * mul, D * dst, const rope_norm_geometry & g,
                           const rope_angles & angles, bool is_normal, cudaStream_t stream) {
    const int warps                             = 4;
    const ggml_cuda_kernel_launch_params params = {dim3((g.n_rows + warps - 1) / warps, 1, 1),
                                                   dim3(WARP_SIZE, warps, 1), (size_t)0, stream};
    if (is_normal) {
        ggml_cuda_kernel_launch(rope_normed_rows<D, false>, params, x, mul, dst, g, angles);
    } else {
        ggml_cuda_kernel_launch(rope_normed_rows<D, true>, params, x, mul, dst, g, angles);
    }
}

bool ggml_rope_cuda_compute_normed(ggml_backend_cuda_context & ctx, const ggml_tensor * rms_norm,
                                   const ggml_tensor * mul, ggml_tensor * rope, const ggml_tensor * set_rows) {
    if (ggml_rope_wants_upstream()) {
        return false;
    }
    const ggml_tensor * x       = rms_norm->src[0];
    const ggml_tensor * weights = mul->src[0] == rms_norm ? mul->src[1] : mul->src[0];
    const ggml_rope_operands operands(rope);
    const ggml_type type = set_rows ? set_rows->type : rope->type;
    void * dst           = set_rows ? set_rows->data : rope->data;

    rope_norm_geometry g = {};
    g.n_heads            = x->ne[1];
    g.n_tokens           = x->ne[2];
    g.n_rows             = x->ne[1] * x->ne[2] * x->ne[3];
    g.n_all              = x->ne[0];
    g.n_dims             = operands.n_dims;
    g.s1                 = x->nb[1] / sizeof(float);
    g.s2                 = x->nb[2] / sizeof(float);
    g.s3                 = x->nb[3] / sizeof(float);
    g.d1                 = rope->nb[1] / sizeof(float);
    g.d2                 = rope->nb[2] / sizeof(float);
    g.d3                 = rope->nb[3] / sizeof(float);
    memcpy(&g.eps, rms_norm->op_params, sizeof(float));
    for (int k = 0; k < 4; ++k) {
        g.mul_ne[k] = weights->ne[k];
        g.mul_s[k]  = weights->nb[k] / sizeof(float);
    }
    if (set_rows) {
        g.rows       = (const int64_t *)set_rows->src[1]->data;
        g.row_stride = set_rows->nb[1] / ggml_type_size(type);
    }
    const rope_angles angles = angles_of(rope, operands, ctx.device, true);
    const bool is_normal     = operands.mode == GGML_ROPE_TYPE_NORMAL;
    if (type == GGML_TYPE_F32) {
        compute_normed((const float *)x->data, (const float *)weights->data, (float *)dst, g, angles, is_normal,
                       ctx.stream());
    } else {
        compute_normed((const float *)x->data, (const float *)weights->data, (half *)dst, g, angles, is_normal,
                       ctx.stream());
    }
    return true;
}
