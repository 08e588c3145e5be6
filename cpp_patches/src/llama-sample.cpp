#include "llama-impl.h"
#include "yarn-gguf.h"

#include <exception>

llama_token yarn_gguf_sample(llama_sampler * smpl, llama_context * ctx, int32_t idx) {
    if (llama_get_logits_ith(ctx, idx) == nullptr) {
        return LLAMA_TOKEN_NULL;
    }
    try {
        return llama_sampler_sample(smpl, ctx, idx);
    } catch (const std::exception & err) { // a grammar throws where no token of the vocabulary goes on
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        return LLAMA_TOKEN_NULL;
    }
}
