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

// Sum of squares in double, the same for any number of threads: blocks of fixed size are added in
// their order.
double sum_of_squares(const float *x, int64_t n) {
    enum { BLOCK = 4096, LANES = 16 };
    int64_t blocks = (n + BLOCK - 1) / BLOCK;
    double sums[blocks > 0 ? blocks : 1];
    #pragma omp parallel for if (n > GRAIN)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * BLOCK, last = first + BLOCK < n ? first + BLOCK : n;
        float lanes[LANES] = {0};
        int64_t i = first;
        for (; i + LANES <= last; i += LANES)
            for (int j = 0; j < LANES; j++) lanes[j] += x[i + j] * x[i + j];
        double sum = 0;
        for (; i < last; i++) sum += (double)x[i] * x[i];
        for (int j = 0; j < LANES; j++) sum += lanes[j];
        sums[b] = sum;
    }
    double sum = 0;
    for (int64_t b = 0; b < blocks; b++) sum += sums[b];
    return sum;
}
