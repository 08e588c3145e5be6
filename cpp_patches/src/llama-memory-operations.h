// Operations of the C API on a context's memory that would give wrong keys, states or positions, or end the process.
//
// Each function returns whether the operation gives what a direct computation gives. If not, it logs the reason, and
// the caller leaves the memory as it is.
#pragma once

#include "llama.h"

struct llama_memory_i;

// llama_memory_seq_add and llama_memory_seq_div: positions [p0, p1) of a sequence change.
bool llama_memory_can_add(llama_memory_i & memory, llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos delta);
bool llama_memory_can_div(llama_memory_i & memory, llama_seq_id seq, llama_pos p0, llama_pos p1, int d);

// llama_memory_seq_cp
bool llama_memory_can_cp(llama_memory_i & memory, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1);

// llama_memory_seq_rm. False without a message: callers ask whether a part can be removed.
bool llama_memory_can_rm(llama_memory_i & memory, llama_seq_id seq, llama_pos p0, llama_pos p1);
