// Members of llama_context (declared by patch 0009) that reserve memory for graphs, and compute graphs that are not
// the model's.
#include "llama-context.h"

#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-memory.h"

#include <algorithm>

// Plans for the largest graph of the model, as the constructor does. Without this, a graph of another shape than the
// plan's would be planned when it comes, and so would every longer one.
void llama_context::reserve_largest_graph() {
    const auto full          = memory->init_full();
    const uint32_t n_tokens  = std::min(cparams.n_ctx, cparams.n_ubatch);
    const uint32_t n_outputs = std::min(n_tokens, cparams.n_outputs_max);
    if (!full || !graph_reserve(n_tokens, cparams.n_seq_max, n_outputs, full.get())) {
        LLAMA_LOG_WARN("%s: could not reserve the largest graph\n", __func__);
    }
}

// Reserves memory for a graph that is not the model's, and for all smaller ones of its kind, in a scheduler of their
// own. In the context's scheduler it would replace the largest graph in the plan. Every longer graph of the model would
// then be planned, and its buffers allocated, again.
void llama_context::reserve_aside(llm_graph_result * res) {
    if (!sched_aside) {
        sched_aside.reset(ggml_backend_sched_new(backend_ptrs.data(), backend_buft.data(), (int)backend_ptrs.size(),
                                                 res->get_max_nodes(), false, false));
    }
    if (!ggml_backend_sched_reserve(sched_aside.get(), res->get_gf())) {
        LLAMA_LOG_WARN("%s: could not reserve the graph\n", __func__);
    }
}

// Starts such a graph after the work that its backends still have to do, without waiting for that work. wait: the last
// such graph may not have read its inputs yet. Otherwise a graph of the model was started since, and that one waits for
// what is before it.
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
