#include "llama-k-origin.h"

#include "ggml-rope.h"
#include "llama-cparams.h"
#include "llama-kv-cache.h"
#include "llama-rope-caches.h"

#include <cstring>

// The origin of a rope's result.
static llama_k_origin origin_of_rope(const ggml_tensor * op, const llama_k_origin & before) {
    const ggml_rope_operands operands(op);
    llama_k_origin origin;
    origin.is_roped  = true;
    origin.is_scaled = operands.has_steps == GGML_ROPE_STEPS;
    origin.factors   = origin.is_scaled ? nullptr : op->src[2];
    origin.n_head    = op->ne[0];
    origin.n_before  = operands.n_offs;
    origin.obstacle  = before.is_roped ? "the model rotates keys twice" : nullptr;
    memcpy(origin.params.data(), op->op_params, sizeof(op->op_params));
    return origin;
}

// A head is a rotated part and another part, in either order.
static llama_k_origin origin_of_parts(const ggml_tensor * op, const llama_k_origin & one, const llama_k_origin & two) {
    llama_k_origin origin = one.is_roped ? one : two;
    if (op->op_params[0] == 0) { // along the dimensions of a head
        origin.n_head = op->ne[0];
        origin.n_before += one.is_roped ? 0 : op->src[0]->ne[0];
    }
    if (one.is_roped && two.is_roped) {
        origin.obstacle = "the model rotates two parts of its keys";
    }
    return origin;
}

// A rotation can be followed by another one only if what lies between them is the same for all dimensions of a head.
static llama_k_origin blocked(llama_k_origin origin, bool is_blocked, const char * obstacle) {
    if (origin.is_roped && is_blocked && !origin.obstacle) {
        origin.obstacle = obstacle;
    }
    return origin;
}

static llama_k_origin origin_of(const ggml_tensor * t) {
    llama_k_origin origin;
    switch (t->op) {
    case GGML_OP_ROPE:
        return origin_of_rope(t, origin_of(t->src[0]));
    case GGML_OP_NORM:
    case GGML_OP_RMS_NORM:
    case GGML_OP_L2_NORM:
        origin               = origin_of(t->src[0]);
        origin.is_normalized = origin.is_roped;
        return blocked(origin, t->op == GGML_OP_NORM, "the model subtracts a mean from keys after their rope");
    case GGML_OP_MUL:
        return blocked(origin_of(t->src[0]), t->src[1]->ne[0] > 1, "the model weights its keys after their rope");
    case GGML_OP_ADD:
    case GGML_OP_SUB:
    case GGML_OP_DIV:
    case GGML_OP_CLAMP:
    case GGML_OP_PAD:
    case GGML_OP_UNARY:
        return blocked(origin_of(t->src[0]), true, "the model changes its keys after their rope");
    case GGML_OP_CONCAT:
        return origin_of_parts(t, origin_of(t->src[0]), origin_of(t->src[1]));
    case GGML_OP_MUL_MAT: // the matrix of a Hadamard rotation is an input of the graph, that of a projection is not
        if (t->src[0]->flags & GGML_TENSOR_FLAG_INPUT) {
            origin          = origin_of(t->src[1]);
            origin.in_basis = true;
        }
        return origin;
    case GGML_OP_RESHAPE:
    case GGML_OP_VIEW:
    case GGML_OP_PERMUTE:
    case GGML_OP_CONT:
    case GGML_OP_CPY:
    case GGML_OP_REPEAT: // a rotated part that all heads share
    case GGML_OP_SCALE:
        return origin_of(t->src[0]);
    default:
        return origin;
    }
}

void llama_k_origins_note(llama_k_origins & origins, ggml_cgraph * gf) {
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        const ggml_tensor * node = ggml_graph_node(gf, i);
        if (node->op == GGML_OP_SET_ROWS && node->view_src) {
            origins[node->view_src] = origin_of(node->src[0]);
        }
    }
}

void llama_k_origins_share(const llama_cparams & cparams, llama_memory_i * memory) {
    for (llama_kv_cache * kv : llama_rope_caches_of_keys(memory)) {
        kv->k_origins = cparams.k_origins;
    }
}

llama_k_origin llama_k_origin_of(const llama_k_origins & origins, const ggml_tensor * k) {
    const auto found = origins.find(k);
    return found != origins.end() ? found->second : llama_k_origin();
}
