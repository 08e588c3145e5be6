// The device's path through rope-math.h, on the host, for tests/cpp/test_rope_op.py. Intrinsics are exact, and the rest is
// compiled with fast-math, as CUDA does. Each line of standard input is a request, "inv_freq factor position". The
// answer is cosine and sine. Factor 0 selects the path without a factor.
#include <cstdio>

#include "kernels_on_host/intrinsics.h"

#include "rope-math.h"

int main() {
    double inv_freq, factor;
    int32_t position;
    while (scanf("%lf %lf %d", &inv_freq, &factor, &position) == 3) {
        const uint64_t step = rope_phase_step(inv_freq);
        const double turns  = (double)step * 0x1p-64; // split into two floats as in ggml-rope-cuda.cu
        const float high    = (float)turns;
        const float rest    = (float)(turns - high);
        const int32_t phase = factor == 0.0 ? rope_phase(position, (uint32_t)step, (uint32_t)(step >> 32))
                                            : rope_phase_divided(position, high, rest, (float)factor);
        float cosine, sine;
        rope_cos_sin(phase, cosine, sine);
        printf("%.9g %.9g\n", cosine, sine);
    }
}
