"""Rounding at random is right on average, and never leaves the two neighbours."""

import math

import pytest
import torch

from kexue.optim.rounding import round_stochastically_

HALVES = (torch.bfloat16, torch.float16)
each = pytest.mark.parametrize("dtype", HALVES)


def rounded(values, dtype, seed=0):
    source = torch.as_tensor(values, dtype=torch.float32)
    target = torch.empty(source.shape, dtype=dtype)
    return round_stochastically_(target, source, torch.Generator().manual_seed(seed))


def all_finite_numbers(dtype):
    """Every number of the dtype that is finite, in order, as float32."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    return every[every.isfinite()].unique()  # −0 and 0 count once


@each
def test_every_number_of_the_dtype_stays_what_it_is(dtype):
    exact = all_finite_numbers(dtype)
    for seed in range(3):
        assert torch.equal(rounded(exact, dtype, seed).float(), exact)


@each
def test_the_sign_of_zero_stays(dtype):
    found = rounded([0.0, -0.0], dtype)
    assert found.tolist() == [0, 0]
    assert [math.copysign(1, v) for v in found.tolist()] == [1, -1]


@each
@pytest.mark.parametrize("share", [0.0625, 0.25, 0.5, 0.9375])
def test_between_any_two_neighbours_each_is_drawn_with_its_share(dtype, share):
    """At all magnitudes: subnormal, normal, across the powers of two, across zero."""
    numbers = all_finite_numbers(dtype)
    down, up = numbers[:-1].double(), numbers[1:].double()
    source = (down + share * (up - down)).float()
    representable = (source.double() - down) == share * (up - down)  # float32 ends as bfloat16 does
    down, up, source = down[representable], up[representable], source[representable]
    assert len(source) > 60_000
    draws = 40
    ups = torch.zeros(len(source))
    for seed in range(draws):
        found = rounded(source, dtype, seed).double()
        assert ((found == down) | (found == up)).all()
        ups += found == up
    assert (
        abs(ups.mean().item() / draws - share)
        < 5 * (share * (1 - share) / ups.numel() / draws) ** 0.5
    )
    for part in ups.split(2048):  # by magnitude
        error = (share * (1 - share) / part.numel() / draws) ** 0.5
        assert abs(part.mean().item() / draws - share) < 5 * error


@each
@pytest.mark.parametrize("value", [1.001, -3.1415927, 1e-3, 1e-7, 6e-8, 65503.0, 1e-5])
def test_the_mean_is_the_number_itself(dtype, value):
    count = 200_000
    found = rounded(torch.full((count,), value), dtype).double()
    exact = torch.tensor(value, dtype=torch.float32).double()
    neighbours = found.unique()
    assert len(neighbours) <= 2
    error = (neighbours[-1] - neighbours[0]) / 2 / count**0.5
    assert abs(found.mean() - exact) <= 5 * error


@each
def test_what_is_no_finite_number_is_rounded_as_torch_does(dtype):
    largest = torch.finfo(dtype).max
    values = torch.tensor([math.inf, -math.inf, math.nan, 3.4e38, -3.4e38, largest, -largest])
    for seed in range(5):
        found = rounded(values, dtype, seed)
        assert torch.equal(found[:2], values[:2].to(dtype))
        assert found[2].isnan()
        assert torch.equal(found[3:], values[3:].to(dtype))


@each
def test_just_below_the_largest_number_nothing_becomes_infinite(dtype):
    largest = torch.finfo(dtype).max
    below = all_finite_numbers(dtype)[-2].item()
    found = rounded(torch.full((1000,), (largest + below) / 2), dtype).float()
    assert set(found.tolist()) == {largest, below}


@each
def test_the_smallest_float32_numbers_do_not_vanish_on_average(dtype):
    """Half-way to the smallest subnormal half the draws are that number, of either sign."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for sign in (1, -1):
        found = rounded(torch.full((10_000,), sign * smallest / 2), dtype).float()
        assert set(found.tolist()) == {0.0, sign * smallest}
        assert abs((found != 0).double().mean().item() - 0.5) < 0.025


@each
def test_the_same_seed_gives_the_same_bits(dtype):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(9))
    assert torch.equal(rounded(values, dtype, 1), rounded(values, dtype, 1))
    assert not torch.equal(rounded(values, dtype, 1), rounded(values, dtype, 2))


@each
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 4)])
def test_any_shape_is_written_into_the_target(dtype, shape):
    target = torch.full(shape, 7.0, dtype=dtype)
    source = torch.ones(shape)
    assert round_stochastically_(target, source) is target
    assert torch.equal(target, torch.ones(shape, dtype=dtype))


def test_views_with_gaps_are_read_and_written_in_place():
    source = torch.arange(12.0).view(3, 4).T
    whole = torch.zeros(4, 6, dtype=torch.bfloat16)
    round_stochastically_(whole[:, ::2], source)
    assert torch.equal(whole[:, ::2].float(), source)
    assert not whole[:, 1::2].any()


@pytest.mark.parametrize(
    ("target", "source"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float64),
        (torch.bfloat16, torch.bfloat16),
        (torch.float8_e4m3fn, torch.float32),
    ],
)
def test_other_pairs_of_dtypes_are_refused(target, source):
    with pytest.raises(TypeError, match=f"got {source} and {target}"):
        round_stochastically_(torch.zeros(2).to(target), torch.zeros(2, dtype=source))
