#include "ggml-cpp.h"
#include "llama-ext.h"
#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"
#include "yarn-gguf.h"

#include <map>
#include <memory>
#include <stdexcept>
#include <vector>

// Returns a model with the hyperparameters of the header, which upstream's chooser reads besides the tensors.
static std::unique_ptr<llama_model> model_of(gguf_context * header) {
    std::vector<std::string> splits;
    llama_model_loader loader(header, nullptr, nullptr, "", splits, nullptr, LLAMA_LOAD_MODE_NONE, false, true, true,
                              nullptr, nullptr);
    std::unique_ptr<llama_model> model(llama_model_create(loader, llama_model_default_params()));
    auto * base = dynamic_cast<llama_model_base *>(model.get());
    if (base == nullptr) {
        throw std::runtime_error("not a model that can be quantized: " + loader.get_arch_name());
    }
    base->load_hparams(loader);
    return model;
}

// Returns the tensors in the order in which llama_model_quantize goes through a file. A mix counts layers, so the order
// matters.
static std::map<std::string, ggml_tensor *, llama_model_loader::weight_name_comparer>
in_order_of_quantizing(ggml_context * ctx) {
    std::map<std::string, ggml_tensor *, llama_model_loader::weight_name_comparer> tensors;
    for (auto * tensor = ggml_get_first_tensor(ctx); tensor; tensor = ggml_get_next_tensor(ctx, tensor)) {
        tensors.emplace(ggml_get_name(tensor), tensor);
    }
    return tensors;
}

static void choose_types(gguf_context * header, ggml_context * ctx, llama_ftype ftype, bool has_imatrix,
                         ggml_type * types) {
    const auto model                          = model_of(header);
    const llama_model_imatrix_data no_data[1] = {};
    llama_model_quantize_params params        = llama_model_quantize_default_params();
    params.imatrix                            = has_imatrix ? no_data : nullptr;

    std::vector<ggml_tensor *> tensors;
    for (const auto & [name, tensor] : in_order_of_quantizing(ctx)) {
        tensors.push_back(tensor);
    }
    std::vector<ggml_type> chosen(tensors.size());
    const std::unique_ptr<quantize_state_impl, decltype(&llama_quant_free)> state(
        llama_quant_init(model.get(), &params), llama_quant_free);
    llama_quant_compute_types(state.get(), ftype, tensors.data(), chosen.data(), tensors.size());
    for (size_t i = 0; i < tensors.size(); i++) {
        types[gguf_find_tensor(header, ggml_get_name(tensors[i]))] = chosen[i];
    }
}

bool yarn_gguf_tensor_types(const void * header, size_t size, enum llama_ftype ftype, bool has_imatrix,
                            enum ggml_type * types) {
    try {
        ggml_context * ctx = nullptr;
        const gguf_context_ptr gguf(gguf_init_from_buffer(header, size, {true, &ctx}));
        const ggml_context_ptr owner(ctx);
        if (gguf == nullptr) {
            throw std::runtime_error("the header is not a sound GGUF header");
        }
        choose_types(gguf.get(), ctx, ftype, has_imatrix, types);
    } catch (const std::exception & error) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, error.what());
        return false;
    }
    return true;
}
