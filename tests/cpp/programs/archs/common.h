// Just enough of llama.cpp's common library to compile its tests/test-llama-archs.cpp without it.
#pragma once

#include "llama-cpp.h"

#include <algorithm>
#include <vector>

inline void common_init() {
}

struct common_batch { // whose user here is upstream's own main, which is not run
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
