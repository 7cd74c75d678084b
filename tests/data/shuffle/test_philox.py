"""Keys: numpy's Philox is the judge."""

import numpy as np
import pytest

from kexue.data.shuffle import loops as module
from kexue.data.shuffle.arrow_loops import ArrowLoops
from kexue.data.shuffle.philox import PART, buckets_of, philox_keys
from kexue.native import native_function
from naive.shuffle import key

NUMBERS = [0, 1, 2, 3, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63, 2**64 - 2, 2**64 - 1]
SEEDS = [0, 1, 7, 2**32, 2**63, 2**64 - 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_are_the_first_two_words_of_numpys_philox(seed):
    keys = philox_keys(np.array(NUMBERS, np.uint64), seed)
    assert [tuple(map(int, pair)) for pair in keys] == [key(seed, number) for number in NUMBERS]


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_in_c_are_the_same(seed):
    function = native_function(module.__file__, "keys", "xnnnx")
    if function is None:
        pytest.skip("no C compiler")
    numbers = np.array(NUMBERS, np.uint64)
    given, counted = np.empty((len(numbers), 2), np.uint64), np.empty((4, 2), np.uint64)
    function(module.at(numbers), 0, len(numbers), module.signed(seed), module.at(given))
    np.testing.assert_array_equal(given, philox_keys(numbers, seed))
    function(None, module.signed(2**64 - 3), 4, module.signed(seed), module.at(counted))
    wrapped = np.array([2**64 - 3, 2**64 - 2, 2**64 - 1, 0], np.uint64)
    np.testing.assert_array_equal(counted, philox_keys(wrapped, seed))


def test_many_numbers_are_worked_off_in_parts_with_the_same_result():
    numbers = np.arange(2 * PART + 5, dtype=np.uint64)
    whole = philox_keys(numbers, 3)
    for first in (0, 1, PART - 1, PART, 2 * PART + 4):
        np.testing.assert_array_equal(whole[first:][:3], philox_keys(numbers[first:][:3], 3))


def test_no_numbers_have_no_keys():
    assert philox_keys(np.empty(0, np.uint64), 1).shape == (0, 2)


@pytest.mark.parametrize("levels", [[1], [2], [3, 5], [17, 1, 1000], [65536, 65536, 65536]])
def test_buckets_of_all_levels_together_are_intervals_of_the_key(levels):
    keys = np.sort(np.random.Generator(np.random.PCG64(1)).integers(0, 2**64, 5000, np.uint64))
    numbers = [0] * len(keys)
    for depth in range(len(levels)):
        bucket = buckets_of(keys, np.array(levels[: depth + 1], np.uint64)).tolist()
        assert max(bucket) < levels[depth]
        numbers = [n * levels[depth] + b for n, b in zip(numbers, bucket, strict=True)]
    size = int(np.prod([int(level) for level in levels], dtype=object))
    # the whole part of k K_0 K_1 … / 2^64, but for what is carried: never out of order
    assert numbers == sorted(numbers)
    assert numbers == [int(k) * size >> 64 for k in keys]


def test_a_bucket_of_the_arrow_loops_is_that_of_the_formula():
    lengths = np.ones(1000, np.uint32)
    block = np.full(1000, 10, np.uint8)
    out, numbers = np.empty(1000, np.uint8), np.empty(1000, np.uint64)
    count, taken, _ = ArrowLoops().scatter(
        block, lengths, 5, 9, np.array([4, 3], np.uint64), out, numbers
    )
    at = 0
    for b in range(3):
        for number in numbers[at : at + count[b]].tolist():
            assert (key(9, number)[0] * 4 % 2**64) * 3 >> 64 == b
        at += int(count[b])
    assert at == 1000 == taken.sum()
