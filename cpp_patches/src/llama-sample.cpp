#include "llama-impl.h"
#include "yarn-gguf.h"

#include <cmath>
#include <exception>
#include <vector>

llama_token yarn_gguf_sample(llama_sampler * smpl, llama_context * ctx, int32_t idx) {
    const float * logits = llama_get_logits_ith(ctx, idx);
    if (logits == nullptr) {
        return LLAMA_TOKEN_NULL;
    }
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));

    static thread_local std::vector<llama_token_data> cur;
    cur.resize(n_vocab);
    for (llama_token token = 0; token < n_vocab; ++token) {
        cur[token] = {token, logits[token], 0.0f};
    }
    llama_token_data_array candidates = {cur.data(), cur.size(), -1, false};
    llama_sampler_apply(smpl, &candidates);

    if (candidates.selected < 0 || candidates.selected >= (int64_t)candidates.size ||
        !(candidates.data[candidates.selected].logit > -INFINITY)) { // NaN too
        LLAMA_LOG_ERROR("%s: every token is forbidden, by a grammar or a logits processor\n", __func__);
        return LLAMA_TOKEN_NULL;
    }
    const llama_token token = candidates.data[candidates.selected].id;
    try {
        llama_sampler_accept(smpl, token);
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        return LLAMA_TOKEN_NULL;
    }
    return token;
}
