"""Dropout from bits: the same distribution as torch's, cheaper."""

import math

import pytest
import torch

from kexue.nn.dropout import BitDropout, bit_dropout, keep_mask


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_the_share_of_zeros_is_p_within_five_standard_errors(p):
    n = 400_000
    kept = keep_mask((n,), p, generator()).double().mean().item()
    assert abs(kept - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n) + 2**-16


def test_what_is_kept_is_scaled_so_that_the_mean_stays():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    total = sum(bit_dropout(x, 0.3, generator=generator(s)) for s in range(20_000))
    error = 5 * x.abs() * math.sqrt(0.3 / 0.7 / 20_000)
    assert ((total / 20_000 - x).abs() <= error + 1e-12).all()


def test_every_kept_entry_has_the_same_factor():
    y = bit_dropout(torch.ones(5000, dtype=torch.float64), 0.1, generator=generator())
    rate = round(0.1 * 65536) / 65536
    assert set(y.tolist()) == {0.0, 1 / (1 - rate)}


def test_neighbours_are_independent():
    mask = keep_mask((400_000,), 0.5, generator()).double() - 0.5  # ±0.5
    for lag in (1, 2, 3, 4, 8):
        correlation = (mask[:-lag] * mask[lag:]).mean().item() / 0.25
        assert abs(correlation) < 5 / math.sqrt(400_000)


def test_the_gradient_passes_where_the_value_did():
    x = torch.randn(1000, dtype=torch.float64, generator=generator()).requires_grad_()
    y = bit_dropout(x, 0.4, generator=generator(1))
    y.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), y.detach(), rtol=1e-12, atol=0)


def test_the_same_seed_gives_the_same_mask_whatever_the_dtype():
    masks = [
        bit_dropout(torch.ones(999, dtype=d), 0.2, generator=generator(3)) > 0
        for d in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    ]
    assert all(torch.equal(masks[0], m) for m in masks[1:])


def test_torch_s_own_seed_drives_it():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(bit_dropout(torch.ones(100), 0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_outside_training_and_at_rate_zero_the_tensor_itself_comes_back():
    x = torch.randn(4)
    assert bit_dropout(x, 0.5, training=False) is x
    assert bit_dropout(x, 0.0) is x
    assert BitDropout(0.5).eval()(x) is x


def test_rate_one_gives_zeros():
    assert not bit_dropout(torch.randn(5), 1.0).any()


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_rate_outside_zero_and_one_is_refused(p):
    with pytest.raises(ValueError, match="p must be between 0 and 1"):
        bit_dropout(torch.ones(2), p)
    with pytest.raises(ValueError, match="p must be between 0 and 1"):
        BitDropout(p)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0, 4)])
def test_any_shape_keeps_its_shape(shape):
    assert bit_dropout(torch.ones(shape), 0.5).shape == shape
