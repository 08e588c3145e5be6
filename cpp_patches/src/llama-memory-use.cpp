#include "llama-memory-use.h"
#include "llama-context.h"
#include "llama-ext.h"
#include "llama-kv-cache-dsa.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"
#include "yarn-gguf.h"

#include <algorithm>

// ---- measured, not allocated ----------------------------------------------------------------------------

ggml_backend_buffer_t llama_memory_alloc(const llama_hparams & hparams, ggml_context * ctx,
                                         ggml_backend_buffer_type_t buft) {
    if (!hparams.no_alloc) {
        return ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft);
    }
    ggml_backend_buffer_t buf = ggml_backend_buft_alloc_buffer(buft, 0);
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
        t->buffer = buf; // makes the scheduler treat it as allocated
    }
    return buf;
}

size_t llama_memory_size(const llama_hparams & hparams, ggml_context * ctx, ggml_backend_buffer_t buf) {
    return hparams.no_alloc ? ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, ggml_backend_buffer_get_type(buf))
                            : ggml_backend_buffer_get_size(buf);
}

// ---- the sums -------------------------------------------------------------------------------------------

// Returns whether buffers of this type lie in RAM. The device alone does not tell: a GPU's pinned host buffers have the
// GPU as their device. Nor does ggml_backend_buft_is_host: it is false for the CPU's buffers of repacked weights.
static bool is_in_ram(ggml_backend_buffer_type_t buft) {
    const ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    if (dev == nullptr || ggml_backend_buft_is_host(buft)) {
        return true;
    }
    const auto type = ggml_backend_dev_type(dev);
    return type == GGML_BACKEND_DEVICE_TYPE_CPU || type == GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

static void add(yarn_gguf_bytes & sum, ggml_backend_buffer_type_t buft, size_t size) {
    (is_in_ram(buft) ? sum.host : sum.device) += size;
}

static void add_cache(yarn_gguf_cache & sum, const llama_memory_i & cache, size_t n_layers, uint32_t n_cells) {
    sum.n_layers += n_layers;
    sum.n_cells = std::max(sum.n_cells, n_cells);
    for (const auto & [buft, size] : cache.memory_breakdown()) {
        add(sum.bytes, buft, size);
    }
}

static void add_kv(yarn_gguf_cache & sum, const llama_kv_cache * kv) {
    add_cache(sum, *kv, kv->get_layer_ids().size(), kv->get_size() * kv->get_n_stream());
}

static void add_states(yarn_gguf_cache & sum, const llama_memory_recurrent * states) {
    const auto & layers = states->r_l;
    const auto n_none   = std::count(layers.begin(), layers.end(), nullptr);
    add_cache(sum, *states, layers.size() - n_none, states->size);
}

static void add_windows(yarn_gguf_memory & sum, const llama_kv_cache_iswa * kv) {
    add_kv(sum.attention, kv->get_base());
    add_kv(sum.window, kv->get_swa());
}

// Adds up the caches by kind of layer. The rest, such as the indexes of sparse attention, has no kind.
static void add_by_kind(yarn_gguf_memory & sum, const llama_memory_i * memory) {
    if (const auto * kv = dynamic_cast<const llama_kv_cache *>(memory)) {
        add_kv(sum.attention, kv);
    } else if (const auto * windows = dynamic_cast<const llama_kv_cache_iswa *>(memory)) {
        add_windows(sum, windows);
    } else if (const auto * sparse = dynamic_cast<const llama_kv_cache_dsa *>(memory)) {
        add_kv(sum.attention, sparse->get_mla());
    } else if (const auto * states = dynamic_cast<const llama_memory_recurrent *>(memory)) {
        add_states(sum.recurrent, states);
    } else if (const auto * hybrid = dynamic_cast<const llama_memory_hybrid *>(memory)) {
        add_kv(sum.attention, hybrid->get_mem_attn());
        add_states(sum.recurrent, hybrid->get_mem_recr());
    } else if (const auto * mixed = dynamic_cast<const llama_memory_hybrid_iswa *>(memory)) {
        add_windows(sum, mixed->get_mem_attn());
        add_states(sum.recurrent, mixed->get_mem_recr());
    }
}

struct yarn_gguf_memory yarn_gguf_get_memory(const struct llama_context * ctx) {
    yarn_gguf_memory sum = {};
    for (const auto & [buft, use] : llama_get_memory_breakdown(ctx)) {
        add(sum.weights, buft, use.model);
        add(sum.other, buft, use.context);
        add(sum.compute, buft, use.compute);
    }
    sum.compressed = ctx->get_model().hparams.is_mla();
    add_by_kind(sum, llama_get_memory(ctx));
    for (const auto & cache : {sum.attention, sum.window, sum.recurrent}) {
        sum.other.host -= cache.bytes.host;
        sum.other.device -= cache.bytes.device;
    }
    return sum;
}
