#include "ggml-rope-cpu.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-rope.h"

// ---- cosines and sines -------------------------------------------------------------------------------

// Everything that decides the rotation of a row, except its position, and the rows computed so far. Ropes of one graph
// have the same operands and positions in every layer, so each thread finds most rows ready.
class rope_rows {
  public:
    // The rotations of one token. If the channels of a pair are neighbours, both arrays have a number for each channel,
    // and a sine has the sign with which the channel's partner is multiplied. Otherwise they have one for each pair.
    struct row {
        const float * cosines;
        const float * sines;
    };

    bool matches(const ggml_tensor * op, bool forward) const {
        const size_t n = count_factors(op);
        return is_set && sign == (forward ? 1.0f : -1.0f) && memcmp(operands, op->op_params, sizeof(operands)) == 0 &&
               factors.size() == n && (n == 0 || memcmp(factors.data(), op->src[2]->data, n * sizeof(float)) == 0);
    }

    void set(const ggml_tensor * op, bool forward) {
        memcpy(operands, op->op_params, sizeof(operands));
        const ggml_rope_operands all(op);
        factors.resize(count_factors(op));
        if (!factors.empty()) {
            memcpy(factors.data(), op->src[2]->data, factors.size() * sizeof(float));
        }
        sign      = forward ? 1.0f : -1.0f;
        magnitude = all.magnitude();
        n         = all.n_pairs();
        is_multi  = all.is_multi();
        spread    = all.mode == GGML_ROPE_TYPE_NORMAL ? 2 : 1;
        if (all.has_steps == GGML_ROPE_STEPS) {
            std::vector<uint64_t> words(n);
            memcpy(words.data(), factors.data() + n, n * sizeof(uint64_t));
            set_steps(words);
        } else {
            set_steps(all.steps(factors.empty() ? nullptr : factors.data()));
        }
        components.resize(n);
        for (int i = 0; i < n; ++i) {
            components[i] = (uint8_t)ggml_rope_component(all.mode, all.sections, i);
        }
        positions.clear();
        values.clear();
        is_set = true;
    }

    // Returns the row of the op's token t. slot: where this thread keeps it.
    row get(const int32_t * pos, int64_t t, int64_t n_tokens, size_t slot) {
        slot %= MAX_ROWS;
        const int width = is_multi ? 4 : 1;
        if (positions.size() < (slot + 1) * width) {
            positions.resize((slot + 1) * width, UNKNOWN);
            values.resize((slot + 1) * 2 * spread * n);
        }
        int32_t * known = &positions[slot * width];
        float * cosines = &values[slot * 2 * spread * n];
        float * sines   = cosines + spread * n;
        bool is_known   = true;
        for (int c = 0; c < width; ++c) {
            is_known = is_known && known[c] == pos[t + c * n_tokens];
            known[c] = pos[t + c * n_tokens];
        }
        if (!is_known || known[0] == UNKNOWN) {
            compute(known, cosines, sines);
        }
        return {cosines, sines};
    }

  private:
    static constexpr size_t MAX_ROWS = 4096;
    static constexpr int32_t UNKNOWN = INT32_MIN;

    static size_t count_factors(const ggml_tensor * op) {
        const ggml_rope_operands all(op);
        return op->src[2] ? all.n_pairs() * (all.has_steps == GGML_ROPE_STEPS ? 3 : 1) : 0;
    }

    void set_steps(const std::vector<uint64_t> & steps) {
        low.resize(n);
        high.resize(n);
        for (int i = 0; i < n; ++i) {
            low[i]  = (uint32_t)steps[i];
            high[i] = (uint32_t)(steps[i] >> 32);
        }
    }

    void compute(const int32_t * position, float * cosines, float * sines) const {
        const float of_sine = sign * magnitude;
        if (is_multi) {
            for (int i = 0; i < n; ++i) {
                rope_cos_sin(rope_phase(position[components[i]], low[i], high[i]), cosines[i], sines[i]);
            }
        } else {
            const int32_t p = position[0];
            for (int i = 0; i < n; ++i) {
                rope_cos_sin(rope_phase(p, low[i], high[i]), cosines[i], sines[i]);
            }
        }
        for (int i = n - 1; i >= 0; --i) { // backwards, because spreading overwrites later values
            const float cosine = cosines[i] * magnitude;
            const float sine   = sines[i] * of_sine;
            for (int k = 0; k < spread; ++k) {
                cosines[spread * i + k] = cosine;
                sines[spread * i + k]   = spread == 2 && k == 0 ? -sine : sine;
            }
        }
    }

    bool is_set = false;
    int32_t operands[15]; // all except n_offs, which only moves the rotated part
    std::vector<float> factors;
    float sign      = 1.0f;
    float magnitude = 1.0f;
    int n           = 0;
    bool is_multi   = false;
    int spread      = 1; // numbers a pair
    std::vector<uint32_t> low;
    std::vector<uint32_t> high;
    std::vector<uint8_t> components;
    std::vector<int32_t> positions;
    std::vector<float> values;
};

// Returns this thread's rows for the op. A model has few kinds of rope: layers with and without a sliding window.
static rope_rows & rows_for(const ggml_tensor * op, bool forward) {
    thread_local rope_rows kinds[4];
    thread_local int next = 0;
    for (rope_rows & rows : kinds) {
        if (rows.matches(op, forward)) {
            return rows;
        }
    }
    rope_rows & rows = kinds[next];
    next             = (next + 1) % 4;
    rows.set(op, forward);
    return rows;
}

// ---- rotation ----------------------------------------------------------------------------------------

struct rope_shape {
    bool is_normal;
    int n_pairs;
    int distance;
    int64_t first;   // rotated channel
    int64_t rotated; // channels
    int64_t all;     // channels
};

// Tells the compiler what it cannot know: if src is dst, each pair is still read before it is written.
#if defined(__clang__)
#define ROPE_PAIRS_ARE_APART _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define ROPE_PAIRS_ARE_APART _Pragma("GCC ivdep")
#else
#define ROPE_PAIRS_ARE_APART
#endif

// Rotates n pairs, (i, i + distance) or (2i, 2i + 1). With a constant n the compiler needs no checks.
template <bool is_normal>
static inline void rotate_pairs(const float * src, float * dst, const float * cosines, const float * sines, int n,
                                int distance) {
    if (is_normal) {
        ROPE_PAIRS_ARE_APART
        for (int c = 0; c < 2 * n; c += 2) {
            const float x0 = src[c];
            const float x1 = src[c + 1];
            dst[c]         = x0 * cosines[c] + x1 * sines[c];
            dst[c + 1]     = x1 * cosines[c + 1] + x0 * sines[c + 1];
        }
    } else {
        ROPE_PAIRS_ARE_APART
        for (int i = 0; i < n; ++i) {
            const float x0    = src[i];
            const float x1    = src[i + distance];
            dst[i]            = x0 * cosines[i] - x1 * sines[i];
            dst[i + distance] = x0 * sines[i] + x1 * cosines[i];
        }
    }
}

// some heads of one token
struct rope_heads {
    const char * src;
    char * dst;
    size_t src_stride; // bytes
    size_t dst_stride;
    int64_t count;

    const float * from(int64_t i) const {
        return (const float *)(src + i * src_stride);
    }

    float * to(int64_t i) const {
        return (float *)(dst + i * dst_stride);
    }
};

// Rotates pairs i, i + 1, … of all heads, in as many whole blocks of n pairs as remain. Returns the next pair. With a
// constant n, a head is straight code: memory is walked in order, and the numbers of a small block stay in registers.
template <bool is_normal, int n>
static int rotate_blocks(const rope_heads & heads, rope_rows::row row, const rope_shape & shape, int i) {
    constexpr int width = is_normal ? 2 : 1;
    for (; i + n <= shape.n_pairs; i += n) {
        float cosines[width * n];
        float sines[width * n];
        memcpy(cosines, row.cosines + width * i, sizeof(cosines));
        memcpy(sines, row.sines + width * i, sizeof(sines));
        const int64_t first = shape.first + width * i;
        for (int64_t h = 0; h < heads.count; ++h) {
            rotate_pairs<is_normal>(heads.from(h) + first, heads.to(h) + first, cosines, sines, n, shape.distance);
        }
    }
    return i;
}

template <bool is_normal>
static void rotate_heads(const rope_heads & heads, rope_rows::row row, const rope_shape & shape) {
    int i = rotate_blocks<is_normal, 64>(heads, row, shape, 0);
    i     = rotate_blocks<is_normal, 32>(heads, row, shape, i);
    i     = rotate_blocks<is_normal, 16>(heads, row, shape, i);
    rotate_blocks<is_normal, 1>(heads, row, shape, i);
}

static void rotate(const rope_heads & heads, rope_rows::row row, const rope_shape & shape, float /*type*/) {
    if (shape.is_normal) {
        rotate_heads<true>(heads, row, shape);
    } else {
        rotate_heads<false>(heads, row, shape);
    }
    if (heads.src == heads.dst || shape.rotated == shape.all) {
        return;
    }
    const int64_t end = shape.first + shape.rotated;
    for (int64_t h = 0; h < heads.count; ++h) {
        memcpy(heads.to(h), heads.from(h), shape.first * sizeof(float));
        memcpy(heads.to(h) + end, heads.from(h) + end, (shape.all - end) * sizeof(float));
    }
}

static void rotate(const rope_heads & heads, rope_rows::row row, const rope_shape & shape, ggml_fp16_t /*type*/) {
    thread_local std::vector<float> buffer;
    buffer.resize(shape.all);
    char * data = (char *)buffer.data();
    for (int64_t h = 0; h < heads.count; ++h) {
        ggml_cpu_fp16_to_fp32((const ggml_fp16_t *)(heads.src + h * heads.src_stride), buffer.data(), shape.all);
        rotate({data, data, 0, 0, 1}, row, shape, 0.0f);
        ggml_cpu_fp32_to_fp16(buffer.data(), (ggml_fp16_t *)(heads.dst + h * heads.dst_stride), shape.all);
    }
}

template <typename T>
static void compute(const ggml_compute_params * params, ggml_tensor * op, bool forward, const rope_shape & shape) {
    const ggml_tensor * src = op->src[0];
    const int32_t * pos     = (const int32_t *)op->src[1]->data;
    const int64_t n_heads   = op->ne[1];
    const int64_t n_tokens  = op->ne[2];
    rope_rows & rows        = rows_for(op, forward);

    // each thread gets whole tokens, or heads if there are fewer tokens than threads
    const bool by_token  = n_tokens * op->ne[3] >= params->nth;
    const int64_t units  = n_tokens * op->ne[3] * (by_token ? 1 : n_heads);
    const int64_t share  = (units + params->nth - 1) / params->nth;
    const int64_t begin  = std::min(share * params->ith, units) * (by_token ? n_heads : 1);
    const int64_t end    = std::min(share * (params->ith + 1), units) * (by_token ? n_heads : 1);
    const int64_t origin = n_heads > 0 ? begin / n_heads : 0;

    for (int64_t r = begin; r < end;) {
        const int64_t token = r / n_heads;
        const int64_t i3    = token / n_tokens;
        const int64_t i2    = token % n_tokens;
        const auto row      = rows.get(pos, i2, n_tokens, (size_t)(token - origin));
        const int64_t i1    = r - token * n_heads;
        const int64_t count = std::min(end - r, n_heads - i1);
        const char * from   = (const char *)src->data + i3 * src->nb[3] + i2 * src->nb[2] + i1 * src->nb[1];
        char * to           = (char *)op->data + i3 * op->nb[3] + i2 * op->nb[2] + i1 * op->nb[1];
        rotate({from, to, src->nb[1], op->nb[1], count}, row, shape, T());
        r += count;
    }
}

// ---- reference -----------------------------------------------------------------------------------------

// For test-backend-ops, which compares backends with the CPU's reference. The reference is upstream's code where its
// angles are good. Elsewhere it is the code below, in double, one pair at a time, which uses nothing from above.
static bool has_good_angles_upstream(const ggml_tensor * op) {
    const int32_t * pos = (const int32_t *)op->src[1]->data;
    return std::all_of(pos, pos + ggml_nelements(op->src[1]), [](int32_t p) { return -4096 <= p && p <= 4096; });
}

// Returns the radians per position of each pair.
static std::vector<double> reference_frequencies(const ggml_tensor * op, const ggml_rope_operands & operands) {
    const float * factors = op->src[2] ? (const float *)op->src[2]->data : nullptr;
    if (operands.has_steps != GGML_ROPE_STEPS) {
        return operands.inv_freq(factors);
    }
    std::vector<double> inv_freq(operands.n_pairs());
    for (size_t i = 0; i < inv_freq.size(); ++i) { // like backends that do not know steps
        inv_freq[i] = rope_theta(operands.freq_base, (int)i, operands.n_dims) / factors[i];
    }
    return inv_freq;
}

template <typename T>
static void compute_reference(ggml_tensor * op, bool forward, const rope_shape & shape, T (*from_float)(float),
                              float (*to_float)(T)) {
    const ggml_tensor * src = op->src[0];
    const int32_t * pos     = (const int32_t *)op->src[1]->data;
    const ggml_rope_operands operands(op);
    const auto inv_freq    = reference_frequencies(op, operands);
    const double magnitude = operands.magnitude();
    for (int64_t r = 0; r < op->ne[1] * op->ne[2] * op->ne[3]; ++r) {
        const int64_t i1 = r % op->ne[1];
        const int64_t i2 = r / op->ne[1] % op->ne[2];
        const int64_t i3 = r / op->ne[1] / op->ne[2];
        const T * from   = (const T *)((char *)src->data + i3 * src->nb[3] + i2 * src->nb[2] + i1 * src->nb[1]);
        T * to           = (T *)((char *)op->data + i3 * op->nb[3] + i2 * op->nb[2] + i1 * op->nb[1]);
        if (from != to) {
            std::copy(from, from + shape.all, to);
        }
        for (int i = 0; i < shape.n_pairs; ++i) {
            const int component  = ggml_rope_component(operands.mode, operands.sections, i);
            const double angle   = pos[i2 + component * op->ne[2]] * inv_freq[i] * (forward ? 1.0 : -1.0);
            const int64_t first  = shape.first + (shape.is_normal ? 2 * i : i);
            const int64_t second = first + (shape.is_normal ? 1 : shape.distance);
            const double x0      = to_float(from[first]) * magnitude;
            const double x1      = to_float(from[second]) * magnitude;
            to[first]            = from_float((float)(x0 * std::cos(angle) - x1 * std::sin(angle)));
            to[second]           = from_float((float)(x0 * std::sin(angle) + x1 * std::cos(angle)));
        }
    }
}

static float same(float x) {
    return x;
}

// ---- what the patch calls ----------------------------------------------------------------------------

bool ggml_rope_cpu_compute(const ggml_compute_params * params, ggml_tensor * op, bool forward) {
    if (ggml_rope_wants_upstream()) {
        return false;
    }
    const ggml_rope_operands operands(op);
    rope_shape shape;
    shape.is_normal = operands.mode == GGML_ROPE_TYPE_NORMAL;
    shape.n_pairs   = operands.n_pairs();
    shape.distance  = operands.distance();
    shape.first     = operands.n_offs;
    shape.all       = op->ne[0];
    shape.rotated   = operands.n_rotated(shape.all);

    GGML_ASSERT(op->src[1]->type == GGML_TYPE_I32);
    GGML_ASSERT(op->nb[0] == ggml_type_size(op->type) && op->src[0]->nb[0] == op->nb[0]);
    GGML_ASSERT(operands.are_sound(shape.all));
    GGML_ASSERT(!op->src[2] || op->src[2]->type == GGML_TYPE_F32);
    if (params->use_ref) {
        if (has_good_angles_upstream(op)) {
            return false;
        }
        if (params->ith == 0 && op->type == GGML_TYPE_F32) {
            compute_reference<float>(op, forward, shape, same, same);
        } else if (params->ith == 0) {
            compute_reference<ggml_fp16_t>(op, forward, shape, ggml_fp32_to_fp16, ggml_fp16_to_fp32);
        }
    } else if (op->type == GGML_TYPE_F32) {
        compute<float>(params, op, forward, shape);
    } else {
        GGML_ASSERT(op->type == GGML_TYPE_F16);
        compute<ggml_fp16_t>(params, op, forward, shape);
    }
    return true;
}
