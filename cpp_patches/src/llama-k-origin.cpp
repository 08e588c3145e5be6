#include "llama-k-origin.h"

#include "ggml-rope.h"
#include "llama-cparams.h"

static llama_k_origin origin_of(const ggml_tensor * t) {
    llama_k_origin origin;
    switch (t->op) {
    case GGML_OP_ROPE:
        origin.is_roped  = true;
        origin.is_scaled = t->op_params[0] == GGML_ROPE_STEPS;
        return origin;
    case GGML_OP_NORM:
    case GGML_OP_RMS_NORM:
    case GGML_OP_L2_NORM:
        origin               = origin_of(t->src[0]);
        origin.is_normalized = origin.is_roped;
        return origin;
    case GGML_OP_CONCAT: // the rotated part of a head and the other part
        origin = origin_of(t->src[0]);
        return origin.is_roped ? origin : origin_of(t->src[1]);
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
    case GGML_OP_MUL:
    case GGML_OP_ADD:
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

llama_k_origin llama_k_origin_of(const llama_cparams & cparams, const ggml_tensor * k) {
    const auto found = cparams.k_origins->find(k);
    return found != cparams.k_origins->end() ? found->second : llama_k_origin{true, false, false, true};
}
