#include "llama-rope-state.h"

#include "llama-context.h"
#include "llama-io.h"
#include "llama-model.h"
#include "llama-rope-caches.h"
#include "llama-rope-dynamic.h"
#include "llama-rope-frequencies.h"
#include "rope-math.h"

#include <cmath>
#include <stdexcept>
#include <vector>

// Everything that decides how K is rotated, except the numbers of the table, which follow it in the state.
struct rope_fingerprint {
    double dynamic_factor = 0.0; // 0: not dynamic
    double freq_base      = 0.0;
    double freq_scale     = 0.0;
    double ext_factor     = 0.0;
    double attn_factor    = 0.0;
    double beta_fast      = 0.0;
    double beta_slow      = 0.0;
    double n_ctx_orig     = 0.0;
    double has_factors    = 0.0; // 1: K is rotated by the file's tensor of rope factors
    uint64_t n_table      = 0;
};

struct rope_saved {
    rope_fingerprint f;
    std::vector<double> table;
};

static const uint32_t STATE_MAGIC = 0x48594152; // "RAYH"

static rope_fingerprint fingerprint_of(const llama_cparams & cparams) {
    rope_fingerprint f;
    f.dynamic_factor = cparams.rope_dynamic ? cparams.rope_dynamic->factor : 0.0;
    f.freq_base      = cparams.rope_freq_base;
    f.freq_scale     = cparams.rope_freq_scale;
    f.ext_factor     = cparams.yarn_ext_factor;
    f.attn_factor    = cparams.yarn_attn_factor;
    f.beta_fast      = cparams.yarn_beta_fast;
    f.beta_slow      = cparams.yarn_beta_slow;
    f.n_ctx_orig     = cparams.n_ctx_orig_yarn;
    f.has_factors    = cparams.rope_factors->is_scaling() && !cparams.rope_replaces_factors;
    f.n_table        = cparams.rope_frequencies ? cparams.rope_frequencies->inv_freq.size() : 0;
    return f;
}

// Applies pending context shifts.
static void finish_shifts(llama_context & ctx) {
    if (ctx.memory_update(false)) {
        ctx.synchronize();
    }
}

void llama_rope_state_write(llama_io_write_i & io, llama_context & ctx) {
    finish_shifts(ctx);
    const auto & cparams     = ctx.get_cparams();
    const rope_fingerprint f = fingerprint_of(cparams);
    io.write(&STATE_MAGIC, sizeof(STATE_MAGIC));
    io.write(&f, sizeof(f));
    if (f.n_table > 0) {
        io.write(cparams.rope_frequencies->inv_freq.data(), f.n_table * sizeof(double));
    }
}

static rope_saved read_saved(llama_io_read_i & io, uint64_t n_pairs) {
    uint32_t magic = 0;
    io.read(&magic, sizeof(magic));
    if (magic != STATE_MAGIC) {
        throw std::runtime_error("the state does not contain its rope scaling: it was saved by another library");
    }
    rope_saved saved;
    io.read(&saved.f, sizeof(saved.f));
    if (saved.f.n_table != 0 && saved.f.n_table != n_pairs) {
        throw std::runtime_error("the state's rope frequencies are those of another model");
    }
    saved.table.resize(saved.f.n_table);
    if (!saved.table.empty()) {
        io.read(saved.table.data(), saved.table.size() * sizeof(double));
    }
    return saved;
}

// Returns whether the state was saved under the static scaling of a context.
static bool is_same_static(const rope_saved & saved, const llama_cparams & cparams) {
    const rope_fingerprint & a = saved.f;
    const rope_fingerprint b   = fingerprint_of(cparams);
    const bool same_ramp = a.beta_fast == b.beta_fast && a.beta_slow == b.beta_slow && a.n_ctx_orig == b.n_ctx_orig;
    const bool same_table =
        cparams.rope_frequencies ? cparams.rope_frequencies->inv_freq == saved.table : a.n_table == 0;
    return same_table && a.freq_base == b.freq_base && a.freq_scale == b.freq_scale && a.ext_factor == b.ext_factor &&
           a.attn_factor == b.attn_factor && a.has_factors == b.has_factors &&
           (a.ext_factor == 0.0 || a.n_table > 0 || same_ramp);
}

// Returns whether a context's dynamic scaling has, at this factor, the scaling of the state.
static bool is_same_dynamic(const rope_saved & saved, const llama_cparams & cparams, double factor, int n_dims) {
    if (saved.f.freq_base != cparams.rope_freq_base || saved.f.has_factors != 0.0 || !std::isfinite(factor) ||
        factor < 1.0) {
        return false;
    }
    const auto & policy = cparams.rope_dynamic->policy;
    if (!policy.has_table(factor)) {
        return saved.f.n_table == 0 && saved.f.freq_scale == 1.0 && saved.f.attn_factor == 1.0;
    }
    llama_cparams expected = cparams;
    const auto inv_freq    = policy.inv_freq(factor, saved.f.freq_base, n_dims);
    llama_rope_frequencies_use(expected, llama_rope_frequencies_make(inv_freq), (float)(1.0 / factor),
                               (float)policy.magnitude(factor));
    return saved.table == inv_freq && saved.f.attn_factor == expected.yarn_attn_factor;
}

void llama_rope_state_read(llama_io_read_i & io, llama_context & ctx) {
    finish_shifts(ctx);
    const auto & cparams   = ctx.get_cparams();
    const auto n_pairs     = ctx.get_model().hparams.n_rot_full / 2;
    const rope_saved saved = read_saved(io, n_pairs);
    const double factor    = saved.f.dynamic_factor != 0.0 ? saved.f.dynamic_factor : 1.0;
    const bool is_same     = cparams.rope_dynamic ? is_same_dynamic(saved, cparams, factor, 2 * (int)n_pairs)
                                                  : is_same_static(saved, cparams);
    if (!is_same) {
        throw std::runtime_error("the state was saved under another rope scaling than this context's");
    }
    if (!cparams.rope_dynamic) {
        return;
    }
    if (!cparams.rope_dynamic->set_factor(ctx, factor, llama_rope_caches_length(ctx) > 0.0)) {
        throw std::runtime_error("the cached keys could not be rotated to the state's scaling");
    }
    ggml_backend_sched_synchronize(ctx.get_sched()); // the state's keys are about to be written beside the cached ones
}
