"""A second, slow implementation of every static rope scaling method: the witness for yarn_gguf/rope.

It is plain float64 Python, one frequency at a time. Its sources are the YaRN paper (arXiv 2309.00071, whose
equation numbers it uses), the code released with it (jquesnelle/yarn), Meta's Llama 3.1 reference code
(llama_models, `apply_scaling`) and the LongRoPE paper (arXiv 2402.13753). It must not import yarn_gguf: two
formulas that share a line share its mistakes.

Every `*_frequencies` returns a list of d/2 floats, radians per position. Arguments: d rotary dimensions of a
head, b base (rope_theta), context the paper's L in tokens, s scale factor.
"""

import math


def theta(i, d, b):
    """theta_i = b^(-2i/d) for i = 0 .. d/2-1 (the paper's theta_d = b^(-2d/|D|): its |D| is our d)."""
    return math.exp(-2 * i / d * math.log(b))


def wavelength(i, d, b):
    """lambda_i = 2 pi / theta_i = 2 pi b^(2i/d), in tokens: Eq. 13."""
    return 2 * math.pi * b ** (2 * i / d)


def none_frequencies(d, b):
    """Plain RoPE: h(theta_i) = theta_i."""
    return [theta(i, d, b) for i in range(d // 2)]


def linear_frequencies(d, b, s):
    """Position interpolation, g(m) = m/s (Eq. 10). Dividing a position by s divides the frequency by s."""
    return [theta(i, d, b) / s for i in range(d // 2)]


def ntk_frequencies(d, b, s):
    """NTK-aware: b' = b s^(|D|/(|D|-2)), h(theta_i) = b'^(-2i/|D|): Eq. 14 to 16.

    b'^(-2i/d) = theta_i s^(-2i/(d-2)): the last frequency, i = d/2-1, is divided by s, and the first is kept.
    """
    return [theta(i, d, b) * math.exp(-2 * i / (d - 2) * math.log(s)) for i in range(d // 2)]


def rotations(i, d, b, context):
    """r(i) = L / lambda_i: the turns of dimension i within the original context, Eq. 17."""
    return context / wavelength(i, d, b)


def rotations_ramp(i, d, b, context, alpha=1.0, beta=32.0):
    """gamma(r) of Eq. 18: 0 below alpha turns, 1 above beta turns, linear in r between."""
    r = rotations(i, d, b, context)
    if r < alpha:
        return 0.0
    if r > beta:
        return 1.0
    return (r - alpha) / (beta - alpha)


def index_of_rotations(n, d, b, context):
    """c(n): the fractional i at which r(i) = n, that is L b^(-2i/d) / (2 pi) = n solved for i."""
    return d / 2 * (math.log(context) - math.log(2 * math.pi * n)) / math.log(b)


def index_ramp(i, d, b, context, beta_fast=32.0, beta_slow=1.0, truncate=True):
    """gamma of the released code: 1 up to dimension `low`, 0 from `high` on, linear in i between.

    Source: jquesnelle/yarn, scaled_rope/LlamaYaRNScaledRotaryEmbedding.py. find_correction_range rounds
    outwards and clamps to 0 and d-1. linear_ramp_mask widens an empty ramp by 0.001.
    """
    low = index_of_rotations(beta_fast, d, b, context)
    high = index_of_rotations(beta_slow, d, b, context)
    if truncate:
        low = math.floor(low)
        high = math.ceil(high)
    if low < 0:
        low = 0
    if high > d - 1:
        high = d - 1
    if low == high:
        high = high + 0.001
    along = (i - low) / (high - low)
    if along < 0:
        along = 0.0
    if along > 1:
        along = 1.0
    return 1.0 - along


def by_parts_frequencies(d, b, s, context, ramp, **ramp_arguments):
    """NTK-by-parts, h(theta_i) = (1 - gamma) theta_i / s + gamma theta_i: Eq. 19, 20. YaRN uses them, too.

    `ramp` is index_ramp or rotations_ramp.
    """
    frequencies = []
    for i in range(d // 2):
        gamma = ramp(i, d, b, context, **ramp_arguments)
        frequencies.append((1 - gamma) * theta(i, d, b) / s + gamma * theta(i, d, b))
    return frequencies


def llama3_frequencies(d, b, s, context, low_freq_factor, high_freq_factor):
    """Llama 3.1: three cases by wavelength, from `apply_scaling` in Meta's reference code."""
    low_freq_wavelen = context / low_freq_factor
    high_freq_wavelen = context / high_freq_factor
    frequencies = []
    for i in range(d // 2):
        freq = theta(i, d, b)
        wavelen = 2 * math.pi / freq
        if wavelen < high_freq_wavelen:
            frequencies.append(freq)
        elif wavelen > low_freq_wavelen:
            frequencies.append(freq / s)
        else:
            smooth = (context / wavelen - low_freq_factor) / (high_freq_factor - low_freq_factor)
            frequencies.append((1 - smooth) * freq / s + smooth * freq)
    return frequencies


def longrope_frequencies(d, b, context, short_factor, long_factor, seq_len):
    """LongRoPE: theta_i divided by a searched factor of its own. The long list is for texts beyond L."""
    factors = long_factor if seq_len > context else short_factor
    return [theta(i, d, b) / factors[i] for i in range(d // 2)]


# Temperatures: sqrt(1/t), which multiplies both q and k. The logits get its square.


def yarn_temperature(s):
    """sqrt(1/t) = 0.1 ln(s) + 1: Eq. 22; 1 for s <= 1."""
    return 0.1 * math.log(s) + 1 if s > 1 else 1.0


def deepseek_temperature(s, mscale, mscale_all_dim):
    """DeepSeek-V2/V3's modeling code: yarn_get_mscale(s, mscale) / yarn_get_mscale(s, mscale_all_dim)."""

    def yarn_get_mscale(scale, m):
        if scale <= 1:
            return 1.0
        return 0.1 * m * math.log(scale) + 1.0

    return yarn_get_mscale(s, mscale) / yarn_get_mscale(s, mscale_all_dim)


def longrope_temperature(s, context):
    """sqrt(1 + ln(s)/ln(L)): Phi-3's released code, Phi3LongRoPEScaledRotaryEmbedding; 1 for s <= 1."""
    return math.sqrt(1 + math.log(s) / math.log(context)) if s > 1 else 1.0


def ggml_total_temperature(attn_factor, freq_scale, ext_factor):
    """mscale, which ggml's rope_yarn (ggml/src/ggml-cpu/ops.cpp) computes from `attn_factor`."""
    mscale = attn_factor
    if ext_factor != 0.0:
        mscale *= 1.0 + 0.1 * math.log(1.0 / freq_scale)
    return mscale
