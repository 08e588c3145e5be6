// Values in a model's file, or in the caller's kv_overrides, that cannot be.
#pragma once

struct llama_hparams;
struct llama_model_loader;

// To be called as soon as block_count, and then nextn_predict_layers, has been read. Throws std::runtime_error,
// naming the key and its value, where upstream's assertion would end the process.
void llama_hparams_require_layers(llama_model_loader & ml, const llama_hparams & hparams);

// The same of experts, once all of their counts have been read.
void llama_hparams_require_experts(llama_model_loader & ml, const llama_hparams & hparams);

// The same of what norms add to a variance, once the architecture has read its own.
void llama_hparams_require_epsilons(llama_model_loader & ml, const llama_hparams & hparams);

// The same of layers with a sliding window, where the model has one.
void llama_hparams_require_windows(const llama_hparams & hparams);

// The same of what is made of the embeddings of a text, once it has been read.
void llama_hparams_require_pooling(llama_model_loader & ml, const llama_hparams & hparams);
