#include "llama-rope-dynamic.h"

#include "ggml-rope.h"
#include "llama-batch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-model.h"
#include "llama-rope-scaling.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>

static void require(bool holds, const char * what) {
    if (!holds) {
        throw std::invalid_argument(what);
    }
}

// ---- the caches of a context -------------------------------------------------------------------------

static std::vector<llama_kv_cache *> caches_of(llama_memory_i * memory) {
    if (auto * kv = dynamic_cast<llama_kv_cache *>(memory)) {
        return {kv};
    }
    if (auto * iswa = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
        return {iswa->get_base(), iswa->get_swa()};
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid *>(memory)) {
        return {hybrid->get_mem_attn()};
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        return caches_of(hybrid->get_mem_attn());
    }
    return {};
}

// tokens in the longest sequence, by position; after a cut, a cache of sliding windows may have none left of it
static double length_of(llama_context & ctx) {
    llama_pos last = -1;
    for (const llama_kv_cache * kv : caches_of(ctx.get_memory())) {
        for (llama_seq_id s = 0; s < (llama_seq_id)ctx.n_seq_max(); ++s) {
            last = std::max(last, kv->seq_pos_max(s));
        }
    }
    return last + 1.0;
}

// ---- the graph that rotates cached K -----------------------------------------------------------------

class llm_graph_input_k_rotation : public llm_graph_input_i {
  public:
    llm_graph_input_k_rotation(ggml_context * ctx, const llama_kv_cache & kv, std::vector<int32_t> positions,
                               const std::vector<float> & factors)
        : kv(kv), positions_data(std::move(positions)), factors_data(factors) {
        // no ggml_set_input: inputs begin on the host, and to copy one the scheduler waits for the work under way
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
    ggml_tensor * hadamard; // a quantized K is stored in its basis; its own inverse

  private:
    const llama_kv_cache & kv;
    std::vector<int32_t> positions_data;
    std::vector<float> factors_data;
};

struct k_cells {
    llama_seq_id seq; // one of the sequences whose stream they are in
    uint32_t first;
    uint32_t count;
};

// rotates some cells of one layer in place; in_basis: its keys are stored in the basis of input.hadamard
static ggml_tensor * build_rotation(ggml_context * ctx, const llama_model & model, const llama_kv_cache & kv, int il,
                                    bool in_basis, const k_cells & cells, const llm_graph_input_k_rotation & input,
                                    float freq_base, float magnitude) {
    const auto & hparams    = model.hparams;
    ggml_tensor * k         = kv.get_k_storage(il);
    const int64_t n_head_kv = hparams.n_head_kv(il);
    const int64_t n_head    = hparams.n_embd_head_k(il);
    const int64_t n_rot     = hparams.n_rot(il);
    const int64_t n_nope    = hparams.n_lora_kv > 0 ? n_head - n_rot : 0; // MLA: the rotated part is the last
    const size_t row        = ggml_row_size(k->type, hparams.n_embd_k_gqa(il));
    const size_t offset     = kv.get_stream(cells.seq) * k->nb[2] + cells.first * row;
    const auto rope_type    = hparams.rope_type;
    ggml_tensor * cur       = nullptr;

    if (llama_rope_scaling_is_inplace(k->type)) {
        ggml_tensor * view = ggml_view_3d(ctx, k, n_rot, n_head_kv, cells.count, ggml_row_size(k->type, n_head), row,
                                          offset + ggml_row_size(k->type, n_nope));
        cur = ggml_rope_ext_inplace(ctx, view, input.positions_tensor, input.factors_tensor, n_rot, rope_type, 0,
                                    freq_base, 1.0f, 0.0f, magnitude, 0.0f, 0.0f);
        cur->op_params[0] = GGML_ROPE_STEPS;
        return cur;
    }
    // by whole rows: heads may be no multiple of a quantized type's blocks
    ggml_tensor * view = ggml_view_2d(ctx, k, n_head * n_head_kv, cells.count, row, offset);
    cur                = ggml_reshape_3d(ctx, ggml_cast(ctx, view, GGML_TYPE_F32), n_head, n_head_kv, cells.count);
    if (in_basis) {
        cur = llama_mul_mat_hadamard(ctx, cur, input.hadamard);
    }
    cur = ggml_rope_ext(ctx, cur, input.positions_tensor, input.factors_tensor, n_rot, rope_type, 0, freq_base, 1.0f,
                        0.0f, magnitude, 0.0f, 0.0f);
    cur->op_params[0] = GGML_ROPE_STEPS;
    if (n_nope > 0) {
        cur = ggml_rope_set_offset(cur, n_nope);
    }
    if (in_basis) {
        cur = llama_mul_mat_hadamard(ctx, cur, input.hadamard);
    }
    return ggml_cpy(ctx, ggml_reshape_2d(ctx, cur, n_head * n_head_kv, cells.count), view);
}

// cells that one graph rotates: all at once, but a part where they take the way through float32, of which a copy is
// to be small
static uint32_t most_cells(const llama_kv_cache & kv) {
    return llama_rope_scaling_is_inplace(kv.type_k()) ? kv.get_size() : std::min<uint32_t>(kv.get_size(), 16384);
}

// all cells in use
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

llm_graph_result * llama_rope_dynamic::build_rotations(llama_context & ctx, const llama_kv_cache & kv,
                                                       const k_cells & part, const std::vector<float> & factors,
                                                       float magnitude) const {
    auto * res = ctx.get_gf_res_reserve();
    res->reset();
    auto input = std::make_unique<llm_graph_input_k_rotation>(res->get_ctx(), kv, positions_of(kv, part), factors);
    for (uint32_t il : kv.get_layer_ids()) {
        if (const auto layer = layers.find(il); layer != layers.end()) {
            ggml_build_forward_expand(res->get_gf(),
                                      build_rotation(res->get_ctx(), ctx.get_model(), kv, il, layer->second, part,
                                                     *input, (float)freq_base, magnitude));
        }
    }
    res->add_input(std::move(input));
    return ggml_graph_n_nodes(res->get_gf()) > 0 ? res : nullptr;
}

// ---- which layers ------------------------------------------------------------------------------------

void llama_rope_dynamic::find_layers(llama_context & ctx) {
    ctx.set_rope_frequencies(llama_rope_frequencies_make(rope_inv_freq(at(2.0), freq_base, n_dims)), 0.5f, 1.0f);
    ctx.reserve_largest_graph(); // builds one
    bool is_normalized = false;
    for (const llama_kv_cache * kv : caches) {
        for (uint32_t il : kv->get_layer_ids()) {
            const llama_k_origin origin = llama_k_origin_of(ctx.get_cparams(), kv->get_k_storage(il));
            if (origin.is_scaled) {
                layers[il] = origin.in_basis;
                is_normalized |= origin.is_normalized;
            }
        }
    }
    ctx.set_rope_frequencies(nullptr, 1.0f, 1.0f);
    ctx.reserve_largest_graph();
    require(!layers.empty(), "the model caches no keys from a rope that can be scaled");
    require(!is_normalized, "the model normalizes keys after their rope: cached ones cannot be rotated");
}

// ---- rotating them -----------------------------------------------------------------------------------

bool llama_rope_dynamic::rotate_cache(llama_context & ctx, const llama_kv_cache & kv,
                                      const std::vector<float> & factors, float magnitude) const {
    bool is_first = &kv == caches.front(); // of all graphs of this rotation
    for (const k_cells & part : cells_in_use(kv, ctx)) {
        auto * res = build_rotations(ctx, kv, part, factors, magnitude);
        if (res && !ctx.compute_aside(res, !is_first)) {
            return false;
        }
        is_first = false;
    }
    return true;
}

void llama_rope_dynamic::reserve(llama_context & ctx) const {
    const std::vector<float> factors(3 * n_dims / 2);
    for (const llama_kv_cache * kv : caches) {
        const k_cells part = {0, 0, most_cells(*kv)};
        if (auto * res = build_rotations(ctx, *kv, part, factors, 1.0f)) {
            ctx.reserve_aside(res);
        }
    }
}

bool llama_rope_dynamic::rotate(llama_context & ctx, const rope_scaling & from, const rope_scaling & to) const {
    const auto before = rope_inv_freq(from, freq_base, n_dims);
    const auto after  = rope_inv_freq(to, freq_base, n_dims);
    std::vector<double> difference(before.size());
    for (size_t i = 0; i < difference.size(); ++i) {
        difference[i] = after[i] - before[i];
    }
    const auto factors    = ggml_rope_pack(freq_base, difference);
    const float magnitude = (float)(rope_magnitude(to) / rope_magnitude(from));
    return std::all_of(caches.begin(), caches.end(),
                       [&](const llama_kv_cache * kv) { return rotate_cache(ctx, *kv, factors, magnitude); });
}

// ---- the policy --------------------------------------------------------------------------------------

// Where keys are kept in fewer bits than a float's, smaller rotations are lost in rounding: s moves, K does not.
static const float STEP_MIN = 1.01f;

llama_rope_dynamic::llama_rope_dynamic(const yarn_gguf_dynamic_scaling & policy, llama_context & ctx) : policy(policy) {
    const auto & model   = ctx.get_model();
    const auto & hparams = model.hparams;
    const auto & cparams = ctx.get_cparams();

    require(policy.method > YARN_GGUF_METHOD_NONE && policy.method <= YARN_GGUF_METHOD_YARN, "no such method");
    require(policy.n_ctx_orig > 0, "n_ctx_orig must be the context that the model was trained with, in tokens");
    require(std::isfinite(policy.step) && std::isfinite(policy.factor) && std::isfinite(policy.ntk_factor) &&
                std::isfinite(policy.beta_fast),
            "numbers must be finite");
    require(policy.step >= 1.0f, "step must be at least 1");
    require(policy.factor >= 1.0f, "factor must be at least 1");
    require(policy.ntk_factor >= 1.0f, "ntk_factor must be at least 1");
    require(policy.beta_slow > 0.0f && policy.beta_fast > policy.beta_slow, "beta_fast must be above beta_slow");
    require(hparams.rope_type != LLAMA_ROPE_TYPE_NONE && hparams.n_rot_full > 2, "the model has no rotary embedding");
    require(std::none_of(model.layers.begin(), model.layers.end(),
                         [](const llama_layer & layer) { return layer.rope_freqs || layer.rope_long; }),
            "the model has rope factors of its own (Llama 3.1, LongRoPE), which dynamic scaling would replace");

    require(hparams.n_pos_per_embd() == 1, "the model's positions have several components (M-RoPE)");

    const char * refusal = llama_rope_frequencies_refusal(model);
    require(!refusal, refusal);

    freq_base  = cparams.rope_freq_base;
    n_dims     = (int)hparams.n_rot_full;
    factor_min = std::max(1.0, (double)policy.factor);
    factor_max = std::max(factor_min, (double)cparams.n_ctx_seq / policy.n_ctx_orig);
    step_min   = 1.0;
    for (llama_kv_cache * kv : caches_of(ctx.get_memory())) {
        if (!kv->get_layer_ids().empty()) { // a model may have no layer with a sliding window, or no other
            caches.push_back(kv);
        }
    }
    require(!caches.empty(), "the keys in this model's kind of cache cannot be rotated");
    for (const llama_kv_cache * kv : caches) {
        require(kv->get_can_shift(), "the cache of this model cannot be shifted, and so not be rotated");
        step_min = kv->type_k() == GGML_TYPE_F32 ? step_min : STEP_MIN;
    }
    require(policy.step >= step_min,
            "rounding would undo rotations as small as this: take steps of at least 1.01, or a K cache of type f32");
}

rope_scaling llama_rope_dynamic::at(double factor) const {
    rope_scaling s;
    s.method       = (rope_method)policy.method;
    s.factor       = factor;
    s.n_ctx_orig   = policy.n_ctx_orig;
    s.beta_fast    = policy.beta_fast;
    s.beta_slow    = policy.beta_slow;
    s.by_rotations = policy.by_rotations;
    s.truncate     = policy.truncate;
    if (s.method == ROPE_METHOD_NTK) { // transformers' "dynamic": f l'/L - (f - 1)
        s.factor = policy.ntk_factor * factor - (policy.ntk_factor - 1.0);
    }
    return s;
}

double llama_rope_dynamic::factor_for(double length) const {
    const double needed   = length / policy.n_ctx_orig;
    const double reserved = std::min((double)n_ctx_reserved / policy.n_ctx_orig, factor_max);
    if (std::max(needed, reserved) <= factor_min) {
        return factor_min;
    }
    if (reserved >= needed) {
        return reserved; // by request: no more than that
    }
    if (policy.step == 1.0f) {
        return needed;
    }
    // a step ahead of what is needed, but not ahead of the whole context
    const double steps = std::ceil(std::log(needed) / std::log((double)policy.step) - 1e-9);
    const double ahead = std::max(needed, std::min(std::pow((double)policy.step, steps), factor_max));
    if (needed <= factor && factor <= ahead) {
        return factor;
    }
    return ahead;
}

// where cached keys can be rotated to
double llama_rope_dynamic::reachable(double wanted) const {
    if (wanted < factor && wanted > factor_min && factor < wanted * step_min) {
        return factor;
    }
    return wanted > factor ? std::max(wanted, factor * step_min) : wanted;
}

bool llama_rope_dynamic::follow(llama_context & ctx, const llama_ubatch & ubatch) {
    const double before = length_of(ctx);
    double length       = before;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        length = std::max(length, ubatch.pos[i] + 1.0);
    }
    const double wanted = before > 0.0 ? reachable(factor_for(length)) : factor_for(length);
    if (wanted != factor) {
        if (before <= length_rotated) { // no ubatch has been computed since the last rotation, which may be under way
            ggml_backend_sched_synchronize(ctx.get_sched());
        }
        length_rotated = before;
    }
    return set_factor(ctx, wanted, before > 0.0);
}

bool llama_rope_dynamic::set_factor(llama_context & ctx, double wanted, bool rotate_cached) {
    if (wanted == factor) {
        return true;
    }
    const rope_scaling before = at(factor);
    const rope_scaling after  = at(wanted);
    const bool same_graph     = (wanted > 1.0) == (factor > 1.0); // with a table, or without one
    llama_rope_frequencies_ptr table;
    if (wanted > 1.0) {
        table = llama_rope_frequencies_make(rope_inv_freq(after, freq_base, n_dims));
    }
    factor = wanted;
    ctx.set_rope_frequencies(std::move(table), (float)(1.0 / factor), (float)rope_magnitude(after));
    if (rotate_cached) {
        const int64_t start = ggml_time_us();
        if (!rotate(ctx, before, after)) {
            LLAMA_LOG_ERROR("%s: some keys are rotated and others not: the cache is cleared\n", __func__);
            ctx.get_memory()->clear(true);
            return false;
        }
        n_rotations++;
        t_rotations_us += ggml_time_us() - start;
    }
    if (!same_graph) {
        ctx.reserve_largest_graph();
    }
    return true;
}

// ---- saved states ------------------------------------------------------------------------------------

// everything that decides how K is rotated
struct rope_fingerprint {
    double dynamic_factor = 0.0; // 0: not dynamic
    double freq_base      = 0.0;
    double freq_scale     = 0.0;
    double ext_factor     = 0.0;
    double attn_factor    = 0.0;
    double beta_fast      = 0.0;
    double beta_slow      = 0.0;
    double n_ctx_orig     = 0.0;
    uint64_t n_table      = 0;
};

static const uint32_t STATE_MAGIC = 0x47594152; // "RAYG"

static bool same_static(const rope_fingerprint & a, const rope_fingerprint & b) {
    const bool same_ramp = a.beta_fast == b.beta_fast && a.beta_slow == b.beta_slow && a.n_ctx_orig == b.n_ctx_orig;
    return a.freq_base == b.freq_base && a.freq_scale == b.freq_scale && a.ext_factor == b.ext_factor &&
           a.attn_factor == b.attn_factor && (a.ext_factor == 0.0 || a.n_table > 0 || same_ramp);
}

static rope_fingerprint fingerprint_of(const llama_cparams & cparams) {
    rope_fingerprint f;
    f.dynamic_factor = cparams.rope_dynamic ? cparams.rope_dynamic->factor : 0.0;
    f.freq_base      = cparams.rope_freq_base;
    f.freq_scale     = cparams.rope_freq_scale;
    f.ext_factor     = cparams.yarn_ext_factor;
    f.attn_factor    = cparams.yarn_attn_factor;
    f.beta_fast      = cparams.yarn_beta_fast;
    f.beta_slow      = cparams.yarn_beta_slow;
    f.n_ctx_orig     = cparams.n_ctx_orig_yarn;
    f.n_table        = cparams.rope_frequencies ? cparams.rope_frequencies->inv_freq.size() : 0;
    return f;
}

// Shifts that are pending come first: a state has the positions that they lead to.
static void finish_shifts(llama_context & ctx) {
    if (ctx.memory_update(false)) {
        ctx.synchronize();
    }
}

void llama_rope_state_write(llama_io_write_i & io, llama_context & ctx) {
    finish_shifts(ctx);
    const auto & cparams     = ctx.get_cparams();
    const rope_fingerprint f = fingerprint_of(cparams);
    io.write(&STATE_MAGIC, sizeof(STATE_MAGIC));
    io.write(&f, sizeof(f));
    if (f.n_table > 0) {
        io.write(cparams.rope_frequencies->inv_freq.data(), f.n_table * sizeof(double));
    }
}

void llama_rope_state_read(llama_io_read_i & io, llama_context & ctx) {
    finish_shifts(ctx);
    const auto & cparams = ctx.get_cparams();
    uint32_t magic       = 0;
    io.read(&magic, sizeof(magic));
    if (magic != STATE_MAGIC) {
        throw std::runtime_error("the state says nothing of its rope scaling: it was saved by another library");
    }
    rope_fingerprint saved;
    io.read(&saved, sizeof(saved));
    const uint64_t n_rot = ctx.get_model().hparams.n_rot_full / 2;
    if (saved.n_table != 0 && saved.n_table != n_rot) {
        throw std::runtime_error("the state's rope frequencies are those of another model");
    }
    std::vector<double> table(saved.n_table);
    if (!table.empty()) {
        io.read(table.data(), table.size() * sizeof(double));
    }

    if (auto dynamic = cparams.rope_dynamic) {
        const double factor = saved.dynamic_factor != 0.0 ? saved.dynamic_factor : 1.0;
        const bool is_plain = saved.n_table == 0 && saved.freq_scale == 1.0 && saved.attn_factor == 1.0;
        const bool is_sound = std::isfinite(factor) && factor >= 1.0;
        bool is_ours        = is_sound && is_plain && factor == 1.0;
        if (is_sound && factor > 1.0) {
            llama_cparams expected = cparams;
            const auto scaling     = dynamic->at(factor);
            const auto inv_freq    = rope_inv_freq(scaling, saved.freq_base, 2 * (int)n_rot);
            llama_rope_frequencies_use(expected, llama_rope_frequencies_make(inv_freq), (float)(1.0 / factor),
                                       (float)rope_magnitude(scaling));
            is_ours = table == inv_freq && saved.attn_factor == expected.yarn_attn_factor;
        }
        if (saved.freq_base != cparams.rope_freq_base || !is_ours) {
            throw std::runtime_error("the state was saved under another rope scaling than this context's");
        }
        if (!dynamic->set_factor(ctx, factor, length_of(ctx) > 0.0)) {
            throw std::runtime_error("the cached keys could not be rotated to the state's scaling");
        }
        ggml_backend_sched_synchronize(ctx.get_sched()); // the state's keys are about to be written beside them
        return;
    }
    const bool same_table = cparams.rope_frequencies ? cparams.rope_frequencies->inv_freq == table : saved.n_table == 0;
    if (!same_static(saved, fingerprint_of(cparams)) || !same_table) {
        throw std::runtime_error("the state was saved under another rope scaling than this context's");
    }
}

// ---- C API -------------------------------------------------------------------------------------------

yarn_gguf_dynamic_scaling yarn_gguf_dynamic_scaling_default(void) {
    yarn_gguf_dynamic_scaling policy = {};
    policy.method                    = YARN_GGUF_METHOD_YARN;
    policy.factor                    = 1.0f;
    policy.ntk_factor                = 1.0f;
    policy.step                      = 1.0905077f; // 2^(1/8)
    policy.beta_fast                 = 32.0f;
    policy.beta_slow                 = 1.0f;
    policy.truncate                  = true;
    return policy;
}

bool yarn_gguf_set_dynamic_scaling(llama_context * ctx, const yarn_gguf_dynamic_scaling * policy) {
    try {
        if (!ctx->get_memory()) {
            throw std::invalid_argument("the context has no cache");
        }
        if (length_of(*ctx) > 0.0) {
            throw std::invalid_argument("the cache holds keys that were rotated by other frequencies: clear it first");
        }
        ctx->set_rope_dynamic(std::make_shared<llama_rope_dynamic>(*policy, *ctx));
    } catch (const std::exception & error) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, error.what());
        return false;
    }
    return true;
}

void llama_context::set_rope_dynamic(std::shared_ptr<llama_rope_dynamic> dynamic) {
    const llama_cparams before = cparams;
    cparams.rope_dynamic       = std::move(dynamic);
    set_rope_frequencies(nullptr, 1.0f, 1.0f);
    if (!cparams.rope_dynamic) {
        return;
    }
    try {
        cparams.rope_dynamic->find_layers(*this);
    } catch (...) {
        cparams = before;
        throw;
    }
    cparams.rope_dynamic->reserve(*this);
}

// Memory for a graph that is not the model's, and for all smaller ones of its kind. In the context's own scheduler it
// would take the place of the largest graph in the plan, and every longer graph would be planned, and its buffers
// allocated, anew.
void llama_context::reserve_aside(llm_graph_result * res) {
    if (!sched_aside) {
        sched_aside.reset(ggml_backend_sched_new(backend_ptrs.data(), backend_buft.data(), (int)backend_ptrs.size(),
                                                 res->get_max_nodes(), false, false));
    }
    if (!ggml_backend_sched_reserve(sched_aside.get(), res->get_gf())) {
        LLAMA_LOG_WARN("%s: could not reserve the graph\n", __func__);
    }
}

// Starts such a graph behind what its backends have still to do, without waiting for that. wait: the last one may not
// have read its inputs yet; else a graph of the model has been started since, which waits for what is before it.
bool llama_context::compute_aside(llm_graph_result * res, bool wait) {
    if (wait || cparams.pipeline_parallel) {
        ggml_backend_sched_synchronize(sched_aside.get());
    }
    ggml_backend_sched_reset(sched_aside.get());
    if (!ggml_backend_sched_alloc_graph(sched_aside.get(), res->get_gf())) {
        LLAMA_LOG_ERROR("%s: no memory for the graph\n", __func__);
        return false;
    }
    res->set_inputs(nullptr);
    if (ggml_backend_sched_graph_compute_async(sched_aside.get(), res->get_gf()) != GGML_STATUS_SUCCESS) {
        LLAMA_LOG_ERROR("%s: failed to compute the graph\n", __func__);
        return false;
    }
    return true;
}

// As the constructor does: a graph of another shape than the plan's is planned anew, and so is every longer one.
void llama_context::reserve_largest_graph() {
    const auto full          = memory->init_full();
    const uint32_t n_tokens  = std::min(cparams.n_ctx, cparams.n_ubatch);
    const uint32_t n_outputs = std::min(n_tokens, cparams.n_outputs_max);
    if (!full || !graph_reserve(n_tokens, cparams.n_seq_max, n_outputs, full.get())) {
        LLAMA_LOG_WARN("%s: could not reserve the largest graph\n", __func__);
    }
}

void yarn_gguf_reserve_context(llama_context * ctx, uint32_t n_tokens) {
    if (auto dynamic = ctx->get_cparams().rope_dynamic) {
        dynamic->n_ctx_reserved = n_tokens;
    }
}

yarn_gguf_dynamic_state yarn_gguf_get_dynamic_state(const llama_context * ctx) {
    yarn_gguf_dynamic_state state = {};
    state.factor                  = 1.0;
    if (auto dynamic = ctx->get_cparams().rope_dynamic) {
        state.factor         = dynamic->factor;
        state.n_rotations    = dynamic->n_rotations;
        state.t_rotations_us = dynamic->t_rotations_us;
    }
    return state;
}
