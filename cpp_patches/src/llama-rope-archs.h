// Facts about the rope of single architectures, which are known from upstream's sources (src/models) and cannot be read
// from a file's keys. The Python twin is yarn_gguf/rope/architectures.py.
#pragma once

struct llama_model;

// Returns whether layers with a sliding window are scaled like the others. If not, they have their own base and no
// scaling.
bool llama_rope_archs_scale_windows(const llama_model & model);

// Returns why one table of frequencies cannot serve all scaled layers of the model; null if it can.
const char * llama_rope_archs_table_refusal(const llama_model & model);
