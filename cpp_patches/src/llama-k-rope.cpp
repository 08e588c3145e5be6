#include "llama-k-rope.h"

#include "ggml-rope.h"
#include "llama-impl.h"
#include "llama-rope-scaling.h"

#include <cstring>

// Rotates dimensions from n_before on of heads [n_head, n_heads, n_cells].
static ggml_tensor * rope_of(ggml_context * ctx, ggml_tensor * heads, int64_t n_before, const llama_k_rope & rope,
                             bool inplace) {
    const auto build = inplace ? ggml_rope_ext_inplace : ggml_rope_ext;
    const int n_dims = rope.params[1];
    const int mode   = rope.params[2];
    ggml_tensor * roped =
        build(ctx, heads, rope.positions, rope.factors, n_dims, mode, 0, 1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f);
    memcpy(roped->op_params, rope.params.data(), sizeof(roped->op_params));
    return ggml_rope_set_offset(roped, (int)n_before);
}

ggml_tensor * llama_k_rope_build(ggml_context * ctx, ggml_tensor * cells, const llama_k_origin & origin,
                                 const llama_k_rope & rope) {
    const int64_t n_heads = cells->ne[0] / origin.n_head;
    if (llama_rope_scaling_is_inplace(cells->type) && !origin.in_basis) {
        ggml_tensor * rotated =
            ggml_view_3d(ctx, cells, rope.params[1], n_heads, cells->ne[1], ggml_row_size(cells->type, origin.n_head),
                         cells->nb[1], ggml_row_size(cells->type, origin.n_before));
        return rope_of(ctx, rotated, 0, rope, true);
    }
    // Whole rows: a head may be no multiple of a quantized type's block.
    ggml_tensor * cur = cells->type == GGML_TYPE_F32 ? ggml_cont(ctx, cells) : ggml_cast(ctx, cells, GGML_TYPE_F32);
    cur               = ggml_reshape_3d(ctx, cur, origin.n_head, n_heads, cells->ne[1]);
    if (origin.in_basis) {
        cur = llama_mul_mat_hadamard(ctx, cur, rope.hadamard);
    }
    cur = rope_of(ctx, cur, origin.n_before, rope, false);
    if (origin.in_basis) { // the rotation is its own inverse
        cur = llama_mul_mat_hadamard(ctx, cur, rope.hadamard);
    }
    return ggml_cpy(ctx, ggml_reshape_2d(ctx, cur, cells->ne[0], cells->ne[1]), cells);
}
