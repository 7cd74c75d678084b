// AdaFactor over one tensor, without ever storing U.  Numbers in brackets: adafactor.py.
//
// Sums run in floats over short stretches and in doubles beyond them, in an order that does not
// depend on the number of threads.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { GRAIN = 1 << 16 };               // fewer elements are not worth a second thread
enum { LANES = 16, STRETCH = 4096 };    // elements whose sum is taken in floats, in lanes
enum { AT_ONCE = 4096 };                // such sums on the stack, which may be small in a thread
enum { ROWS = 64 };                     // rows whose column sums are taken in floats
enum { BAND = 256, BANDS = 16 };        // rows of a band, at least; bands of a matrix, at most

static const float TINY = 1.17549435e-38f;  // the smallest normal float

double sum_of_squares(const float *x, int64_t n);

typedef struct {           // eight doubles, written by Python
    double fresh;          // 1 − β̂_t
    double eps1, bound;    // ε1; gradients beyond ±bound count as ±bound
    double threshold;      // d
    double rate, floor;    // ρ_t; ε2, or negative if steps are not relative to RMS(X)
    double decay, fresh1;  // ρ_t λ; 1 − β1
} Options;

typedef struct {
    float shrink, alpha, keep, fresh1;  // 1 / max(1, RMS(U)/d), α_t, 1 − ρ_t λ, 1 − β1
} Move;

static Move move_of(const float *x, int64_t n, double squares_of_u, const Options *o) {
    double excess = sqrt(squares_of_u / n) / o->threshold;
    double rms = o->floor < 0 ? 1 : sqrt(sum_of_squares(x, n) / n);
    Move k = {1, o->rate * (rms < o->floor ? o->floor : rms), 1 - o->decay, o->fresh1};  // (7)
    if (!(excess <= 1)) k.shrink = 1 / excess;  // (6)
    return k;
}

// NaN stays NaN; in this order both are a single instruction.
static inline float at_least(float v, float least) { return least > v ? least : v; }
static inline float within(float g, float bound) {
    return at_least(bound < g ? bound : g, -bound);
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The second moment of n ≤ STRETCH elements; returns the sum of U².
static double full_squares(const float *restrict g, float *restrict v, int64_t n,
                           float fresh, float eps1, float bound) {
    float lanes[LANES] = {0};
    double sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            float y = within(g[i + k], bound), s = y * y;
            float w = v[i + k] + fresh * (s + eps1 - v[i + k]);  // (4)
            v[i + k] = w;
            lanes[k] += s / at_least(w, TINY);
        }
    for (; i < n; i++) {
        float y = within(g[i], bound), s = y * y;
        v[i] += fresh * (s + eps1 - v[i]);
        sum += s / at_least(v[i], TINY);
    }
    for (int k = 0; k < LANES; k++) sum += lanes[k];
    return sum;
}

static void full_move(float *restrict x, const float *restrict g, const float *restrict v,
                      float *restrict m, int64_t n, float bound, Move k) {
    if (m == NULL) {
        for (int64_t i = 0; i < n; i++) {
            float u = within(g[i], bound) / sqrtf(at_least(v[i], TINY));  // (5)
            x[i] = k.keep * x[i] - k.alpha * (k.shrink * u);              // (9)
        }
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        float u = within(g[i], bound) / sqrtf(at_least(v[i], TINY));
        m[i] += k.fresh1 * (k.shrink * u - m[i]);  // (8)
        x[i] = k.keep * x[i] - k.alpha * m[i];
    }
}

// Without factors; m may be NULL.
void adafactor_full(float *x, const float *g, float *v, float *m, int64_t n, const Options *o) {
    int64_t stretches = (n + STRETCH - 1) / STRETCH;
    double sums[AT_ONCE], total = 0;
    for (int64_t from = 0; from < stretches; from += AT_ONCE) {
        int64_t to = smaller(from + AT_ONCE, stretches);
        #pragma omp parallel for if (n > GRAIN)
        for (int64_t b = from; b < to; b++) {
            int64_t i = b * STRETCH, size = smaller(STRETCH, n - i);
            sums[b - from] = full_squares(g + i, v + i, size, o->fresh, o->eps1, o->bound);
        }
        for (int64_t b = from; b < to; b++) total += sums[b - from];
    }
    Move k = move_of(x, n, total, o);
    #pragma omp parallel for if (n > GRAIN)
    for (int64_t b = 0; b < stretches; b++) {
        int64_t i = b * STRETCH, size = smaller(STRETCH, n - i);
        full_move(x + i, g + i, v + i, m ? m + i : NULL, size, o->bound, k);
    }
}

// Adds the squares of a row to the sums of the columns; returns their own sum.
static double row_squares(const float *restrict g, int64_t n, float bound, float *restrict sums) {
    double sum = 0;
    for (int64_t first = 0; first < n; first += STRETCH) {
        int64_t last = smaller(first + STRETCH, n), j = first;
        float lanes[LANES] = {0};
        for (; j + LANES <= last; j += LANES)
            for (int k = 0; k < LANES; k++) {
                float y = within(g[j + k], bound);
                lanes[k] += y * y;
                sums[j + k] += y * y;
            }
        for (; j < last; j++) {
            float y = within(g[j], bound);
            sum += y * y;
            sums[j] += y * y;
        }
        for (int k = 0; k < LANES; k++) sum += lanes[k];
    }
    return sum;
}

// The sum of U² over a row; r and c are 1/√ of the two factors.
static double row_of_u(const float *restrict g, int64_t n, float bound, float r,
                       const float *restrict c) {
    double sum = 0;
    for (int64_t first = 0; first < n; first += STRETCH) {
        int64_t last = smaller(first + STRETCH, n), j = first;
        float lanes[LANES] = {0};
        for (; j + LANES <= last; j += LANES)
            for (int k = 0; k < LANES; k++) {
                float u = within(g[j + k], bound) * c[j + k] * r;
                lanes[k] += u * u;
            }
        for (; j < last; j++) {
            float u = within(g[j], bound) * c[j] * r;
            sum += u * u;
        }
        for (int k = 0; k < LANES; k++) sum += lanes[k];
    }
    return sum;
}

static void row_move(float *restrict x, const float *restrict g, float *restrict m, int64_t n,
                     float bound, float r, const float *restrict c, Move k) {
    if (m == NULL) {
        for (int64_t j = 0; j < n; j++) {
            float u = within(g[j], bound) * c[j] * r;         // (5)
            x[j] = k.keep * x[j] - k.alpha * (k.shrink * u);  // (9)
        }
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        float u = within(g[j], bound) * c[j] * r;
        m[j] += k.fresh1 * (k.shrink * u - m[j]);  // (8)
        x[j] = k.keep * x[j] - k.alpha * m[j];
    }
}

static float row_factor(float r, double mean) {
    double ratio = r / mean;
    return 1 / sqrt(ratio < TINY ? TINY : ratio);
}

static void column_factors(const float *col, int64_t n, float *c) {
    for (int64_t j = 0; j < n; j++) c[j] = 1 / sqrtf(at_least(col[j], TINY));
}

// (2) and (3) for one matrix of rows × columns, cut into bands of rows; returns the mean of R.
static double average(const float *g, float *row, float *col, int64_t rows, int64_t columns,
                      int64_t band, double *of_bands, float *few, const Options *o) {
    int64_t bands = (rows + band - 1) / band;
    #pragma omp parallel for if (rows * columns > GRAIN)
    for (int64_t b = 0; b < bands; b++) {
        int64_t last = smaller((b + 1) * band, rows);
        double *exact = of_bands + b * columns;
        float *some = few + b * columns;
        memset(exact, 0, columns * sizeof *exact);
        for (int64_t first = b * band; first < last; first += ROWS) {
            memset(some, 0, columns * sizeof *some);
            for (int64_t i = first; i < smaller(first + ROWS, last); i++) {
                double s = row_squares(g + i * columns, columns, o->bound, some);
                row[i] += o->fresh * (s / columns + o->eps1 - row[i]);  // (2)
            }
            for (int64_t j = 0; j < columns; j++) exact[j] += some[j];
        }
    }
    for (int64_t b = 1; b < bands; b++)
        for (int64_t j = 0; j < columns; j++) of_bands[j] += of_bands[b * columns + j];
    for (int64_t j = 0; j < columns; j++)
        col[j] += o->fresh * (of_bands[j] / rows + o->eps1 - col[j]);  // (3)
    double mean = 0;
    for (int64_t i = 0; i < rows; i++) mean += row[i];
    return mean / rows < TINY ? TINY : mean / rows;
}

// With factors: `matrices` of rows × columns behind one another; `row` and `col` are the averages
// over columns and over rows; m may be NULL.  Returns 1 if there is no memory, else 0.
int adafactor_factored(float *x, const float *g, float *row, float *col, float *m,
                       int64_t matrices, int64_t rows, int64_t columns, const Options *o) {
    int64_t size = rows * columns, n = matrices * size, band = (rows + BANDS - 1) / BANDS;
    if (band < BAND) band = BAND;
    int64_t bands = (rows + band - 1) / band;
    double *memory = malloc((bands * columns + matrices + bands) * sizeof(double));
    float *few = malloc((bands + 1) * columns * sizeof(float));
    if (memory == NULL || few == NULL) {
        free(memory);
        free(few);
        return 1;
    }
    double *means = memory + bands * columns, *sums = means + matrices, total = 0;
    float *c = few + bands * columns;
    for (int64_t e = 0; e < matrices; e++) {
        const float *G = g + e * size;
        float *R = row + e * rows, *C = col + e * columns;
        double mean = means[e] = average(G, R, C, rows, columns, band, memory, few, o);
        column_factors(C, columns, c);
        #pragma omp parallel for if (size > GRAIN)
        for (int64_t b = 0; b < bands; b++) {
            sums[b] = 0;
            for (int64_t i = b * band; i < smaller((b + 1) * band, rows); i++)
                sums[b] += row_of_u(G + i * columns, columns, o->bound, row_factor(R[i], mean), c);
        }
        for (int64_t b = 0; b < bands; b++) total += sums[b];
    }
    Move k = move_of(x, n, total, o);
    for (int64_t e = 0; e < matrices; e++) {
        const float *R = row + e * rows;
        double mean = means[e];
        column_factors(col + e * columns, columns, c);
        #pragma omp parallel for if (size > GRAIN)
        for (int64_t i = 0; i < rows; i++) {
            int64_t at = e * size + i * columns;
            float r = row_factor(R[i], mean);
            row_move(x + at, g + at, m ? m + at : NULL, columns, o->bound, r, c, k);
        }
    }
    free(memory);
    free(few);
    return 0;
}
