// The C API that the patched libllama adds to llama.h.
#pragma once

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

// The version of yarn-gguf whose patch series this library was built with, e.g. "0.1.0".
LLAMA_API const char * yarn_gguf_patch_version(void);

// The version of the llama-cpp-python bindings that fit this library's llama.h, e.g. "0.3.36", or
// "unknown" when it was built from a tree whose llama.h is not the pinned one.
LLAMA_API const char * yarn_gguf_bindings_version(void);

// Sets the rope frequencies of a context, instead of any scaling in force. The cache must be empty.
// inv_freq: n numbers, radians per position, one for each pair of rotary dimensions. factor: extended over original
// context, at least 1. attention_factor: multiplies q and k. Layers that the architecture does not scale (sliding
// windows) stay unscaled. Returns false, with the reason in the log, if n does not fit the model or the cache is in
// use.
LLAMA_API bool yarn_gguf_set_rope_frequencies(struct llama_context * ctx, const double * inv_freq, size_t n,
                                              float factor, float attention_factor);

// ---- dynamic scaling: the factor s follows the length of the text ----

enum yarn_gguf_method {
    YARN_GGUF_METHOD_NONE     = 0,
    YARN_GGUF_METHOD_LINEAR   = 1, // position interpolation
    YARN_GGUF_METHOD_NTK      = 2, // NTK-aware; transformers' "dynamic"
    YARN_GGUF_METHOD_BY_PARTS = 3,
    YARN_GGUF_METHOD_YARN     = 4, // by parts, with a temperature that follows s
    YARN_GGUF_METHOD_LONGROPE = 5, // one table up to n_ctx_orig, another beyond
};

struct yarn_gguf_dynamic_scaling {
    enum yarn_gguf_method method;
    uint32_t n_ctx_orig; // L, tokens
    float factor;        // the smallest s: 1, or the factor that the model was fine-tuned with
    float ntk_factor;    // f in transformers' formula for NTK, (f l'/L - (f - 1)); 1 otherwise
    float step;          // s grows by this ratio each time, before the text needs it. 1: s is what each ubatch needs.
                         // A ratio below 1.01 needs a K cache of type f32.
    float beta_fast;
    float beta_slow;
    bool by_rotations; // the paper's ramp, in rotations, instead of the ramp in the dimension's index
    bool truncate;     // round the bounds of the index ramp to whole dimensions

    // LongRoPE alone: divisors of the unscaled frequencies, n_factors numbers each, and the factor on q and on k.
    const double * short_factor;
    const double * long_factor;
    size_t n_factors;
    float attention_factor;
};

struct yarn_gguf_dynamic_state {
    double factor;          // s in force
    uint64_t n_rotations;   // times that cached keys were rotated
    int64_t t_rotations_us; // total time of these rotations
};

// Returns YaRN in steps of 2^(1/8). The caller must set n_ctx_orig.
LLAMA_API struct yarn_gguf_dynamic_scaling yarn_gguf_dynamic_scaling_default(void);

// Lets s = max(factor, l'/L) follow the length l' of the context's longest sequence. Under LongRoPE, s is 1 up to L and
// `factor` beyond. When s changes, cached keys are rotated in place, and nothing is computed again. With factor 1 the
// model runs unscaled up to L. A context has one s for all its sequences. Replaces any scaling in force. The cache must
// be empty. Returns false, with the reason in the log, if the policy makes no sense or the model's cache cannot be
// rotated.
LLAMA_API bool yarn_gguf_set_dynamic_scaling(struct llama_context * ctx,
                                             const struct yarn_gguf_dynamic_scaling * policy);

// Makes s large enough for at least n_tokens from now on, for a request of known size. 0: ends this.
LLAMA_API void yarn_gguf_reserve_context(struct llama_context * ctx, uint32_t n_tokens);

// Returns the state of dynamic scaling; factor 1 for a context without it.
LLAMA_API struct yarn_gguf_dynamic_state yarn_gguf_get_dynamic_state(const struct llama_context * ctx);

// Finds the types that llama_model_quantize would give the tensors of a model. header: `size` bytes, a GGUF file up to
// its tensor data, with the types before quantizing. has_imatrix: there is an importance matrix, which changes some
// mixes. types: filled in, one for each tensor in the header's order. Returns false, with the reason in the log, if the
// library does not know the model or the type.
LLAMA_API bool yarn_gguf_tensor_types(const void * header, size_t size, enum llama_ftype ftype, bool has_imatrix,
                                      enum ggml_type * types);

// Quantizes whole rows from src to dst: the bytes of ggml_quantize_chunk, faster for some types (ggml-quantize.cpp).
LLAMA_API void yarn_gguf_quantize(enum ggml_type type, const float * src, void * dst, int64_t n_rows, int64_t n_per_row,
                                  const float * imatrix);

// Samples a token like llama_sampler_sample, but does not end the process on an error. Returns LLAMA_TOKEN_NULL, with
// the reason in the log, if there are no logits at idx, or if every token is forbidden.
LLAMA_API llama_token yarn_gguf_sample(struct llama_sampler * smpl, struct llama_context * ctx, int32_t idx);

// ---- the memory of a model and its context ----

// Returns a GPU on paper, for llama_model_params.devices of a model that is loaded with no_alloc. It measures what
// ggml-cuda would allocate, and cannot compute.
LLAMA_API ggml_backend_dev_t yarn_gguf_paper_device(void);

struct yarn_gguf_bytes {
    size_t host;
    size_t device; // all GPUs together
};

struct yarn_gguf_cache {
    uint32_t n_layers;
    uint32_t n_cells; // tokens or states in a layer
    struct yarn_gguf_bytes bytes;
};

struct yarn_gguf_memory {
    struct yarn_gguf_bytes weights;
    struct yarn_gguf_bytes compute;
    struct yarn_gguf_cache attention; // layers that attend to the whole text
    struct yarn_gguf_cache window;    // layers that attend to a sliding window
    struct yarn_gguf_cache recurrent; // states
    struct yarn_gguf_bytes other;     // the rest of the context's memory, such as indexes
    bool compressed;                  // attention caches compressed keys (MLA)
};

// Returns what a context and its model have allocated, or would have allocated without no_alloc.
LLAMA_API struct yarn_gguf_memory yarn_gguf_get_memory(const struct llama_context * ctx);

#ifdef __cplusplus
}
#endif
