// Memory that is measured and not allocated, where upstream's no_alloc does not reach.
#pragma once

#include "ggml-backend.h"
#include "llama-hparams.h"

// As ggml_backend_alloc_ctx_tensors_from_buft; a buffer without memory for a model that is loaded with no_alloc.
ggml_backend_buffer_t llama_memory_alloc(const llama_hparams & hparams, ggml_context * ctx,
                                         ggml_backend_buffer_type_t buft);

// Bytes of that buffer, or those that it would have.
size_t llama_memory_size(const llama_hparams & hparams, ggml_context * ctx, ggml_backend_buffer_t buf);
