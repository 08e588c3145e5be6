#include "llama-rope-rotation.h"

#include "ggml-rope.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-k-rope.h"
#include "llama-kv-cache.h"
#include "llama-model.h"
#include "llama-require.h"
#include "llama-rope-caches.h"
#include "llama-rope-frequencies.h"
#include "llama-rope-scaling.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>

// ---- which cells -------------------------------------------------------------------------------------

struct k_cells {
    llama_seq_id seq; // a sequence in whose stream they are
    uint32_t first;
    uint32_t count;
};

// Returns how many cells one graph rotates: all, or a part where K takes the way through float32, to keep that copy
// small.
static uint32_t most_cells(const llama_kv_cache & kv) {
    return llama_rope_scaling_is_inplace(kv.type_k()) ? kv.get_size() : std::min<uint32_t>(kv.get_size(), 16384);
}

// Returns all cells in use, in parts of at most most_cells().
static std::vector<k_cells> cells_in_use(const llama_kv_cache & kv, const llama_context & ctx) {
    const uint32_t part = most_cells(kv);
    std::set<uint32_t> seen;
    std::vector<k_cells> parts;
    for (llama_seq_id s = 0; s < (llama_seq_id)ctx.n_seq_max(); ++s) {
        if (!seen.insert(kv.get_stream(s)).second) {
            continue;
        }
        const uint32_t used = kv.get_cells(s).used_max_p1();
        for (uint32_t first = 0; first < used; first += part) {
            parts.push_back({s, first, std::min(part, used - first)});
        }
    }
    return parts;
}

static std::vector<int32_t> positions_of(const llama_kv_cache & kv, const k_cells & part) {
    const auto & cells = kv.get_cells(part.seq);
    std::vector<int32_t> positions(part.count);
    for (uint32_t i = 0; i < part.count; ++i) {
        positions[i] = cells.is_empty(part.first + i) ? 0 : cells.pos_get(part.first + i);
    }
    return positions;
}

// ---- the graph ---------------------------------------------------------------------------------------

class llm_graph_input_k_rotation : public llm_graph_input_i {
  public:
    llm_graph_input_k_rotation(ggml_context * ctx, const llama_kv_cache & kv, std::vector<int32_t> positions,
                               const std::vector<float> & factors)
        : kv(kv), positions_data(std::move(positions)), factors_data(factors) {
        // No ggml_set_input: such inputs start on the host, and the scheduler copies one only after the work under way.
        positions_tensor = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, positions_data.size());
        factors_tensor   = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, factors_data.size());
        hadamard         = kv.build_input_k_rot(ctx);
    }

    void set_input(const llama_ubatch * /*ubatch*/) override {
        ggml_backend_tensor_set(positions_tensor, positions_data.data(), 0, ggml_nbytes(positions_tensor));
        ggml_backend_tensor_set(factors_tensor, factors_data.data(), 0, ggml_nbytes(factors_tensor));
        if (hadamard && hadamard->buffer) { // not allocated where no layer needs it
            kv.set_input_k_rot(hadamard);
        }
    }

    ggml_tensor * positions_tensor;
    ggml_tensor * factors_tensor;
    ggml_tensor * hadamard; // quantized K is stored in its basis; the rotation is its own inverse

  private:
    const llama_kv_cache & kv;
    std::vector<int32_t> positions_data;
    std::vector<float> factors_data;
};

// Returns the operands of a rope that does what the input's factors and the magnitude say, in the rotated dimensions.
static llama_rope_params rotation_params(const llama_k_origin & origin, float freq_base, float magnitude) {
    llama_rope_params params = {};
    ggml_rope_operands operands(params.data());
    operands.has_steps   = GGML_ROPE_STEPS;
    operands.n_dims      = origin.params[1];
    operands.mode        = origin.params[2];
    operands.freq_base   = freq_base;
    operands.freq_scale  = 1.0f;
    operands.attn_factor = magnitude;
    memcpy(params.data(), &operands, sizeof(operands));
    return params;
}

// Rotates some cells of one layer in place.
static ggml_tensor * build_rotation(ggml_context * ctx, const llama_kv_cache & kv, int il,
                                    const llama_k_origin & origin, const k_cells & cells,
                                    const llm_graph_input_k_rotation & input, float freq_base, float magnitude) {
    ggml_tensor * k     = kv.get_k_storage(il);
    const size_t offset = kv.get_stream(cells.seq) * k->nb[2] + cells.first * k->nb[1];
    ggml_tensor * rows  = ggml_view_2d(ctx, k, k->ne[0], cells.count, k->nb[1], offset);
    return llama_k_rope_build(
        ctx, rows, origin,
        {rotation_params(origin, freq_base, magnitude), input.positions_tensor, input.factors_tensor, input.hadamard});
}

llm_graph_result * llama_rope_rotation::build_graph(llama_context & ctx, const llama_kv_cache & kv,
                                                    const k_cells & cells, const std::vector<float> & factors,
                                                    float magnitude) const {
    auto * res = ctx.get_gf_res_reserve();
    res->reset();
    auto input = std::make_unique<llm_graph_input_k_rotation>(res->get_ctx(), kv, positions_of(kv, cells), factors);
    for (uint32_t il : kv.get_layer_ids()) {
        if (const auto layer = layers.find(il); layer != layers.end()) {
            ggml_build_forward_expand(res->get_gf(), build_rotation(res->get_ctx(), kv, il, layer->second, cells,
                                                                    *input, (float)freq_base, magnitude));
        }
    }
    res->add_input(std::move(input));
    return ggml_graph_n_nodes(res->get_gf()) > 0 ? res : nullptr;
}

// ---- caches and layers -------------------------------------------------------------------------------

llama_rope_rotation::llama_rope_rotation(llama_context & ctx)
    : freq_base(ctx.get_cparams().rope_freq_base), n_dims((int)ctx.get_model().hparams.n_rot_full) {
    for (llama_kv_cache * kv : llama_rope_caches_of(ctx.get_memory())) {
        if (!kv->get_layer_ids().empty()) { // a model may have no layer with a sliding window, or no other
            caches.push_back(kv);
        }
    }
    require(!caches.empty(), "the keys in this model's kind of cache cannot be rotated");
}

void llama_rope_rotation::find_layers(llama_context & ctx) {
    // Any table marks the ropes that are scaled.
    ctx.set_rope_frequencies(llama_rope_frequencies_make(rope_inv_freq({}, freq_base, n_dims)), 0.5f, 1.0f);
    ctx.reserve_largest_graph(); // builds a graph, which notes where its keys come from
    bool is_normalized    = false;
    const char * obstacle = nullptr;
    for (const llama_kv_cache * kv : caches) {
        for (uint32_t il : kv->get_layer_ids()) {
            const llama_k_origin origin = llama_k_origin_of(*ctx.get_cparams().k_origins, kv->get_k_storage(il));
            if (origin.is_scaled) {
                layers[il] = origin;
                is_normalized |= origin.is_normalized;
                obstacle = origin.obstacle ? origin.obstacle : obstacle;
            }
        }
    }
    ctx.set_rope_frequencies(nullptr, 1.0f, 1.0f);
    ctx.reserve_largest_graph();
    require(!layers.empty(), "the model caches no keys from a rope that can be scaled");
    require(!is_normalized, "the model normalizes keys after their rope, so cached keys cannot be rotated");
    require(!obstacle, obstacle);
}

double llama_rope_rotation::step_min() const {
    static const float ROUNDED = 1.01f;
    const auto is_f32          = [](const llama_kv_cache * kv) { return kv->type_k() == GGML_TYPE_F32; };
    return std::all_of(caches.begin(), caches.end(), is_f32) ? 1.0 : ROUNDED;
}

// ---- rotating them -----------------------------------------------------------------------------------

void llama_rope_rotation::reserve(llama_context & ctx) const {
    const std::vector<float> factors(3 * n_dims / 2);
    for (const llama_kv_cache * kv : caches) {
        if (auto * res = build_graph(ctx, *kv, {0, 0, most_cells(*kv)}, factors, 1.0f)) {
            ctx.reserve_aside(res);
        }
    }
}

bool llama_rope_rotation::rotate_cache(llama_context & ctx, const llama_kv_cache & kv,
                                       const std::vector<float> & factors, float magnitude) const {
    bool is_first = &kv == caches.front(); // of all graphs of this rotation
    for (const k_cells & part : cells_in_use(kv, ctx)) {
        auto * res = build_graph(ctx, kv, part, factors, magnitude);
        if (res && !ctx.compute_aside(res, !is_first)) {
            return false;
        }
        is_first = false;
    }
    return true;
}

bool llama_rope_rotation::rotate(llama_context & ctx, const std::vector<double> & difference, float magnitude) const {
    const auto factors = ggml_rope_pack(freq_base, ctx.get_cparams().rope_factors->hold_still(difference));
    return std::all_of(caches.begin(), caches.end(),
                       [&](const llama_kv_cache * kv) { return rotate_cache(ctx, *kv, factors, magnitude); });
}
