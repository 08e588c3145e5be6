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

// Sets the rope frequencies of a context whose cache is empty, in the place of any scaling in force.
// inv_freq: n numbers, radians per position, one for each pair of rotary dimensions. factor: extended
// over original context, at least 1. attention_factor: multiplies q and k. Layers that the architecture
// does not scale (sliding windows) stay as they are. Returns false, with the reason in the log, if the
// number is not the model's or the cache is in use.
LLAMA_API bool yarn_gguf_set_rope_frequencies(struct llama_context * ctx, const double * inv_freq, size_t n,
                                              float factor, float attention_factor);

// ---- dynamic scaling: the factor s follows the length of the text ----

enum yarn_gguf_method {
    YARN_GGUF_METHOD_NONE     = 0,
    YARN_GGUF_METHOD_LINEAR   = 1, // position interpolation
    YARN_GGUF_METHOD_NTK      = 2, // NTK-aware; transformers' "dynamic"
    YARN_GGUF_METHOD_BY_PARTS = 3,
    YARN_GGUF_METHOD_YARN     = 4, // by parts, with a temperature that follows s
};

struct yarn_gguf_dynamic_scaling {
    enum yarn_gguf_method method;
    uint32_t n_ctx_orig; // L, tokens
    float factor;        // the smallest s: 1, or what the model was fine-tuned with
    float ntk_factor;    // f in transformers' formula for NTK, (f l'/L - (f - 1)); 1 elsewhere
    float step;          // s moves by this ratio, ahead of the text; 1: with every ubatch, no more than it needs;
                         // below 1.01 only with a K cache of type f32
    float beta_fast;
    float beta_slow;
    bool by_rotations; // the paper's ramp in the place of that in the dimension's index
    bool truncate;     // bounds of the index ramp rounded to whole dimensions
};

struct yarn_gguf_dynamic_state {
    double factor;          // s in force
    uint64_t n_rotations;   // how often cached keys were rotated
    int64_t t_rotations_us; // what that took, in all
};

// YaRN in steps of 2^(1/8); n_ctx_orig has to be filled in.
LLAMA_API struct yarn_gguf_dynamic_scaling yarn_gguf_dynamic_scaling_default(void);

// Lets s = max(1, l'/L) follow the length l' of the context's longest sequence. Whenever s changes, cached keys are
// rotated to it where they are, and nothing is computed again; below L the model runs unscaled. A context has
// one s for all its sequences. Replaces any scaling in force; the cache must be empty. Returns false, with the
// reason in the log, if the policy makes no sense or the model's cache cannot be rotated.
LLAMA_API bool yarn_gguf_set_dynamic_scaling(struct llama_context * ctx,
                                             const struct yarn_gguf_dynamic_scaling * policy);

// From now on s suffices for at least n_tokens: for a request of known size. 0: no such wish.
LLAMA_API void yarn_gguf_reserve_context(struct llama_context * ctx, uint32_t n_tokens);

LLAMA_API struct yarn_gguf_dynamic_state yarn_gguf_get_dynamic_state(const struct llama_context * ctx);

// The types that llama_model_quantize would give the tensors of a model. header: `size` bytes, a GGUF file up to its
// tensor data, with types as before quantizing. has_imatrix: there is an importance matrix, which some mixes heed.
// types: filled in, one for each tensor in the header's order. Returns false, with the reason in the log, if the
// library does not know such a model or type.
LLAMA_API bool yarn_gguf_tensor_types(const void * header, size_t size, enum llama_ftype ftype, bool has_imatrix,
                                      enum ggml_type * types);

// ggml_quantize_chunk for whole rows from src to dst: the same bytes, sooner for some types (ggml-quantize.cpp).
LLAMA_API void yarn_gguf_quantize(enum ggml_type type, const float * src, void * dst, int64_t n_rows, int64_t n_per_row,
                                  const float * imatrix);

// llama_sampler_sample where that would end the process: LLAMA_TOKEN_NULL, with the reason in the log, if there are no
// logits at idx, or if every token is forbidden.
LLAMA_API llama_token yarn_gguf_sample(struct llama_sampler * smpl, struct llama_context * ctx, int32_t idx);

// ---- what a model and its context take ----

// A GPU on paper, for llama_model_params.devices of a model that is loaded with no_alloc: what is put there is measured
// as ggml-cuda would allocate it, and nothing can be computed.
LLAMA_API ggml_backend_dev_t yarn_gguf_paper_device(void);

struct yarn_gguf_bytes {
    size_t host;
    size_t device; // all GPUs together
};

struct yarn_gguf_cache {
    uint32_t n_layers;
    uint32_t n_cells; // of a layer: tokens, or states
    struct yarn_gguf_bytes bytes;
};

struct yarn_gguf_memory {
    struct yarn_gguf_bytes weights;
    struct yarn_gguf_bytes compute;
    struct yarn_gguf_cache attention; // of layers that see all of the text
    struct yarn_gguf_cache window;    // of those that see a sliding window
    struct yarn_gguf_cache recurrent; // states
    struct yarn_gguf_bytes other;     // what else the context's memory holds, such as indexes
    bool compressed;                  // attention caches what MLA compresses
};

// What a context and its model have allocated, or would have without no_alloc.
LLAMA_API struct yarn_gguf_memory yarn_gguf_get_memory(const struct llama_context * ctx);

#ifdef __cplusplus
}
#endif
