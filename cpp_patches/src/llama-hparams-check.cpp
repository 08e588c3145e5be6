#include "llama-hparams-check.h"

#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-model-loader.h"

#include <stdexcept>
#include <string>
#include <utility>

static void require(llama_model_loader & ml, enum llm_kv kid, uint32_t value, bool is_sound,
                    const std::string & expected) {
    if (!is_sound) {
        throw std::runtime_error(
            format("bad count: %s = %u, expected %s", ml.llm_kv(kid).c_str(), value, expected.c_str()));
    }
}

static std::string from_to(uint32_t least, uint32_t most) {
    return format("%u to %u", least, most);
}

void llama_hparams_require_layers(llama_model_loader & ml, const llama_hparams & hparams) {
    const uint32_t layers = hparams.n_layer_all;
    require(ml, LLM_KV_BLOCK_COUNT, layers, layers > 0 && layers <= LLAMA_MAX_LAYERS, from_to(1, LLAMA_MAX_LAYERS));
    const uint32_t nextn = hparams.n_layer_nextn;
    require(ml, LLM_KV_NEXTN_PREDICT_LAYERS, nextn, nextn <= layers, from_to(0, layers));
}

void llama_hparams_require_experts(llama_model_loader & ml, const llama_hparams & hparams) {
    const uint32_t experts = hparams.n_expert;
    require(ml, LLM_KV_EXPERT_COUNT, experts, experts <= LLAMA_MAX_EXPERTS, from_to(0, LLAMA_MAX_EXPERTS));
    const uint32_t used = hparams.n_expert_used_max();
    require(ml, LLM_KV_EXPERT_USED_COUNT, used, used <= experts && (used > 0 || experts == 0),
            from_to(experts > 0 ? 1 : 0, experts));
    const uint32_t groups = hparams.n_expert_groups;
    require(ml, LLM_KV_EXPERT_GROUP_COUNT, groups, experts > 0 ? groups < experts : groups == 0,
            "less than expert_count");
    if (groups > 1) {
        require(ml, LLM_KV_EXPERT_GROUP_COUNT, groups, experts % groups == 0, format("a divisor of %u", experts));
        require(ml, LLM_KV_EXPERT_GROUP_USED_COUNT, hparams.n_group_used,
                hparams.n_group_used > 0 && hparams.n_group_used < groups, from_to(1, groups - 1));
    }
}

void llama_hparams_require_epsilons(llama_model_loader & ml, const llama_hparams & hparams) {
    const std::pair<enum llm_kv, float> epsilons[] = {
        {LLM_KV_ATTENTION_LAYERNORM_EPS, hparams.f_norm_eps},
        {LLM_KV_ATTENTION_LAYERNORM_RMS_EPS, hparams.f_norm_rms_eps},
        {LLM_KV_ATTENTION_GROUPNORM_EPS, hparams.f_norm_group_eps},
    };
    for (const auto & [kid, epsilon] : epsilons) {
        if (!(epsilon >= 0.0f)) { // NaN too
            throw std::runtime_error(
                format("bad value: %s = %g, expected a number >= 0", ml.llm_kv(kid).c_str(), epsilon));
        }
    }
}

void llama_hparams_require_windows(const llama_hparams & hparams) {
    if (!hparams.is_swa_any()) {
        throw std::runtime_error(
            "bad value: no layer has a sliding window according to sliding_window_pattern, expected at least one");
    }
}

void llama_hparams_require_pooling(llama_model_loader & ml, const llama_hparams & hparams) {
    for (const auto & [kid, pooling] : {std::pair{LLM_KV_POOLING_TYPE, hparams.pooling_type},
                                        std::pair{LLM_KV_CLASSIFIER_POOLING_TYPE, hparams.pooling_type_cls}}) {
        if (pooling < LLAMA_POOLING_TYPE_UNSPECIFIED || pooling > LLAMA_POOLING_TYPE_RANK) {
            throw std::runtime_error(format("bad value: %s = %d, expected -1 to %d", ml.llm_kv(kid).c_str(), pooling,
                                            LLAMA_POOLING_TYPE_RANK));
        }
    }
}
