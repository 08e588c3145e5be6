#include "llama-rope-caches.h"

#include "llama-context.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"

#include <algorithm>

std::vector<llama_kv_cache *> llama_rope_caches_of(llama_memory_i * memory) {
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
        return llama_rope_caches_of(hybrid->get_mem_attn());
    }
    return {};
}

double llama_rope_caches_length(llama_context & ctx) {
    llama_pos last = -1;
    for (const llama_kv_cache * kv : llama_rope_caches_of(ctx.get_memory())) {
        for (llama_seq_id s = 0; s < (llama_seq_id)ctx.n_seq_max(); ++s) {
            last = std::max(last, kv->seq_pos_max(s));
        }
    }
    return last + 1.0;
}
