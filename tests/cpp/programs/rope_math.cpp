// Prints magnitude and frequencies by rope-math.h, for tests/cpp/test_rope_op.py. Each line of standard input is a request:
//     method factor n_ctx_orig beta_fast beta_slow by_rotations truncate base n_dims
#include "rope-math.h"

#include <cstdio>

int main() {
    int method, by_rotations, truncate, n_dims;
    double factor, n_ctx_orig, beta_fast, beta_slow, base;
    while (scanf("%d %lf %lf %lf %lf %d %d %lf %d", &method, &factor, &n_ctx_orig, &beta_fast, &beta_slow,
                 &by_rotations, &truncate, &base, &n_dims) == 9) {
        rope_scaling s;
        s.method       = (rope_method)method;
        s.factor       = factor;
        s.n_ctx_orig   = n_ctx_orig;
        s.beta_fast    = beta_fast;
        s.beta_slow    = beta_slow;
        s.by_rotations = by_rotations;
        s.truncate     = truncate;
        printf("%.17g", rope_magnitude(s));
        for (double value : rope_inv_freq(s, base, n_dims)) {
            printf(" %.17g", value);
        }
        printf("\n");
    }
}
