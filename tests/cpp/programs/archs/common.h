// The part of llama.cpp's common library that is needed to compile its tests/test-llama-archs.cpp.
#pragma once

#include "llama-cpp.h"

#include <algorithm>
#include <vector>

inline void common_init() {
}

struct common_batch { // used only by upstream's main, which does not run here
    common_batch(llama_context *) {
    }
    void add(llama_token, llama_pos, llama_seq_id, bool) {
    }
    void clear() {
    }
    llama_batch_ext * get() {
        return nullptr;
    }
};
