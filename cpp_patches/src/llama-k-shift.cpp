#include "llama-k-shift.h"

#include "ggml-rope.h"
#include "llama-cparams.h"
#include "llama-graph.h"
#include "llama-k-rope.h"
#include "llama-kv-cache.h"
#include "llama-model.h"
#include "llama-rope-frequencies.h"
#include "llama-rope-scaling.h"

#include <cstring>

// The operands of a rope that only rotates: keys have their magnitude already.
static llama_rope_params rotation_alone(llama_rope_params params) {
    ggml_rope_operands operands(params.data());
    operands.attn_factor = llama_rope_scaling_unit_attn_factor(operands.freq_scale, operands.ext_factor);
    memcpy(params.data(), &operands, sizeof(operands));
    return params;
}

void llama_k_shift_build(llm_graph_result & res, const llama_cparams & cparams, ggml_tensor * k, ggml_tensor * shift,
                         ggml_tensor * hadamard) {
    const llama_k_origin origin = llama_k_origin_of(*cparams.k_origins, k);
    if (!origin.is_roped) {
        return;
    }
    ggml_context * ctx    = res.get_ctx();
    ggml_tensor * factors = origin.is_scaled ? llama_rope_frequencies_input(cparams, res) : origin.factors;
    ggml_tensor * cells   = ggml_reshape_2d(ctx, k, k->ne[0], k->ne[1] * k->ne[2]);
    ggml_build_forward_expand(
        res.get_gf(),
        llama_k_rope_build(ctx, cells, origin, {rotation_alone(origin.params), shift, factors, hadamard}));
}

// Declared by patch 0010.
const char * llama_kv_cache::get_shift_obstacle() const {
    if (model.hparams.n_pos_per_embd() > 1) {
        return "positions have several components (M-RoPE)";
    }
    if (model.pos_embd) {
        return "the model learned an embedding for each position, which its keys contain";
    }
    if (model.hparams.indexer_kpool > 0) {
        return "the model caches keys of groups of positions";
    }
    for (const auto & layer : layers) {
        const char * obstacle = k_origins ? llama_k_origin_of(*k_origins, layer.k).obstacle : nullptr;
        if (obstacle) {
            return obstacle;
        }
    }
    return nullptr;
}
