#include "llama-rope-caches.h"

#include "llama-context.h"
#include "llama-kv-cache-dsa-iswa.h"
#include "llama-kv-cache-dsa.h"
#include "llama-kv-cache-dsv4.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache-msa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-idx.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"

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

std::vector<llama_kv_cache *> llama_rope_caches_of_keys(llama_memory_i * memory) {
    if (auto * indexed = dynamic_cast<llama_kv_cache_dsa *>(memory)) {
        return {indexed->get_mla(), indexed->get_lid()};
    }
    if (auto * indexed = dynamic_cast<llama_kv_cache_dsa_iswa *>(memory)) {
        return {indexed->get_dsa()->get_mla(), indexed->get_dsa()->get_lid(), indexed->get_swa()};
    }
    if (auto * indexed = dynamic_cast<llama_kv_cache_msa *>(memory)) {
        return {indexed->get_base(), indexed->get_idx()};
    }
    if (auto * compressed = dynamic_cast<llama_kv_cache_dsv4 *>(memory)) {
        return llama_rope_caches_of(compressed->get_raw());
    }
    auto caches = llama_rope_caches_of(memory);
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid_idx *>(memory); hybrid && hybrid->get_mem_idx()) {
        caches.push_back(hybrid->get_mem_idx());
    }
    return caches;
}

llama_memory_recurrent * llama_rope_caches_recurrent(llama_memory_i * memory) {
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid *>(memory)) {
        return hybrid->get_mem_recr();
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        return hybrid->get_mem_recr();
    }
    return dynamic_cast<llama_memory_recurrent *>(memory);
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
