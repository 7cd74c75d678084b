"""S09 in the lab: which orders can come out, and counts in windows."""

import random
import re
from collections import Counter
from fractions import Fraction
from itertools import permutations
from math import factorial
from xml.etree import ElementTree

import numpy as np
import pytest

from kexue.data.mixing import mixing_of
from kexue.lab import Verdict, s09_mixing, s09_orders
from kexue.lab.s09_orders import bucket_orders, distance, reachable, two_stage_labels
from naive.two_stage import naive_two_stages

PLAIN = [
    ((2, 2), 16, "0.3333333333"),
    ((3, 1), 12, "0.5000000000"),
    ((3, 3), 288, "0.6000000000"),
    ((2, 2, 2), 288, "0.6000000000"),
    ((4, 4), 9216, "0.7714285714"),
    ((4, 4, 1), 27648, "0.9238095238"),
    ((3, 2), 48, "0.6000000000"),
    ((2, 2, 1), 48, "0.6000000000"),
    ((4, 1), 48, "0.6000000000"),
    ((3, 3, 1), 864, "0.8285714286"),
]
REMEDIED = [
    ((3, 1), 24, "0.1666666667"),
    ((3, 2), 96, "0.2833333333"),
    ((2, 2, 1), 80, "0.3333333333"),
    ((4, 1), 120, "0.1500000000"),
    ((3, 3, 1), 2016, "0.6000000000"),
]


@pytest.mark.parametrize(("sizes", "orders", "far"), PLAIN)
def test_two_stages_reach_so_many_orders_and_are_so_far_from_uniform(sizes, orders, far):
    chances = two_stage_labels(sizes)
    assert sum(chances.values()) == 1
    assert reachable(chances, sizes) == orders
    assert f"{float(distance(chances, sizes)):.10f}" == far


@pytest.mark.parametrize(("sizes", "orders", "far"), REMEDIED)
def test_the_remedy_for_a_short_last_chunk_brings_it_nearer(sizes, orders, far):
    chances = two_stage_labels(sizes, remedy=True)
    assert sum(chances.values()) == 1
    assert reachable(chances, sizes) == orders
    assert f"{float(distance(chances, sizes)):.10f}" == far


@pytest.mark.parametrize("sizes", [sizes for sizes, *_ in PLAIN])
def test_all_orders_that_two_stages_reach_are_equally_likely(sizes):
    chances = two_stage_labels(sizes)
    assert len(set(chances.values())) == 1
    far = 1 - Fraction(reachable(chances, sizes), factorial(sum(sizes)))
    assert distance(chances, sizes) == far


def test_the_remedy_makes_places_of_the_short_chunk_nearly_uniform():
    def places(remedy):
        chances = two_stage_labels((3, 1), remedy)
        return [sum(p for row, p in chances.items() if row[place] == 1) for place in range(4)]

    assert places(False) == [Fraction(1, 2), Fraction(1, 2), 0, 0]
    assert places(True) == [Fraction(1, 6), Fraction(1, 3), Fraction(1, 3), Fraction(1, 6)]


@pytest.mark.parametrize(("lines", "buckets"), [(3, 3), (4, 2), (4, 3)])
def test_buckets_make_every_order_equally_likely(lines, buckets):
    chances = bucket_orders(lines, buckets)
    assert set(chances) == set(permutations(range(lines)))
    assert set(chances.values()) == {Fraction(1, factorial(lines))}


@pytest.mark.parametrize("remedy", [False, True])
def test_the_count_agrees_with_the_stages_done_line_by_line(remedy):
    rng, runs = random.Random(0), 20_000
    seen = Counter(
        tuple(line // 3 for line in naive_two_stages(range(5), 3, rng, remedy)) for _ in range(runs)
    )
    chances = two_stage_labels((3, 2), remedy)
    assert set(seen) == set(chances)
    for row, chance in chances.items():
        error = (float(chance) * (1 - float(chance)) / runs) ** 0.5
        assert abs(seen[row] / runs - chance) < 5 * error


def test_the_verdict_on_orders_follows_the_counts():
    sizes = s09_orders.SIZES + s09_orders.SHORT
    plain = {one: distance(two_stage_labels(one), one) for one in sizes}
    better = {one: distance(two_stage_labels(one, True), one) for one in s09_orders.SHORT}
    assert s09_orders.verdict(plain, better, Fraction(0)) is Verdict.HOLDS
    assert s09_orders.verdict(plain, plain, Fraction(0)) is Verdict.PARTLY
    assert s09_orders.verdict(plain | {(2, 2): Fraction(0)}, plain, Fraction(1)) is Verdict.FAILS


def test_the_experiment_on_orders_gives_the_worked_numbers():
    found = s09_orders.EXPERIMENT.run()
    assert found.verdict is Verdict.HOLDS
    assert found.numbers["chunks 4+4+1, two stages"] == "0.9238095238 (27,648 / 362,880)"
    assert found.numbers["4 lines in 2 buckets"] == "0.0000000000 (24 / 24)"
    assert set(found.names_zh) == set(found.numbers)
    assert len(pictures(found.figure)) == 1


@pytest.mark.parametrize(("lines", "size"), [(12, 4), (13, 4), (3, 4), (9, 3)])
def test_stages_on_numbers_are_the_stages_on_lines(lines, size):
    rng, naive = np.random.default_rng(0), random.Random(0)
    runs = 3000
    fast = Counter(tuple(s09_mixing.two_stages(lines, size, rng) // size) for _ in range(runs))
    slow = Counter(
        tuple(line // size for line in naive_two_stages(range(lines), size, naive))
        for _ in range(runs)
    )
    for place in range(lines):
        for chunk in range(-(-lines // size)):
            counts = [sum(n for row, n in c.items() if row[place] == chunk) for c in (fast, slow)]
            assert abs(counts[0] - counts[1]) < 5 * (2 * runs) ** 0.5


@pytest.mark.parametrize("lines", [1, 5, 40])
def test_every_method_gives_each_line_once(lines):
    rng = np.random.default_rng(0)
    for order in (
        s09_mixing.two_stages(lines, 7, rng),
        s09_mixing.buffered(lines, 7, rng),
        s09_mixing.by_keys(lines, 3),
    ):
        assert sorted(order.tolist()) == list(range(lines))


def test_a_line_leaves_a_buffer_no_earlier_than_its_room_before_its_place():
    order = s09_mixing.buffered(10_000, 100, np.random.default_rng(0))
    assert (order - np.arange(10_000)).max() < 100


def test_the_unit_of_the_variance_is_18_point_9():
    assert f"{s09_mixing.hypergeometric(18, 100_000, 360):.1f}" == "18.9"


def test_the_last_line_of_100001_comes_first_or_second():
    order = s09_mixing.two_stages(100_001, 100_000, np.random.default_rng(0))
    assert 100_000 in order[:2]


@pytest.fixture(scope="module")
def finding():
    return s09_mixing.EXPERIMENT.run()


def test_the_experiment_on_windows_gives_the_worked_numbers(finding):
    numbers = finding.numbers
    assert numbers["two stages: variance of counts"] == "0.0"
    assert float(numbers["random keys: variance of counts"]) == pytest.approx(18.9, abs=0.4)
    assert float(numbers["two stages: neighbours from one chunk"]) == pytest.approx(0.003, abs=3e-4)
    assert float(numbers["random keys: neighbours from one chunk"]) == pytest.approx(
        1 / 18, abs=1e-3
    )
    assert finding.verdict is Verdict.HOLDS
    assert set(finding.names_zh) == set(numbers)


def pictures(figure):
    return [ElementTree.fromstring(one) for one in re.findall(r"<svg.*?</svg>", figure, re.S)]


def test_the_pictures_are_two_of_counts_and_three_of_places(finding):
    assert len(pictures(finding.figure)) == 5


def test_the_verdict_on_windows_follows_the_numbers():
    rng, lines, size = np.random.default_rng(0), 18_000, 1000
    there = np.arange(lines)

    def mixing(order):
        return mixing_of(order, there, lines, window=360, chunks=18)

    stages, keys = (
        mixing(s09_mixing.two_stages(lines, size, rng)),
        mixing(s09_mixing.by_keys(lines, 1)),
    )
    buffer = mixing(s09_mixing.buffered(lines, 100, rng))
    verdict = s09_mixing.verdict
    assert verdict({"two stages": stages, "random keys": keys, "buffer": buffer}) is Verdict.HOLDS
    assert verdict({"two stages": keys, "random keys": keys, "buffer": buffer}) is Verdict.PARTLY
    assert verdict({"two stages": buffer, "random keys": buffer, "buffer": keys}) is Verdict.FAILS
