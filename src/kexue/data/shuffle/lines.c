// Records of a block of bytes: where they end, which key each has, and a copy of them by bucket.
//
// A record is its bytes with the delimiter behind them.  Record i of the whole input has the key
//
//     (k, t) = first two words of Philox4x64-10(counter = i, key = seed)                      (1)
//
// and the order of the output is that of (k, t).  A bucket is an interval of k: with K_0 buckets,
// then K_1 in each of them, and so on,
//
//     x_0 = k,   bucket_j = high word of x_j K_j,   x_(j+1) = low word of x_j K_j              (2)
//
// Philox: Salmon et al. 2011, doi 10.1145/2063384.2063405; the constants are the paper's.

#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>

typedef unsigned __int128 wide;

static inline void philox(uint64_t seed, uint64_t i, uint64_t *k, uint64_t *t) {
    const uint64_t M0 = 0xD2E7470EE14C6C93ull, M1 = 0xCA5A826395121157ull;
    const uint64_t W0 = 0x9E3779B97F4A7C15ull, W1 = 0xBB67AE8584CAA73Bull;
    uint64_t c0 = i, c1 = 0, c2 = 0, c3 = 0, key0 = seed, key1 = 0;
    for (int round = 0; round < 10; round++) {
        wide a = (wide)M0 * c0, b = (wide)M1 * c2;
        uint64_t next0 = (uint64_t)(b >> 64) ^ c1 ^ key0, next2 = (uint64_t)(a >> 64) ^ c3 ^ key1;
        c1 = (uint64_t)b, c3 = (uint64_t)a, c0 = next0, c2 = next2;
        key0 += W0, key1 += W1;
    }
    *k = c0, *t = c1;
}

// The keys of records first, first + 1, … or, where numbers are given, of those records: (1).
void keys(const uint64_t *numbers, uint64_t first, int64_t n, uint64_t seed, uint64_t *out) {
    for (int64_t j = 0; j < n; j++)
        philox(seed, numbers ? numbers[j] : first + j, out + 2 * j, out + 2 * j + 1);
}

// A 64-bit hash of a record, eight bytes at a time; sums of it over records do not depend on their
// order.
static inline uint64_t folded(uint64_t a, uint64_t b) {
    wide product = (wide)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t hash(const uint8_t *x, int64_t n) {
    uint64_t h = 0x9E3779B97F4A7C15ull ^ (uint64_t)n, g = h, word, other;
    for (; n >= 16; x += 16, n -= 16) {  // two chains, so that one waits for the other no more
        memcpy(&word, x, 8), memcpy(&other, x + 8, 8);
        h = folded(h ^ word, 0xA0761D6478BD642Full), g = folded(g ^ other, 0xE7037ED1A0B428DBull);
    }
    for (; n > 0; x += 8, n -= 8) {
        word = 0;
        memcpy(&word, x, n < 8 ? n : 8);
        h = folded(h ^ word, 0xA0761D6478BD642Full);
    }
    return folded(h ^ 0x8EBC6AF09C88C6E3ull, g ^ 0x589965CC75374CC3ull);
}

uint64_t hash_record(const uint8_t *x, int64_t n) { return hash(x, n); }

static inline const uint8_t *end_of(
    const uint8_t *x, const uint8_t *end, const uint8_t *delimiter, int64_t d
) {
    const uint8_t *found = d == 1 ? memchr(x, *delimiter, end - x)
                                  : memmem(x, end - x, delimiter, d);
    return found ? found + d : 0;
}

// Lengths of the whole records at the beginning of a block, delimiters included; at most `most`.
// Returns their number; `*used` is the number of bytes they take. `length` may be null.
int64_t scan(
    const uint8_t *block, int64_t n, const uint8_t *delimiter, int64_t d, uint32_t *length,
    int64_t most, int64_t *used
) {
    const uint8_t *x = block, *end = block + n, *next;
    int64_t lines = 0;
    while (lines < most && x < end && (next = end_of(x, end, delimiter, d))) {
        if (length) length[lines] = next - x;
        lines++, x = next;
    }
    *used = x - block;
    return lines;
}

// The records of a block in the order of their buckets, each bucket's in the order they came: (2).
// `numbers` are those of the records, or null for first, first + 1, …  `count` and `bytes` get the
// records and bytes of every bucket; `sum` of each grows by the hashes of its records.
void scatter(
    const uint8_t *block, const uint32_t *length, int64_t lines, const uint64_t *numbers,
    uint64_t first, uint64_t seed, const uint64_t *levels, int64_t depth, uint32_t *bucket,
    int64_t *count, int64_t *bytes, uint8_t *out, uint64_t *out_numbers, int64_t *place,
    uint64_t *sum
) {
    uint64_t K = levels[depth - 1], k, t;
    memset(count, 0, K * sizeof *count), memset(bytes, 0, K * sizeof *bytes);
    for (int64_t j = 0; j < lines; j++) {
        philox(seed, numbers ? numbers[j] : first + j, &k, &t);
        for (int64_t level = 0; level + 1 < depth; level++) k *= levels[level];
        uint32_t b = (uint32_t)(((wide)k * K) >> 64);
        bucket[j] = b, count[b]++, bytes[b] += length[j];
    }
    int64_t at = 0, slot = 0, *byte = place, *line = place + K;
    for (uint64_t b = 0; b < K; b++) {
        byte[b] = at, line[b] = slot;
        at += bytes[b], slot += count[b];
    }
    for (int64_t j = 0; j < lines; j++) {
        uint32_t b = bucket[j], n = length[j];
        memcpy(out + byte[b], block, n);
        sum[b] += hash(block, n);
        out_numbers[line[b]++] = numbers ? numbers[j] : first + j;
        byte[b] += n, block += n;
    }
}

// --- the order inside a bucket --------------------------------------------------------------------

typedef struct {
    uint64_t k, t, where;  // where: offset · 2²⁴ + length, all ones in the length if it is longer
} entry;

enum { LENGTH_BITS = 24 };
static const uint64_t LONG = (1u << LENGTH_BITS) - 1;

// Appends an entry for each of the next `lines` records of `data`, which begin at `offset`.
// Returns the bytes they take, or -1 if the data end before.
int64_t enter(
    const uint8_t *data, int64_t offset, int64_t n, const uint8_t *delimiter, int64_t d,
    const uint64_t *numbers, uint64_t first, int64_t lines, uint64_t seed, entry *out
) {
    const uint8_t *x = data + offset, *end = data + n;
    for (int64_t j = 0; j < lines; j++, out++) {
        const uint8_t *next = end_of(x, end, delimiter, d);
        if (!next) return -1;
        uint64_t size = next - x;
        philox(seed, numbers ? numbers[j] : first + j, &out->k, &out->t);
        out->where = (uint64_t)(x - data) << LENGTH_BITS | (size < LONG ? size : LONG);
        x = next;
    }
    return x - (data + offset);
}

static inline int before(const entry *a, const entry *b) {
    return a->k != b->k ? a->k < b->k : a->t < b->t;
}

// Moves entries, cycle by cycle and in place, into equal intervals of k between the least and the
// greatest.  `head` has room for 2 · intervals numbers; behind it, head[b] is where interval b ends.
static void spread(entry *x, int64_t n, int64_t intervals, int64_t *head) {
    uint64_t least = ~0ull, most = 0;
    for (int64_t j = 0; j < n; j++) {
        least = x[j].k < least ? x[j].k : least;
        most = x[j].k > most ? x[j].k : most;
    }
    wide range = (wide)(most - least) + 1;
    uint64_t scale = (uint64_t)((((wide)intervals << 64) - 1) / range);  // floor, so never beyond
    int64_t *tail = head + intervals;
    #define INTERVAL(e) ((int64_t)(((wide)((e).k - least) * scale) >> 64))
    memset(head, 0, 2 * intervals * sizeof *head);
    for (int64_t j = 0; j < n; j++) tail[INTERVAL(x[j])]++;
    int64_t sum = 0;
    for (int64_t b = 0; b < intervals; b++) head[b] = sum, sum += tail[b], tail[b] = sum;
    for (int64_t b = 0; b < intervals; b++)
        while (head[b] < tail[b]) {
            entry one = x[head[b]];
            for (int64_t c = INTERVAL(one); c != b; c = INTERVAL(one)) {
                entry other = x[head[c]];
                x[head[c]++] = one, one = other;
            }
            x[head[b]++] = one;
        }
    #undef INTERVAL
}

enum { MANY = 1 << 15, GROUPS = 1024 };  // entries beyond the cache are first cut into groups

// Sorts by (k, t).  The k are spread evenly, so a few records fall into each of n / 4 intervals;
// what is left is done by insertion.  `head` has room for n / 2 + 2 · GROUPS + 2 numbers.
void sort_entries(entry *x, int64_t n, int64_t *head) {
    if (n > MANY) {
        spread(x, n, GROUPS, head);
        for (int64_t b = 0, start = 0; b < GROUPS; start = head[b++])
            if (head[b] - start > 1 && head[b] - start < n)
                sort_entries(x + start, head[b] - start, head + 2 * GROUPS);
    } else if (n > 1) {
        spread(x, n, n / 4 + 1, head);
    }
    for (int64_t j = 1; j < n; j++) {
        entry one = x[j];
        int64_t to = j;
        for (; to > 0 && before(&one, x + to - 1); to--) x[to] = x[to - 1];
        x[to] = one;
    }
}

// Copies records in the order of their entries until `lines` are copied or `room` is full.
// Returns how many; `*written` is the number of bytes, `sum` grows by their hashes.
int64_t gather(
    const uint8_t *data, int64_t n, const uint8_t *delimiter, int64_t d, const entry *x,
    int64_t lines, uint8_t *out, int64_t room, int64_t *written, uint64_t *sum
) {
    enum { AHEAD = 12 };
    uint64_t total = 0;
    int64_t at = 0, j = 0;
    for (; j < lines; j++) {
        if (j + AHEAD < lines) {
            const uint8_t *soon = data + (x[j + AHEAD].where >> LENGTH_BITS);
            __builtin_prefetch(soon), __builtin_prefetch(soon + 64), __builtin_prefetch(soon + 128);
        }
        const uint8_t *record = data + (x[j].where >> LENGTH_BITS);
        int64_t size = x[j].where & LONG;
        if ((uint64_t)size == LONG) size = end_of(record, data + n, delimiter, d) - record;
        if (at + size > room) break;
        memcpy(out + at, record, size);
        total += hash(out + at, size);
        at += size;
    }
    *written = at;
    *sum += total;
    return j;
}
