"""NTK parametrisation (S04): the same function as LeCun, another training."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.nn.init import lecun_normal_
from kexue.nn.ntk_linear import NTKLinear


def pair(m=24, n=7):
    """A layer in NTK form and the standard layer of the same function, float64."""
    torch.manual_seed(0)
    ntk = NTKLinear(m, n, dtype=torch.float64)
    with torch.no_grad():
        ntk.bias.normal_()
    return ntk, ntk.to_linear()


def test_the_output_is_the_formula_and_that_of_the_standard_layer():
    ntk, linear = pair()
    x = torch.randn(2, 3, 24, dtype=torch.float64)
    wanted = x @ ntk.weight.T / math.sqrt(24) + ntk.bias
    torch.testing.assert_close(ntk(x), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(linear(x), wanted, rtol=0, atol=1e-12)
    assert linear.weight.dtype == torch.float64


def test_the_output_is_distributed_as_that_of_a_lecun_layer():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(256, generator=random).abs()
    x /= x.square().mean().sqrt()
    ntk, lecun = NTKLinear(256, 20_000, bias=False), torch.empty(20_000, 256)
    ntk.reset_parameters(random)
    outputs = [ntk(x), lecun_normal_(lecun, generator=random) @ x]
    for y in outputs:
        assert y.mean().item() == pytest.approx(0, abs=0.03)
        assert y.square().mean().item() == pytest.approx(1, rel=0.04)
        assert y.pow(4).mean().item() == pytest.approx(3, rel=0.12)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_step_of_sgd_with_rate_m_lr_is_the_standard_step_with_rate_lr(steps):
    ntk, linear = pair()
    lr = 0.01
    rates = [{"params": [ntk.weight], "lr": 24 * lr}, {"params": [ntk.bias], "lr": lr}]
    optimizers = [torch.optim.SGD(rates), torch.optim.SGD(linear.parameters(), lr=lr)]
    for step in range(steps):
        random = torch.Generator().manual_seed(step)
        x = torch.randn(5, 24, dtype=torch.float64, generator=random)
        for layer, optimizer in zip((ntk, linear), optimizers, strict=True):
            optimizer.zero_grad()
            F.softplus(layer(x)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ntk.to_linear().weight, linear.weight, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(ntk.bias, linear.bias, rtol=1e-12, atol=1e-13)


def test_adam_with_one_rate_is_the_standard_step_with_the_rate_over_root_m():
    ntk, linear = pair()
    rates = [
        {"params": [linear.weight], "lr": 0.01 / math.sqrt(24)},
        {"params": [linear.bias], "lr": 0.01},
    ]
    optimizers = [
        torch.optim.Adam(ntk.parameters(), lr=0.01, eps=0.0),
        torch.optim.Adam(rates, eps=0.0),
    ]
    for step in range(4):
        random = torch.Generator().manual_seed(step)
        x = torch.randn(5, 24, dtype=torch.float64, generator=random)
        for layer, optimizer in zip((ntk, linear), optimizers, strict=True):
            optimizer.zero_grad()
            F.softplus(layer(x)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ntk.to_linear().weight, linear.weight, rtol=1e-11, atol=1e-12)


def test_one_rate_is_the_same_relative_change_for_every_width():
    for m in (16, 1024):
        layer = NTKLinear(m, m, bias=False)
        before = layer.weight.detach().clone()
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        layer(torch.randn(64, m)).square().mean().backward()
        optimizer.step()
        change = (layer.weight - before).norm() / before.norm()
        assert change.item() == pytest.approx(1e-2, rel=0.1)


def test_every_option_of_a_linear_layer_works():
    layer = NTKLinear(6, 4, bias=False, dtype=torch.bfloat16)
    assert layer.bias is None
    assert list(layer.state_dict()) == ["weight"]
    assert layer(torch.ones(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert repr(layer) == "NTKLinear(6, 4, bias=False)"
    assert layer.to_linear().bias is None
    assert NTKLinear(6, 4, device="meta").weight.is_meta
    loaded = NTKLinear(6, 4)
    loaded.load_state_dict(copy.deepcopy(loaded.state_dict()))


def test_autocast_runs_the_product_in_low_precision():
    layer, x = NTKLinear(64, 32), torch.randn(8, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x), rtol=0.05, atol=0.05)


def test_half_precision_does_not_overflow_on_the_way():
    layer = NTKLinear(4096, 1, bias=False, dtype=torch.float16)
    nn.init.constant_(layer.weight, 30.0)
    assert layer(torch.full((1, 4096), 30.0, dtype=torch.float16)).item() == pytest.approx(57_600)


@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, -1)])
def test_layers_without_features_are_refused(m, n):
    with pytest.raises(ValueError, match="features must be positive"):
        NTKLinear(m, n)
