// Tiger's loops: one pass over memory for what torch needs several for.

#include <math.h>
#include <stdint.h>

enum { GRAIN = 1 << 16, BLOCK = 4096, LANES = 16 };

// m takes its share of g and, if first is 1 and not 0, forgets: (1)
static inline float folded(float g, float m, float fade, float share, float first) {
    return m + fade * (share * g - first * m);
}

// x moves by the sign of m and decays: (2)
static inline float moved(float x, float m, float step, float decay) {
    return x * (1 - decay) - step * ((float)(m > 0) - (float)(m < 0));
}

static inline int any_nonzero(const float *g, int64_t n) {
    int found = 0;
    for (int64_t i = 0; i < n; i++) found |= g[i] != 0;
    return found;
}

// The step length of one row: (3), (4)
static double row_step(const float *x, int64_t n, double lr, double min_rms, double scale) {
    if (scale > 0) return lr * scale;
    double sum = 0;
    for (int64_t first = 0; first < n; first += BLOCK) {
        int64_t last = first + BLOCK < n ? first + BLOCK : n, i = first;
        float lanes[LANES] = {0};
        for (; i + LANES <= last; i += LANES)
            for (int j = 0; j < LANES; j++) lanes[j] += x[i + j] * x[i + j];
        for (; i < last; i++) sum += (double)x[i] * x[i];
        for (int j = 0; j < LANES; j++) sum += lanes[j];
    }
    double rms = sqrt(sum / (double)(n > 0 ? n : 1));
    return lr * (rms > min_rms ? rms : min_rms);
}

// A whole tensor.

void tiger(float *restrict x, const float *restrict g, float *restrict m, int64_t n,
           float fade, float step, float decay) {
    #pragma omp parallel for simd if (parallel : n > GRAIN)
    for (int64_t i = 0; i < n; i++) {
        m[i] = folded(g[i], m[i], fade, 1, 1);
        x[i] = moved(x[i], m[i], step, decay);
    }
}

void tiger_fold(const float *restrict g, float *restrict m, int64_t n,
                float fade, float share, float first) {
    #pragma omp parallel for simd if (parallel : n > GRAIN)
    for (int64_t i = 0; i < n; i++) m[i] = folded(g[i], m[i], fade, share, first);
}

void tiger_move(float *restrict x, const float *restrict m, int64_t n, float step, float decay) {
    #pragma omp parallel for simd if (parallel : n > GRAIN)
    for (int64_t i = 0; i < n; i++) x[i] = moved(x[i], m[i], step, decay);
}

// An embedding table of n rows, each `wide`; `lazy` leaves alone the rows without a gradient.

void tiger_rows(float *restrict x, const float *restrict g, float *restrict m, int64_t n,
                int64_t wide, int64_t lazy, float fade, double lr, double decay,
                double min_rms, double scale) {
    #pragma omp parallel for if (n * wide > GRAIN)
    for (int64_t r = 0; r < n; r++) {
        int64_t from = r * wide, to = from + wide;
        if (lazy && !any_nonzero(g + from, wide)) continue;
        double row = row_step(x + from, wide, lr, min_rms, scale);
        float step = (float)row, shrink = (float)(row * decay);
        for (int64_t i = from; i < to; i++) {
            m[i] = folded(g[i], m[i], fade, 1, 1);
            x[i] = moved(x[i], m[i], step, shrink);
        }
    }
}

void tiger_fold_rows(const float *restrict g, float *restrict m, uint8_t *restrict open, int64_t n,
                     int64_t wide, int64_t lazy, float fade, float share) {
    #pragma omp parallel for if (n * wide > GRAIN)
    for (int64_t r = 0; r < n; r++) {
        int64_t from = r * wide, to = from + wide;
        if (lazy && !any_nonzero(g + from, wide)) continue;
        float first = !open[r];
        for (int64_t i = from; i < to; i++) m[i] = folded(g[i], m[i], fade, share, first);
        open[r] = 1;
    }
}

void tiger_move_rows(float *restrict x, const float *restrict m, const uint8_t *restrict open,
                     int64_t n, int64_t wide, double lr, double decay, double min_rms,
                     double scale) {
    #pragma omp parallel for if (n * wide > GRAIN)
    for (int64_t r = 0; r < n; r++) {
        int64_t from = r * wide, to = from + wide;
        if (!open[r]) continue;
        double row = row_step(x + from, wide, lr, min_rms, scale);
        float step = (float)row, shrink = (float)(row * decay);
        for (int64_t i = from; i < to; i++) x[i] = moved(x[i], m[i], step, shrink);
    }
}
