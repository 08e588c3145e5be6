// Memory that is measured instead of allocated, in the places that upstream's no_alloc does not cover.
#pragma once

#include "ggml-backend.h"
#include "llama-hparams.h"

// Does what ggml_backend_alloc_ctx_tensors_from_buft does. For a model that is loaded with no_alloc, returns a buffer
// without memory.
ggml_backend_buffer_t llama_memory_alloc(const llama_hparams & hparams, ggml_context * ctx,
                                         ggml_backend_buffer_type_t buft);

// Returns the bytes that the buffer has, or would have without no_alloc.
size_t llama_memory_size(const llama_hparams & hparams, ggml_context * ctx, ggml_backend_buffer_t buf);
