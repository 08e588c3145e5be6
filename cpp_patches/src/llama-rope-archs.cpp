#include "llama-rope-archs.h"

#include "llama-model.h"

bool llama_rope_archs_scale_windows(const llama_model & model) {
    switch (model.arch) {
    case LLM_ARCH_AFMOE: // load_arch_hparams of these gives sliding windows the scale of the other layers
    case LLM_ARCH_COHERE2:
    case LLM_ARCH_COHERE2MOE:
    case LLM_ARCH_DFLASH:
    case LLM_ARCH_EXAONE4:
    case LLM_ARCH_EXAONE_MOE:
    case LLM_ARCH_GEMMA2:
    case LLM_ARCH_LLAMA4:
    case LLM_ARCH_MAPLE:
    case LLM_ARCH_OPENAI_MOE:
    case LLM_ARCH_SMALLTHINKER:
    case LLM_ARCH_SPARK2_5:
        return model.hparams.rope_freq_base_train_swa == model.hparams.rope_freq_base_train;
    case LLM_ARCH_GRANITE_SWA: // the graphs of these have one base
    case LLM_ARCH_LFM2:
    case LLM_ARCH_LFM2MOE:
        return true;
    default:
        return false;
    }
}

const char * llama_rope_archs_table_refusal(const llama_model & model) {
    const bool has_bases = model.hparams.rope_freq_base_train_swa != model.hparams.rope_freq_base_train;
    if (model.arch == LLM_ARCH_DEEPSEEK4 || (model.arch == LLM_ARCH_DOTS3NOTE && has_bases)) {
        return "the model has scaled layers with several bases, which one table of frequencies cannot serve";
    }
    return nullptr;
}
