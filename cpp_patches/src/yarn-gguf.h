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

#ifdef __cplusplus
}
#endif
