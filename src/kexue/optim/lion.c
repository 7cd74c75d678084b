// One pass of Lion over a tensor: reads x, g, m; writes x, m.

#include <stdint.h>

enum { GRAIN = 1 << 16 };

static inline float sign(float u) { return (float)(u > 0) - (float)(u < 0); }

void lion(float *restrict x, const float *restrict g, float *restrict m, int64_t n,
          float step, float decay, float take1, float take2) {
    #pragma omp parallel for simd if (parallel : n > GRAIN)
    for (int64_t i = 0; i < n; i++) {
        float u = m[i] + take1 * (g[i] - m[i]);      // (1)
        x[i] = x[i] * (1 - decay) - step * sign(u);  // (2)
        m[i] = m[i] + take2 * (g[i] - m[i]);         // (3)
    }
}
