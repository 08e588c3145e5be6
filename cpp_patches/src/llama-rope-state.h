// The part of a saved state that says how its K is rotated.
#pragma once

struct llama_context;
class llama_io_read_i;
class llama_io_write_i;

// Writes the scaling in force. Applies pending context shifts first, because a state holds the positions after them.
void llama_rope_state_write(llama_io_write_i & io, llama_context & ctx);

// Reads the scaling of a saved state, and brings the context's dynamic scaling to the saved factor. Throws
// std::runtime_error if the state was saved under another scaling.
void llama_rope_state_read(llama_io_read_i & io, llama_context & ctx);
