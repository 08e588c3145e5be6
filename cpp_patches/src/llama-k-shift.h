// A shift of cached keys to other positions.
//
// A key at another position is the cached key, rotated by the difference of the positions, as its own rope rotates. So
// the operands are those of the rope in the model's graph, whatever the architecture's parameters say.
#pragma once

struct ggml_tensor;
struct llama_cparams;
class llama_kv_cache;
class llm_graph_result;

// Adds to a graph the rotation of all keys in a tensor of the cache. shift: the change of position of each cell.
// hadamard: the cache's matrix, or null.
void llama_k_shift_build(llm_graph_result & res, const llama_cparams & cparams, ggml_tensor * k, ggml_tensor * shift,
                         ggml_tensor * hadamard);
