// Upstream's small random models of every architecture (its tests/test-llama-archs.cpp), and what the programs that
// examine them share.
#pragma once

#define main upstream_main
#include "test-llama-archs.cpp"
#undef main

#include "llama-kv-cache-dsa-iswa.h"
#include "llama-kv-cache-dsa.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache-msa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-idx.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-model.h"
#include "yarn-gguf.h"

#include <algorithm>
#include <functional>
#include <map>
#include <sys/wait.h>
#include <unistd.h>

static const uint32_t N_SECONDS = 60; // limit for one model
static const size_t N_CHILDREN  = 2;
static const size_t SEED        = 1;

// ---- models ------------------------------------------------------------------------------------------

static tensor_data_params random_numbers = {SEED, 0.1f};

// Returns whether the tensor is the weight `name` of some layer.
static bool is_of_layer(const ggml_tensor * tensor, const char * name) {
    const char * start = strncmp(tensor->name, "dec.", 4) == 0 ? tensor->name + 4 : tensor->name;
    int layer          = 0;
    char end[GGML_MAX_NAME];
    return sscanf(start, "blk.%d.%s", &layer, end) == 2 && std::string(end) == std::string(name) + ".weight";
}

static void set_weights(ggml_tensor * tensor, void *) {
    set_tensor_data(tensor, &random_numbers);
    const bool is_divisor = strstr(tensor->name, "rope_f");
    const bool is_scale   = strstr(tensor->name, "norm") || strstr(tensor->name, ".scale");
    if (tensor->type == GGML_TYPE_F32 && (is_scale || is_divisor)) {
        std::vector<float> near_one(ggml_nelements(tensor));
        ggml_backend_tensor_get(tensor, near_one.data(), 0, ggml_nbytes(tensor));
        for (float & x : near_one) { // otherwise attention hardly depends on positions
            x = 1.0f + (is_divisor ? std::fabs(x) : x);
        }
        ggml_backend_tensor_set(tensor, near_one.data(), 0, ggml_nbytes(tensor));
    }
    // the state of a recurrent layer also depends on its input under earlier factors
    if (is_of_layer(tensor, "attn_output") || is_of_layer(tensor, "attn_o") || is_of_layer(tensor, "ssm_out")) {
        ggml_backend_tensor_memset(tensor, 0, 0, ggml_nbytes(tensor));
    }
}

// Gives a layer's attention an effect: random output projection.
static void attend(const llama_model & model, int layer) {
    for (const char * name : {"blk.%d.attn_output.weight", "dec.blk.%d.attn_o.weight"}) {
        char full[GGML_MAX_NAME];
        snprintf(full, sizeof(full), name, layer);
        if (auto * tensor = const_cast<ggml_tensor *>(model.get_tensor(full))) {
            set_tensor_data(tensor, &random_numbers);
        }
    }
}

struct form {
    llm_arch arch;
    bool moe;
    std::string without = "";    // a key that only some files of the architecture have, removed here
    bool has_factors    = false; // keep tensors of rope factors, if the architecture can have them

    std::string name() const {
        return std::string(moe ? "MoE" : "dense") + (without.empty() ? "" : " without " + without) +
               (has_factors ? " with rope factors" : "");
    }
};

using edit_keys = std::function<void(gguf_context *, const std::string & prefix)>; // prefix: "llama." and so on

static llama_model_ptr make_model(const form & f, const edit_keys & edit = nullptr) {
    gguf_context_ptr gguf = get_gguf_ctx(f.arch, f.moe);
    if (edit) {
        edit(gguf.get(), std::string(llm_arch_name(f.arch)) + ".");
    }
    if (!f.without.empty()) {
        gguf_remove_key(gguf.get(), (std::string(llm_arch_name(f.arch)) + "." + f.without).c_str());
    }
    if (f.arch == LLM_ARCH_GEMMA4) { // upstream's keys lack this one
        const bool windows[] = {true, true, true, true, false};
        gguf_set_arr_data(gguf.get(), "gemma4.attention.sliding_window_pattern", GGUF_TYPE_BOOL, windows, 5);
    }
    llama_model_params params      = llama_model_default_params();
    ggml_backend_dev_t no_device[] = {nullptr};
    params.devices                 = no_device;
    llama_model_ptr model(llama_model_init_from_user(gguf.get(), set_weights, nullptr, params));
    for (size_t i = 0; model && !f.has_factors && i < model->layers.size(); ++i) {
        auto & layer     = model->layers[i];
        layer.rope_freqs = layer.rope_long = layer.rope_short = nullptr;
    }
    return model;
}

static std::string first_error; // the first one since this was cleared

static std::string without_function(const std::string & error) {
    const size_t colon = error.find(": ");
    return colon == std::string::npos ? error : error.substr(colon + 2);
}

static void remember_errors(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR && first_error.empty()) {
        first_error = text;
        first_error.erase(first_error.find_last_not_of('\n') + 1);
    }
}

// Returns whether upstream's attention can read K of this type: heads must be whole blocks.
static bool can_have(const llama_model & model, ggml_type type_k) {
    bool is_divided = true;
    for (uint32_t layer = 0; layer < model.hparams.n_layer(); ++layer) {
        is_divided = is_divided && model.hparams.n_embd_head_k(layer) % ggml_blck_size(type_k) == 0;
    }
    return is_divided;
}

static void attend_everywhere(const llama_model & model) {
    for (uint32_t layer = 0; layer < model.hparams.n_layer(); ++layer) {
        attend(model, layer);
    }
}

// ---- caches ------------------------------------------------------------------------------------------

// Returns the caches of keys in the memory, whichever kind it is.
static std::vector<llama_kv_cache *> caches_of(llama_memory_t memory) {
    if (auto * kv = dynamic_cast<llama_kv_cache *>(memory)) {
        return {kv};
    }
    if (auto * windows = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
        return {windows->get_base(), windows->get_swa()};
    }
    if (auto * indexed = dynamic_cast<llama_kv_cache_dsa *>(memory)) {
        return {indexed->get_mla(), indexed->get_lid()};
    }
    if (auto * indexed = dynamic_cast<llama_kv_cache_dsa_iswa *>(memory)) {
        return {indexed->get_dsa()->get_mla(), indexed->get_dsa()->get_lid(), indexed->get_swa()};
    }
    if (auto * indexed = dynamic_cast<llama_kv_cache_msa *>(memory)) {
        return {indexed->get_base(), indexed->get_idx()};
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid_idx *>(memory)) {
        return hybrid->get_mem_idx() ? std::vector<llama_kv_cache *>{hybrid->get_mem_attn(), hybrid->get_mem_idx()}
                                     : std::vector<llama_kv_cache *>{hybrid->get_mem_attn()};
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid *>(memory)) {
        return {hybrid->get_mem_attn()};
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        return caches_of(hybrid->get_mem_attn());
    }
    return {};
}

// ---- results ----------------------------------------------------------------------------------------

static double relative_error(const std::vector<float> & got, const std::vector<float> & expected) {
    double difference = 0.0;
    double norm       = 0.0;
    for (size_t i = 0; i < got.size(); ++i) {
        difference += std::pow((double)got[i] - expected[i], 2);
        norm += std::pow((double)expected[i], 2);
    }
    return norm > 0.0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

static std::string joined(const std::vector<std::string> & parts, const char * by) {
    std::string text;
    for (const auto & part : parts) {
        text += (text.empty() ? "" : by) + part;
    }
    return text.empty() ? "-" : text;
}

static std::string number(double x) {
    char text[32];
    snprintf(text, sizeof(text), "%.1e", x);
    return text;
}

// ---- each form in its own process --------------------------------------------------------------------

static std::vector<form> all_forms() {
    const std::map<llm_arch, std::string> optional = {
        {LLM_ARCH_LFM2, "attention.sliding_window"},      {LLM_ARCH_LFM2MOE, "attention.sliding_window"},
        {LLM_ARCH_GLM4, "rope.dimension_sections"},       {LLM_ARCH_GLM4_MOE, "rope.dimension_sections"},
        {LLM_ARCH_HUNYUAN_VL, "rope.dimension_sections"}, {LLM_ARCH_BAILINGMOE3, "rope.dimension_sections"},
    };
    std::vector<form> forms;
    for (llm_arch arch : llm_arch_all()) {
        for (bool moe : {false, true}) {
            if (arch == LLM_ARCH_UNKNOWN || (moe ? !moe_implemented(arch) : moe_mandatory(arch))) {
                continue;
            }
            forms.push_back({arch, moe});
            if (arch == LLM_ARCH_LLAMA || arch == LLM_ARCH_PHI3) { // factors of Llama 3.1, of LongRoPE
                forms.push_back({arch, moe, "", true});
            }
            if (optional.count(arch)) {
                forms.push_back({arch, moe, optional.at(arch)});
            }
        }
    }
    return forms;
}

using examiner = std::function<std::string(const form &)>; // returns the fields after the form's name

// Waits for a child. Prints a line for a child that ended by a signal and so could not print its own.
static void wait_for_one(std::map<pid_t, std::string> & children) {
    int status        = 0;
    const pid_t child = wait(&status);
    if (WIFSIGNALED(status)) {
        printf("%saborted\tsignal %d\n", children[child].c_str(), WTERMSIG(status));
    }
    children.erase(child);
}

static void start(const form & f, const examiner & examine, std::map<pid_t, std::string> & children) {
    const std::string line = std::string(llm_arch_name(f.arch)) + "\t" + f.name() + "\t";
    fflush(stdout);
    const pid_t child = fork();
    if (child != 0) {
        children[child] = line;
        return;
    }
    alarm(N_SECONDS);
    llama_log_set(remember_errors, nullptr);
    std::string result;
    try {
        result = examine(f);
    } catch (const std::exception & error) {
        result = std::string("failed\t") + error.what();
    }
    printf("%s%s\n", line.c_str(), result.c_str());
    fflush(stdout);
    _exit(0);
}

// Prints a line for each form of the architectures that the arguments name, or of all.
static void examine_each(int argc, char ** argv, const examiner & examine) {
    const std::vector<std::string> names(argv + 1, argv + argc);
    std::map<pid_t, std::string> children;
    for (const form & f : all_forms()) {
        if (names.empty() || std::find(names.begin(), names.end(), llm_arch_name(f.arch)) != names.end()) {
            if (children.size() == N_CHILDREN) {
                wait_for_one(children);
            }
            start(f, examine, children);
        }
    }
    while (!children.empty()) {
        wait_for_one(children);
    }
}
