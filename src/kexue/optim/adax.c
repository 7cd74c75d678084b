// One pass of AdaX over a tensor: reads x, g, m, v; writes x, m and, unless frozen, v.

#include <float.h>
#include <math.h>
#include <stdint.h>

enum { GRAIN = 1 << 16 };

// `share` 0 says that v is frozen: the compiler then makes a loop that does not write it.
static inline __attribute__((always_inline)) void pass(
        float *restrict x, const float *restrict g, float *restrict m, float *restrict v,
        int64_t n, float step, float decay, float take, float share, float inside, float outside,
        const int frozen) {
    #pragma omp parallel for simd if (parallel : n > GRAIN)
    for (int64_t i = 0; i < n; i++) {
        float mi = m[i] + take * (g[i] - m[i]);                    // (1)
        float vi = v[i];
        if (!frozen) {
            float square = g[i] * g[i];
            square = square > FLT_MAX ? FLT_MAX : square;
            vi = vi + share * (square - vi);                       // (3)
            v[i] = vi;
        }
        float scale = sqrtf(vi + inside) + outside;
        float u = mi / scale;
        u = scale == 0 ? 0 : u;                                    // 0/0, a weight without gradient
        x[i] = x[i] * (1 - decay) - step * u;                      // (4)
        m[i] = mi;
    }
}

void adax(float *restrict x, const float *restrict g, float *restrict m, float *restrict v,
          int64_t n, float step, float decay, float take, float share, float inside,
          float outside) {
    if (share > 0)
        pass(x, g, m, v, n, step, decay, take, share, inside, outside, 0);
    else
        pass(x, g, m, v, n, step, decay, take, share, inside, outside, 1);
}
