// What every optimizer asks of a gradient before it touches anything.

#include <stdint.h>
#include <string.h>

enum { GRAIN = 1 << 16 };  // fewer elements than this are not worth a second thread

// Whether no element is NaN or infinite: 1 or 0.  A float is neither iff not all bits of its
// exponent are set.
int all_finite(const float *x, int64_t n) {
    uint32_t worst = 0;
    #pragma omp parallel for reduction(max : worst) if (n > GRAIN)
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7f800000u;
        worst = bits > worst ? bits : worst;
    }
    return worst != 0x7f800000u;
}

static double block_of_squares(const float *x, int64_t n) {
    enum { LANES = 16 };
    float lanes[LANES] = {0};
    double sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] += x[i + j] * x[i + j];
    for (; i < n; i++) sum += (double)x[i] * x[i];
    for (int j = 0; j < LANES; j++) sum += lanes[j];
    return sum;
}

// Sum of squares in double, the same for any number of threads: blocks of fixed size are added in
// their order.  At most AT_ONCE sums wait on the stack, which may be small in a thread.
double sum_of_squares(const float *x, int64_t n) {
    enum { BLOCK = 4096, AT_ONCE = 4096 };
    int64_t blocks = (n + BLOCK - 1) / BLOCK;
    double sums[AT_ONCE], sum = 0;
    for (int64_t from = 0; from < blocks; from += AT_ONCE) {
        int64_t to = from + AT_ONCE < blocks ? from + AT_ONCE : blocks;
        #pragma omp parallel for if (n > GRAIN)
        for (int64_t b = from; b < to; b++) {
            int64_t i = b * BLOCK;
            sums[b - from] = block_of_squares(x + i, n - i < BLOCK ? n - i : BLOCK);
        }
        for (int64_t b = from; b < to; b++) sum += sums[b - from];
    }
    return sum;
}
