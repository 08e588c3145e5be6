#include "llama-rope-frequencies.h"

#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"
#include "llama-rope-scaling.h"
#include "yarn-gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

// ---- the operands of a rope op (ggml.c, ggml_rope_impl) ----------------------------------------------

struct rope_operands {
    int32_t n_dims;
    float freq_base;
    float freq_scale;
    float ext_factor;
    float attn_factor;

    explicit rope_operands(const ggml_tensor * op) {
        memcpy(&n_dims, op->op_params + 1, sizeof(n_dims));
        memcpy(&freq_base, op->op_params + 5, sizeof(float));
        memcpy(&freq_scale, op->op_params + 6, sizeof(float));
        memcpy(&ext_factor, op->op_params + 7, sizeof(float));
        memcpy(&attn_factor, op->op_params + 8, sizeof(float));
    }
};

// the op then rotates by what its freq_factors say and multiplies by the magnitude, and does nothing else
static void set_operands(ggml_tensor * op, float magnitude) {
    const float freq_scale = 1.0f;
    const float ext_factor = 0.0f;
    memcpy(op->op_params + 6, &freq_scale, sizeof(float));
    memcpy(op->op_params + 7, &ext_factor, sizeof(float));
    memcpy(op->op_params + 8, &magnitude, sizeof(float));
}

// ---- the input of the graph --------------------------------------------------------------------------

class llm_graph_input_rope_factors : public llm_graph_input_i {
  public:
    llm_graph_input_rope_factors(ggml_context * ctx, llama_rope_frequencies_ptr table, float freq_base)
        : table(std::move(table)), freq_base(freq_base) {
        factors = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, this->table->inv_freq.size());
        ggml_set_name(factors, "rope_factors");
        ggml_set_input(factors);
    }

    void set_input(const llama_ubatch * /*ubatch*/) override {
        std::vector<float> data(table->inv_freq.size());
        for (size_t i = 0; i < data.size(); ++i) {
            const double theta = std::pow((double)freq_base, -(double)i / data.size());
            data[i]            = (float)(theta / table->inv_freq[i]);
        }
        ggml_backend_tensor_set(factors, data.data(), 0, data.size() * sizeof(float));
    }

    bool can_reuse(const llm_graph_params & params) override {
        return params.cparams.rope_frequencies == table;
    }

    ggml_tensor * factors;

  private:
    llama_rope_frequencies_ptr table;
    float freq_base;
};

// ---- what the patches call ---------------------------------------------------------------------------

llama_rope_frequencies_ptr llama_rope_frequencies_load(llama_model_loader & ml, uint32_t n_rot) {
    const std::string key = ml.get_arch_name() + ".rope.scaling.inv_freq";
    const int64_t id      = gguf_find_key(ml.metadata, key.c_str());
    if (id < 0) {
        return nullptr;
    }
    if (gguf_get_kv_type(ml.metadata, id) != GGUF_TYPE_ARRAY ||
        gguf_get_arr_type(ml.metadata, id) != GGUF_TYPE_FLOAT64) {
        throw std::runtime_error(format("bad rope key: %s: expected an array of float64", key.c_str()));
    }
    const size_t n      = gguf_get_arr_n(ml.metadata, id);
    const double * data = (const double *)gguf_get_arr_data(ml.metadata, id);
    if (n != n_rot / 2) {
        throw std::runtime_error(
            format("bad rope key: %s has %zu numbers, expected %u, one for each pair of rotary dimensions", key.c_str(),
                   n, n_rot / 2));
    }
    auto table = std::make_shared<llama_rope_frequencies>();
    table->inv_freq.assign(data, data + n);
    for (double value : table->inv_freq) {
        if (!std::isfinite(value) || value <= 0.0) {
            throw std::runtime_error(format("bad rope key: %s holds %g, expected numbers > 0", key.c_str(), value));
        }
    }
    return table;
}

void llama_rope_frequencies_init(llama_cparams & cparams, const llama_model & model,
                                 const llama_context_params & params) {
    const bool by_caller = params.rope_scaling_type != LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED ||
                           params.rope_freq_base != 0.0f || params.rope_freq_scale != 0.0f ||
                           params.yarn_ext_factor >= 0.0f || params.yarn_orig_ctx != 0;
    if (by_caller || !model.rope_frequencies) {
        return;
    }
    const float magnitude = cparams.yarn_attn_factor /
                            llama_rope_scaling_unit_attn_factor(cparams.rope_freq_scale, cparams.yarn_ext_factor);
    llama_rope_frequencies_use(cparams, model.rope_frequencies, model.hparams.rope_freq_scale_train, magnitude);
}

void llama_rope_frequencies_use(llama_cparams & cparams, llama_rope_frequencies_ptr table, float freq_scale,
                                float magnitude) {
    // A rope of a scaled layer is known by these two operands, which the architectures pass through; that of an
    // unscaled one (sliding windows) has freq_scale 1 or ext_factor 0. Hence never exactly 1.
    cparams.rope_freq_scale  = freq_scale != 1.0f ? freq_scale : std::nextafter(1.0f, 0.0f);
    cparams.yarn_ext_factor  = 1.0f;
    cparams.yarn_attn_factor = magnitude * llama_rope_scaling_unit_attn_factor(cparams.rope_freq_scale, 1.0f);
    cparams.rope_frequencies = std::move(table);
}

void llama_rope_frequencies_apply(const llama_cparams & cparams, llm_graph_result & res) {
    if (!cparams.rope_frequencies) {
        return;
    }
    const int32_t n_dims = 2 * (int32_t)cparams.rope_frequencies->inv_freq.size();

    std::vector<ggml_tensor *> scaled;
    ggml_cgraph * gf = res.get_gf();
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        ggml_tensor * op = ggml_graph_node(gf, i);
        if (op->op != GGML_OP_ROPE) {
            continue;
        }
        const rope_operands old(op);
        if (old.freq_scale == cparams.rope_freq_scale && old.ext_factor == cparams.yarn_ext_factor &&
            old.freq_base == cparams.rope_freq_base && old.n_dims == n_dims) {
            set_operands(op, old.attn_factor / llama_rope_scaling_unit_attn_factor(old.freq_scale, old.ext_factor));
            scaled.push_back(op);
        } else if (old.freq_scale == 1.0f && old.ext_factor != 0.0f) {
            set_operands(op, 1.0f); // a layer that is not scaled has no temperature either
        }
    }
    if (scaled.empty()) {
        return;
    }
    auto input =
        std::make_unique<llm_graph_input_rope_factors>(res.get_ctx(), cparams.rope_frequencies, cparams.rope_freq_base);
    ggml_build_forward_expand(gf, input->factors);
    for (ggml_tensor * op : scaled) {
        op->src[2] = input->factors;
    }
    res.add_input(std::move(input));
}

// ---- C API -------------------------------------------------------------------------------------------

void llama_context::set_rope_frequencies(llama_rope_frequencies_ptr table, float freq_scale, float magnitude) {
    llama_rope_frequencies_use(cparams, std::move(table), freq_scale, magnitude);
    sched_need_reserve = true; // builds the graphs anew
    sched_reserve();
}

bool yarn_gguf_set_rope_frequencies(llama_context * ctx, const double * inv_freq, size_t n, float factor,
                                    float attention_factor) {
    const auto & hparams = ctx->get_model().hparams;
    if (n != hparams.n_rot_full / 2) {
        LLAMA_LOG_ERROR("%s: %zu frequencies given, the model has %u pairs of rotary dimensions\n", __func__, n,
                        hparams.n_rot_full / 2);
        return false;
    }
    llama_memory_t memory = ctx->get_memory();
    for (llama_seq_id s = 0; memory && s < (llama_seq_id)ctx->n_seq_max(); ++s) {
        if (llama_memory_seq_pos_max(memory, s) >= 0) {
            LLAMA_LOG_ERROR("%s: the cache holds keys that were rotated by other frequencies: clear it first\n",
                            __func__);
            return false;
        }
    }
    try {
        auto table = std::make_shared<llama_rope_frequencies>();
        table->inv_freq.assign(inv_freq, inv_freq + n);
        ctx->set_rope_frequencies(std::move(table), 1.0f / factor, attention_factor);
    } catch (const std::exception & error) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, error.what());
        return false;
    }
    return true;
}
