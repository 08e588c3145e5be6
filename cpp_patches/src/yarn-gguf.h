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

#ifdef __cplusplus
}
#endif
