"""Rotary position embedding: the claims of S17, sections 2 and 4, one test each."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue.nn import apply_rotary, rotary_angles
from naive.global_pointer import naive_rotate

# torch's own compiler uses what torch deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]


def vectors(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("base", [10000.0, 500.0])
def test_every_neighbouring_pair_is_turned_by_its_own_angle(base):
    x = vectors(5, 8)
    expected = torch.stack([naive_rotate(row, p, base) for p, row in enumerate(x)])
    torch.testing.assert_close(apply_rotary(x, base=base), expected, rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    shift=st.integers(-5000, 5000),
    half=st.integers(1, 8),
    start=st.integers(0, 60),
    end=st.integers(0, 60),
)
def test_the_inner_product_depends_on_the_distance_only(shift, half, start, end):
    q, k = vectors(1, 2 * half), vectors(1, 2 * half, seed=1)

    def product(by):
        m, n = torch.tensor([start + by]), torch.tensor([end + by])
        return (apply_rotary(q, m) * apply_rotary(k, n)).sum()

    torch.testing.assert_close(product(shift), product(0), rtol=0, atol=1e-9)


def test_lengths_are_kept():
    x = vectors(2, 3, 7, 16)
    torch.testing.assert_close(apply_rotary(x).norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0)


def test_position_zero_turns_nothing():
    x = vectors(2, 1, 6)
    assert torch.equal(apply_rotary(x), x)


def test_default_positions_count_from_zero():
    x = vectors(2, 5, 6)
    assert torch.equal(apply_rotary(x), apply_rotary(x, torch.arange(5)))


def test_positions_may_differ_per_example():
    x = vectors(2, 3, 5, 6)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 7, 2, 0, -1]])
    turned = apply_rotary(x, positions[:, None])
    for row in range(2):
        torch.testing.assert_close(turned[row], apply_rotary(x[row], positions[row]))


def test_angles_of_float64_vectors_are_float64():
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    turned = apply_rotary(x, torch.tensor([100]))
    expected = torch.tensor([[math.cos(100), math.sin(100)]], dtype=torch.float64)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vectors_are_turned_by_float32_angles(dtype):
    x = vectors(2000, 8).to(dtype)  # bfloat16 itself cannot tell position 1999 from 2000
    expected = apply_rotary(x.double()).to(dtype)
    turned = apply_rotary(x)
    assert turned.dtype == dtype
    torch.testing.assert_close(turned, expected, rtol=0.01, atol=0.01)


def test_angles_are_never_half_precision():
    assert rotary_angles(torch.arange(3), 4, dtype=torch.bfloat16).dtype == torch.float32


@pytest.mark.parametrize("size", [0, 1, 7])
def test_an_odd_or_empty_size_is_refused(size):
    with pytest.raises(ValueError, match=f"even, positive vector size .*, got {size}"):
        apply_rotary(torch.zeros(3, size))


@pytest.mark.parametrize("base", [1.0, 0.0, -3.0, math.nan])
def test_a_base_not_above_one_is_refused(base):
    with pytest.raises(ValueError, match="base must be above 1, got"):
        apply_rotary(torch.zeros(3, 4), base=base)


def test_gradient_turns_back():
    x, pull = vectors(5, 6).requires_grad_(), vectors(5, 6, seed=1)
    apply_rotary(x).backward(pull)
    back = apply_rotary(pull, -torch.arange(5))
    torch.testing.assert_close(x.grad, back, rtol=0, atol=1e-12)


@pytest.mark.compiled
def test_compiles_as_one_graph():
    x = vectors(2, 5, 8, dtype=torch.float32)
    compiled = torch.compile(apply_rotary, fullgraph=True)
    torch.testing.assert_close(compiled(x), apply_rotary(x), rtol=1e-5, atol=1e-6)
