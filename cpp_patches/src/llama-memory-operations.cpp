#include "llama-memory-operations.h"

#include "llama-impl.h"
#include "llama-kv-cache-dsv4.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-recurrent.h"
#include "llama-rope-caches.h"

#include <limits>

// Positions [first, stop), as the C API takes them: a negative bound is none.
struct position_range {
    position_range(llama_pos p0, llama_pos p1)
        : first(p0 < 0 ? 0 : p0), stop(p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1) {
    }

    bool has(llama_pos pos) const {
        return first <= pos && pos < stop;
    }

    llama_pos first;
    llama_pos stop;
};

// ---- changes of positions ----------------------------------------------------------------------------

// Returns why the keys of this memory cannot move to other positions.
static const char * shift_obstacle(llama_memory_i & memory) {
    for (const llama_kv_cache * kv : llama_rope_caches_of_keys(&memory)) {
        if (const char * obstacle = kv->get_shift_obstacle()) {
            return obstacle;
        }
    }
    return dynamic_cast<llama_kv_cache_dsv4 *>(&memory)
               ? "the model caches keys of groups of positions"
               : "the cache of the sliding windows has lost earlier keys: set swa_full";
}

// Returns whether cells of the sequence in the range also belong to another sequence. A cell has one position.
static bool has_shared_cell(const llama_kv_cache & kv, llama_seq_id seq, const position_range & range) {
    const auto & cells = kv.get_cells(seq);
    for (uint32_t i = 0; i < cells.size(); ++i) {
        if (!cells.is_empty(i) && cells.seq_has(i, seq) && range.has(cells.pos_get(i)) && cells.seq_count(i) > 1) {
            return true;
        }
    }
    return false;
}

// The state of a sequence in recurrent layers: that after its last token. Null if there is none.
static const llama_memory_recurrent::mem_cell * state_of(llama_memory_i & memory, llama_seq_id seq) {
    const auto * recurrent = llama_rope_caches_recurrent(&memory);
    if (!recurrent || seq < 0 || (uint32_t)seq >= recurrent->size || recurrent->cells[seq].tail < 0) {
        return nullptr;
    }
    return &recurrent->cells[recurrent->cells[seq].tail];
}

static bool is_shared(llama_memory_i & memory, llama_seq_id seq, const position_range & range) {
    for (const llama_kv_cache * kv : llama_rope_caches_of_keys(&memory)) {
        if (has_shared_cell(*kv, seq, range)) {
            return true;
        }
    }
    const auto * state = state_of(memory, seq);
    return state && range.has(state->pos) && state->seq_id.size() > 1;
}

static bool can_move(const char * name, llama_memory_i & memory, llama_seq_id seq, llama_pos p0, llama_pos p1) {
    if (!memory.get_can_shift()) {
        LLAMA_LOG_ERROR("%s: positions cannot change: %s\n", name, shift_obstacle(memory));
        return false;
    }
    if (is_shared(memory, seq, position_range(p0, p1))) {
        LLAMA_LOG_ERROR("%s: positions cannot change: sequence %d shares cells with another sequence, whose positions "
                        "would change too. Copy between streams (kv_unified = false), or remove the other sequence\n",
                        name, seq);
        return false;
    }
    return true;
}

bool llama_memory_can_add(llama_memory_i & memory, llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos delta) {
    const auto * state = state_of(memory, seq);
    if (state && position_range(p0, p1).has(state->pos) && state->pos + delta < 0) {
        LLAMA_LOG_ERROR("llama_memory_seq_add: the recurrent state after position %d cannot move by %d\n", state->pos,
                        delta);
        return false;
    }
    return delta == 0 || can_move("llama_memory_seq_add", memory, seq, p0, p1);
}

bool llama_memory_can_div(llama_memory_i & memory, llama_seq_id seq, llama_pos p0, llama_pos p1, int d) {
    if (d <= 0) {
        LLAMA_LOG_ERROR("llama_memory_seq_div: the divisor must be at least 1, got %d\n", d);
        return false;
    }
    return d == 1 || can_move("llama_memory_seq_div", memory, seq, p0, p1);
}

// ---- parts of a sequence -----------------------------------------------------------------------------

bool llama_memory_can_cp(llama_memory_i & memory, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    if (src == dst) {
        return true;
    }
    if (dynamic_cast<llama_kv_cache_dsv4 *>(&memory) && (p0 > 0 || p1 >= 0)) {
        LLAMA_LOG_ERROR("llama_memory_seq_cp: the model caches keys of groups of positions: copy the whole sequence\n");
        return false;
    }
    const auto * state = state_of(memory, src);
    if (state && (p0 > 0 || !position_range(p0, p1).has(state->pos))) {
        LLAMA_LOG_ERROR("llama_memory_seq_cp: the model has a recurrent state, that after position %d alone: copy the "
                        "whole sequence\n",
                        state->pos);
        return false;
    }
    return true;
}

bool llama_memory_can_rm(llama_memory_i & memory, llama_seq_id seq, llama_pos p0, llama_pos p1) {
    const position_range range(p0, p1);
    const auto * state = state_of(memory, seq);
    return !state || range.first >= range.stop || range.stop > state->pos; // upstream decides about the last token
}
