r"""Keys of records: Philox4x64-10, a random number that is a function of its number alone (S09).

    (k, t) = first two words of Philox4x64-10(counter = i, key = seed)                          (1)
    x_0 = k,   bucket_j = ⌊x_j K_j / 2^64⌋,   x_(j+1) = x_j K_j mod 2^64                        (2)

Record i of the input is number i in any run, so the shuffled order, by k and among equals by t,
depends on the seed and the input alone: not on memory, threads, blocks or files. A bucket is an
interval of k, so sorting inside the buckets sorts the whole.

The same in C: `lines.c`. Source: Salmon et al. 2011, doi 10.1145/2063384.2063405.
"""

from typing import Any

import numpy as np

__all__ = ["buckets_of", "philox_keys"]

Words = np.ndarray[Any, np.dtype[np.uint64]]

MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
PART = 1 << 15
HALF, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def philox_keys(numbers: Words, seed: int) -> Words:
    """Key and tie-breaker of each record: (1).

    Args:
        numbers: of the records, counted from 0.
        seed: 0 ≤ seed < 2^64.

    Returns:
        Two words per record, shape (n, 2).

    Example:
        >>> philox_keys(np.array([1], np.uint64), seed=7)[0, 0]
        np.uint64(16086915834549238692)
    """
    numbers = np.asarray(numbers, np.uint64)
    keys = np.empty((len(numbers), 2), np.uint64)
    for start in range(0, len(numbers), PART):
        keys[start : start + PART] = rounds(numbers[start : start + PART], seed)
    return keys


def rounds(numbers: Words, seed: int) -> Words:
    """(1), for as many numbers as the cache holds."""
    c0, c1 = numbers.copy(), np.zeros_like(numbers)
    c2, c3 = np.zeros_like(numbers), np.zeros_like(numbers)
    key = [seed, 0]
    for _ in range(10):
        high0, low0 = product(MULTIPLIERS[0], c0)
        high1, low1 = product(MULTIPLIERS[1], c2)
        c0, c1 = high1 ^ c1 ^ np.uint64(key[0]), low1
        c2, c3 = high0 ^ c3 ^ np.uint64(key[1]), low0
        key = [(one + step) % (1 << 64) for one, step in zip(key, STEPS, strict=True)]
    return np.stack((c0, c1), axis=1)


def product(a: np.uint64 | Words, b: Words) -> tuple[Words, Words]:
    """High and low word of a product of words."""
    with np.errstate(over="ignore"):
        a_high, a_low, b_high, b_low = a >> HALF, a & LOW, b >> HALF, b & LOW
        low, middle = a_low * b_low, a_high * b_low
        carry = (low >> HALF) + (middle & LOW) + a_low * b_high
        return a_high * b_high + (middle >> HALF) + (carry >> HALF), a * b


def buckets_of(keys: Words, levels: Words) -> Words:
    """The bucket of each key on the last of the levels: (2).

    Args:
        keys: k of the records; they lie in one bucket of every level but the last.
        levels: K_0, K_1, …

    Example:
        >>> buckets_of(np.array([0, 2**63, 2**64 - 1], np.uint64), np.array([4], np.uint64))
        array([0, 2, 3], dtype=uint64)
    """
    for size in levels[:-1]:
        with np.errstate(over="ignore"):
            keys = keys * np.uint64(size)
    return product(np.uint64(levels[-1]), keys)[0]
