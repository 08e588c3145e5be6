#include "llama-rope-frequencies.h"

#include "ggml-rope.h"
#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-k-origin.h"
#include "llama-model-loader.h"
#include "llama-model.h"
#include "llama-rope-archs.h"
#include "llama-rope-scaling.h"
#include "rope-math.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

// ---- the operands of a rope op (ggml.c, ggml_rope_impl) ----------------------------------------------

// Makes the op rotate by its freq_factors and multiply by the magnitude, and do nothing else.
static void set_operands(ggml_tensor * op, float magnitude) {
    const float freq_scale = 1.0f;
    const float ext_factor = 0.0f;
    memcpy(op->op_params + 6, &freq_scale, sizeof(float));
    memcpy(op->op_params + 7, &ext_factor, sizeof(float));
    memcpy(op->op_params + 8, &magnitude, sizeof(float));
}

// ---- the input of the graph --------------------------------------------------------------------------

static const char * const FACTORS_NAME = "rope_factors";

class llm_graph_input_rope_factors : public llm_graph_input_i {
  public:
    llm_graph_input_rope_factors(ggml_context * ctx, const llama_cparams & cparams) : table(cparams.rope_frequencies) {
        packed  = ggml_rope_pack(cparams.rope_freq_base, cparams.rope_factors->hold_still(table->inv_freq));
        factors = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, packed.size());
        ggml_set_name(factors, FACTORS_NAME);
        ggml_set_input(factors);
    }

    void set_input(const llama_ubatch * /*ubatch*/) override {
        ggml_backend_tensor_set(factors, packed.data(), 0, packed.size() * sizeof(float));
    }

    bool can_reuse(const llm_graph_params & params) override {
        return params.cparams.rope_frequencies == table;
    }

    ggml_tensor * factors;

  private:
    llama_rope_frequencies_ptr table;
    std::vector<float> packed;
};

// ---- what the patches call ---------------------------------------------------------------------------

// Returns the array of n numbers > 0 in a key of the file; empty if the file lacks the key.
static std::vector<double> read_array(llama_model_loader & ml, const char * name, size_t n) {
    const std::string key = ml.get_arch_name() + ".rope.scaling." + name;
    const int64_t id      = gguf_find_key(ml.metadata, key.c_str());
    if (id < 0) {
        return {};
    }
    if (gguf_get_kv_type(ml.metadata, id) != GGUF_TYPE_ARRAY ||
        gguf_get_arr_type(ml.metadata, id) != GGUF_TYPE_FLOAT64) {
        throw std::runtime_error(format("bad rope key: %s: expected an array of float64", key.c_str()));
    }
    const size_t found = gguf_get_arr_n(ml.metadata, id);
    if (found != n) {
        throw std::runtime_error(
            format("bad rope key: %s has %zu numbers, expected %zu, one for each pair of rotary dimensions",
                   key.c_str(), found, n));
    }
    const double * data = (const double *)gguf_get_arr_data(ml.metadata, id);
    for (size_t i = 0; i < n; ++i) {
        if (!std::isfinite(data[i]) || data[i] <= 0.0) {
            throw std::runtime_error(format("bad rope key: %s holds %g, expected numbers > 0", key.c_str(), data[i]));
        }
    }
    return std::vector<double>(data, data + n);
}

llama_rope_frequencies_ptr llama_rope_frequencies_make(std::vector<double> inv_freq) {
    auto table      = std::make_shared<llama_rope_frequencies>();
    table->inv_freq = std::move(inv_freq);
    return table;
}

// Returns LongRoPE's table: the unscaled frequencies, divided by learned factors.
static llama_rope_frequencies_ptr divided_table(const std::vector<double> & factors, float freq_base) {
    std::vector<double> inv_freq(factors.size());
    for (size_t i = 0; i < factors.size(); ++i) {
        inv_freq[i] = rope_theta(freq_base, (int)i, 2 * (int)factors.size()) / factors[i];
    }
    return llama_rope_frequencies_make(std::move(inv_freq));
}

// Returns the table of the same factors for another base.
static llama_rope_frequencies_ptr rebased(const llama_rope_frequencies_ptr & table, float from, float to) {
    if (from == to) {
        return table;
    }
    auto inv_freq    = table->inv_freq;
    const int n_dims = 2 * (int)inv_freq.size();
    for (int i = 0; i < n_dims / 2; ++i) {
        inv_freq[i] *= rope_theta(to, i, n_dims) / rope_theta(from, i, n_dims);
    }
    return llama_rope_frequencies_make(std::move(inv_freq));
}

llama_rope_frequencies_of_file llama_rope_frequencies_load(llama_model_loader & ml, const llama_hparams & hparams) {
    const size_t n = hparams.n_rot_full / 2;
    if (auto inv_freq = read_array(ml, "inv_freq", n); !inv_freq.empty()) {
        const auto table = llama_rope_frequencies_make(std::move(inv_freq));
        return {table, table};
    }
    const auto short_factor = read_array(ml, "short_factor", n);
    const auto long_factor  = read_array(ml, "long_factor", n);
    if (short_factor.empty() != long_factor.empty()) {
        throw std::runtime_error(format("bad rope key: %s.rope.scaling.short_factor and long_factor: one is missing",
                                        ml.get_arch_name().c_str()));
    }
    if (long_factor.empty()) {
        return {};
    }
    const float freq_base = hparams.rope_freq_base_train;
    return {divided_table(short_factor, freq_base), divided_table(long_factor, freq_base)};
}

// Returns the tables of a model: those of its keys, or else of LongRoPE's tensors.
static llama_rope_frequencies_of_file tables_of(const llama_model & model, const llama_rope_factors & factors) {
    if (model.rope_frequencies.beyond || factors.long_factor.empty()) {
        return model.rope_frequencies;
    }
    const auto widened    = [](const std::vector<float> & x) { return std::vector<double>(x.begin(), x.end()); };
    const float freq_base = model.hparams.rope_freq_base_train;
    return {divided_table(widened(factors.short_factor), freq_base),
            divided_table(widened(factors.long_factor), freq_base)};
}

void llama_rope_frequencies_init(llama_cparams & cparams, const llama_model & model,
                                 const llama_context_params & params) {
    const bool by_caller          = llama_rope_scaling_is_by_caller(params);
    cparams.k_origins             = std::make_shared<llama_k_origins>();
    cparams.rope_factors          = llama_rope_factors_of(model);
    cparams.rope_replaces_factors = by_caller;
    llama_rope_scaling_of_caller(cparams, params, model.hparams);
    const auto tables  = tables_of(model, *cparams.rope_factors);
    const auto & table = cparams.n_ctx_seq > cparams.n_ctx_orig_yarn ? tables.beyond : tables.within;
    if (by_caller || !table) {
        llama_rope_scaling_require_ramp_of_context(cparams, model.hparams);
        return;
    }
    if (const char * reason = llama_rope_archs_table_refusal(model)) {
        throw std::runtime_error(reason);
    }
    const float magnitude = cparams.yarn_attn_factor /
                            llama_rope_scaling_unit_attn_factor(cparams.rope_freq_scale, cparams.yarn_ext_factor);
    llama_rope_frequencies_use(cparams, rebased(table, model.hparams.rope_freq_base_train, cparams.rope_freq_base),
                               model.hparams.rope_freq_scale_train, magnitude);
}

void llama_rope_frequencies_use(llama_cparams & cparams, llama_rope_frequencies_ptr table, float freq_scale,
                                float magnitude) {
    cparams.rope_replaces_factors = true;
    if (!table) {
        cparams.rope_freq_scale  = 1.0f;
        cparams.yarn_ext_factor  = 0.0f;
        cparams.yarn_attn_factor = magnitude;
        cparams.rope_frequencies = nullptr;
        return;
    }
    // apply_table recognizes the rope of a scaled layer by these two operands, which the architectures pass through.
    // The rope of an unscaled layer (sliding windows) has freq_scale 1 or ext_factor 0. So this is never exactly 1.
    cparams.rope_freq_scale  = freq_scale != 1.0f ? freq_scale : std::nextafter(1.0f, 0.0f);
    cparams.yarn_ext_factor  = 1.0f;
    cparams.yarn_attn_factor = magnitude * llama_rope_scaling_unit_attn_factor(cparams.rope_freq_scale, 1.0f);
    cparams.rope_frequencies = std::move(table);
}

ggml_tensor * llama_rope_frequencies_input(const llama_cparams & cparams, llm_graph_result & res) {
    if (ggml_tensor * factors = ggml_graph_get_tensor(res.get_gf(), FACTORS_NAME)) {
        return factors;
    }
    auto input            = std::make_unique<llm_graph_input_rope_factors>(res.get_ctx(), cparams);
    ggml_tensor * factors = input->factors;
    ggml_build_forward_expand(res.get_gf(), factors);
    res.add_input(std::move(input));
    return factors;
}

static void apply_table(const llama_cparams & cparams, llm_graph_result & res) {
    const bool has_table = cparams.rope_frequencies != nullptr;
    const int32_t n_dims = has_table ? 2 * (int32_t)cparams.rope_frequencies->inv_freq.size() : 0;

    std::vector<ggml_tensor *> scaled;
    ggml_cgraph * gf = res.get_gf();
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        ggml_tensor * op = ggml_graph_node(gf, i);
        if (op->op != GGML_OP_ROPE) {
            continue;
        }
        llama_rope_factors_drop(cparams, op);
        const ggml_rope_operands old(op);
        const bool is_scaled = old.freq_scale == cparams.rope_freq_scale && old.freq_base == cparams.rope_freq_base;
        if (!is_scaled && old.freq_scale == 1.0f) {
            set_operands(op, 1.0f);
        } else if (is_scaled && has_table && old.ext_factor == cparams.yarn_ext_factor && old.n_dims == n_dims) {
            set_operands(op, old.attn_factor / llama_rope_scaling_unit_attn_factor(old.freq_scale, old.ext_factor));
            scaled.push_back(op);
        }
    }
    if (scaled.empty()) {
        return;
    }
    ggml_tensor * factors = llama_rope_frequencies_input(cparams, res);
    for (ggml_tensor * op : scaled) {
        op->src[2]       = factors;
        op->op_params[0] = GGML_ROPE_STEPS;
    }
}

void llama_rope_frequencies_apply(const llama_cparams & cparams, llm_graph_result & res) {
    apply_table(cparams, res);
    llama_k_origins_note(*cparams.k_origins, res.get_gf());
}

void llama_context::set_rope_frequencies(llama_rope_frequencies_ptr table, float freq_scale, float magnitude) {
    llama_rope_frequencies_use(cparams, std::move(table), freq_scale, magnitude);
    for (auto & res : gf_res_prev) { // so that the next graph is built again
        if (res) {
            res->reset();
        }
    }
    gf_res_prev_active = nullptr;
}
