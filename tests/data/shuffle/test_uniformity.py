"""Every order is equally likely, through buckets as in memory."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from kexue.data.shuffle import shuffle_lines
from kexue.data.shuffle.philox import philox_keys


def orders_in_memory(n, runs):
    """Orders for seeds 0, 1, …, from the keys alone."""
    numbers = np.arange(n, dtype=np.uint64)
    return [tuple(np.lexsort(philox_keys(numbers, seed).T[::-1]).tolist()) for seed in range(runs)]


def chi_square_fits(orders, n):
    """Neither too far from equal counts nor too near, at 1e-6 each."""
    counts = dict.fromkeys(itertools.permutations(range(n)), 0)
    for order in orders:
        counts[order] += 1
    found = np.array(list(counts.values()))
    expected = len(orders) / math.factorial(n)
    chi_square = float(((found - expected) ** 2 / expected).sum())
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], math.factorial(n) - 1)
    assert low < chi_square < high, (chi_square, counts)


@pytest.mark.parametrize("n", [3, 4])
def test_all_orders_of_the_keys_are_equally_likely(n):
    chi_square_fits(orders_in_memory(n, 6000), n)


@pytest.mark.parametrize(("n", "buckets"), [(3, 3), (4, 5)])
def test_all_orders_come_out_of_several_buckets_equally_often(n, buckets, tmp_path):
    (tmp_path / "in").write_bytes(b"".join(b"%d\n" % i for i in range(n)))
    orders = []
    for seed in range(400):
        shuffle_lines(
            tmp_path / "in",
            tmp_path / "out",
            seed=seed,
            buckets=buckets,
            memory="4GB",
            threads=1,
            progress=False,
            overwrite=True,
        )
        orders.append(tuple(map(int, (tmp_path / "out").read_bytes().split())))
    assert orders == orders_in_memory(n, 400)
    chi_square_fits(orders, n)


def cycles(order):
    """Cycles of a permutation."""
    seen, count = np.zeros(len(order), bool), 0
    for start in range(len(order)):
        if not seen[start]:
            count += 1
            while not seen[start]:
                seen[start] = True
                start = order[start]
    return count


def inversions(order):
    """Pairs in the wrong order, counted place by place."""
    return sum(int((order[:j] > order[j]).sum()) for j in range(len(order)))


def test_moments_of_a_thousand_records_are_those_of_a_uniform_order():
    n, runs = 1000, 400
    orders = [np.array(order) for order in orders_in_memory(n, runs)]
    harmonic = sum(1 / j for j in range(1, n + 1))
    assert harmonic == pytest.approx(7.485, abs=5e-4)
    squares = sum(1 / j**2 for j in range(1, n + 1))
    fixed = [int((order == np.arange(n)).sum()) for order in orders]
    for found, mean, variance in (
        (fixed, 1.0, 1.0),
        ([cycles(order) for order in orders], harmonic, harmonic - squares),
        (
            [inversions(order) for order in orders],
            n * (n - 1) / 4,
            n * (n - 1) * (2 * n + 5) / 72,
        ),
    ):
        assert abs(np.mean(found) - mean) < 5 * math.sqrt(variance / runs)  # 5 sd: 6e-7
        assert 0.6 < np.var(found) / variance < 1.5


def test_neighbours_come_from_one_chunk_as_often_as_chance_says(tmp_path):
    """18 chunks: 1 / 18, where the article's own two stages give 1 / 18²."""
    n, chunks = 36_000, 18
    order = np.lexsort(philox_keys(np.arange(n, dtype=np.uint64), 4).T[::-1])
    chunk = order // (n // chunks)
    share = float((chunk[1:] == chunk[:-1]).mean())
    expected = (n // chunks - 1) / (n - 1)
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)
    windows = (chunk.reshape(-1, 360) == 3).sum(1)
    p = 1 / chunks
    variance = 360 * p * (1 - p) * (n - 360) / (n - 1)
    assert variance == pytest.approx(18.9 * (n - 360) / (n - 1), rel=2e-3)
    assert 0.4 < windows.var() / variance < 1.9  # the article's own way: 0
