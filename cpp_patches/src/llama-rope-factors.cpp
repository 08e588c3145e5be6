#include "llama-rope-factors.h"

#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

static const float STILL = 1e20f; // upstream's converter writes 1e30 for a pair that does not rotate

bool llama_rope_factors::is_scaling() const {
    const auto scales = [](float x) { return x != 1.0f && x < STILL; };
    return !long_factor.empty() || std::any_of(freqs.begin(), freqs.end(), scales);
}

std::vector<double> llama_rope_factors::hold_still(std::vector<double> inv_freq) const {
    for (size_t i = 0; i < std::min(inv_freq.size(), freqs.size()); ++i) {
        inv_freq[i] = freqs[i] >= STILL ? 0.0 : inv_freq[i];
    }
    return inv_freq;
}

// Returns the numbers of a tensor that all layers share; none if the model lacks it, or has it for other rotary
// dimensions.
static std::vector<float> read_tensor(const llama_model & model, ggml_tensor * llama_layer::* member, size_t n) {
    const auto has  = [member](const llama_layer & layer) { return layer.*member != nullptr; };
    const auto with = std::find_if(model.layers.begin(), model.layers.end(), has);
    if (with == model.layers.end() || model.hparams.no_alloc) {
        return {};
    }
    const ggml_tensor * tensor = (*with).*member;
    if (tensor->type != GGML_TYPE_F32 || ggml_nelements(tensor) != (int64_t)n) {
        return {};
    }
    std::vector<float> values(n);
    ggml_backend_tensor_get(tensor, values.data(), 0, n * sizeof(float));
    for (const float value : values) {
        if (!std::isfinite(value) || value <= 0.0f) {
            throw std::runtime_error(format("bad tensor: %s holds %g, expected numbers > 0", tensor->name, value));
        }
    }
    return values;
}

static bool are_ones(const std::vector<float> & values) {
    return std::all_of(values.begin(), values.end(), [](float x) { return x == 1.0f; });
}

llama_rope_factors_ptr llama_rope_factors_of(const llama_model & model) {
    const size_t n        = model.hparams.n_rot_full / 2;
    auto factors          = std::make_shared<llama_rope_factors>();
    factors->freqs        = read_tensor(model, &llama_layer::rope_freqs, n);
    factors->short_factor = read_tensor(model, &llama_layer::rope_short, n);
    factors->long_factor  = read_tensor(model, &llama_layer::rope_long, n);
    if (factors->short_factor.empty() != factors->long_factor.empty()) {
        throw std::runtime_error("bad file: of rope_factors_short.weight and rope_factors_long.weight, one is missing");
    }
    if (are_ones(factors->short_factor) && are_ones(factors->long_factor)) {
        factors->short_factor.clear(); // the keys of such a file say how it is scaled
        factors->long_factor.clear();
    }
    return factors;
}

void llama_rope_factors_drop(const llama_cparams & cparams, ggml_tensor * op) {
    if (cparams.rope_replaces_factors && cparams.rope_factors->is_scaling()) {
        op->src[2] = nullptr;
    }
}
