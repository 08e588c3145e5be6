// Checks of values in a model's file or in the caller's kv_overrides on which upstream's assertions would end the
// process.
#pragma once

struct llama_hparams;
struct llama_model_loader;

// Checks the counts of layers. Call it as soon as block_count, and then nextn_predict_layers, is read. Throws
// std::runtime_error, naming the key and its value.
void llama_hparams_require_layers(llama_model_loader & ml, const llama_hparams & hparams);

// Checks the counts of experts, once all of them are read. Throws like the above.
void llama_hparams_require_experts(llama_model_loader & ml, const llama_hparams & hparams);

// Checks the epsilons of norms, once the architecture has read its own. Throws like the above.
void llama_hparams_require_epsilons(llama_model_loader & ml, const llama_hparams & hparams);

// Checks, for a model with a sliding window, that some layer has it. Throws like the above.
void llama_hparams_require_windows(const llama_hparams & hparams);

// Checks the kinds of pooling of embeddings, once they are read. Throws like the above.
void llama_hparams_require_pooling(llama_model_loader & ml, const llama_hparams & hparams);
