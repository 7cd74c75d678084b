"""S16: combining losses by their values."""

import math
from itertools import pairwise

import pytest
import torch

from kexue.optim.multitask.losses import combine_losses, prior_loss, separate

L = [0.5, 2.0, 8.0]


def tensors(values=L):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def value_and_factors(method, values=L, **options):
    losses = tensors(values)
    total = combine_losses(losses, method, **options)
    total.backward()
    return total.item(), losses.grad


def same(found, expected, atol=1e-10):
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol
    )


def test_worked_numbers_of_the_geometric_mean_and_of_the_dynamic_factors():
    assert value_and_factors("geometric")[0] == pytest.approx(2, abs=1e-12)
    value, factors = value_and_factors("dynamic")
    assert value == pytest.approx(3, abs=1e-12)
    same(factors, [2, 0.5, 0.125])


def test_worked_numbers_of_the_power_mean():
    for gamma, expected in ((-1.0, 1.142857142857), (0.0, 2), (1.0, 3.5), (2.0, 4.769696007085)):
        assert value_and_factors("power_mean", gamma=gamma)[0] == pytest.approx(expected, abs=1e-10)
    factors = value_and_factors("power_mean", gamma=2.0)[1]
    same(factors, [0.034942827891, 0.139771311563, 0.559085246252])


def test_worked_number_of_the_prior_loss():
    labels = torch.tensor([0] * 4 + [1] * 2 + [2, 3])
    assert prior_loss(labels) == pytest.approx(1.213007565980, abs=1e-10)
    rows = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64)
    assert prior_loss(rows) == pytest.approx(1.213007565980, abs=1e-10)
    assert prior_loss(torch.arange(4)) == pytest.approx(1.386294361120, abs=1e-10)  # log 4


@pytest.mark.parametrize("method", ["geometric", "dynamic", "power_mean"])
def test_the_gradient_of_geometric_and_dynamic_does_not_see_the_units(method):
    options = {"gamma": 0.0} if method == "power_mean" else {}
    scale = torch.tensor([1e-9, 1.0, 1e9], dtype=torch.float64)
    plain = value_and_factors(method, **options)[1]
    scaled = value_and_factors(method, (scale * torch.tensor(L)).tolist(), **options)[1] * scale
    torch.testing.assert_close(scaled / scaled.norm(), plain / plain.norm(), rtol=1e-7, atol=0)


def test_only_exponent_zero_is_blind_to_the_units():
    scale = torch.tensor([1.0, 1.0, 10.0], dtype=torch.float64)
    for gamma in (-1.0, 0.5, 1.0, 3.0):
        plain = value_and_factors("power_mean", gamma=gamma)[1]
        scaled = value_and_factors("power_mean", [0.5, 2.0, 80.0], gamma=gamma)[1] * scale
        assert (scaled / scaled.norm() - plain / plain.norm()).norm() > 0.003


@pytest.mark.parametrize("method", ["initial", "prior"])
def test_a_constant_reference_takes_out_the_units(method):
    value, factors = value_and_factors(method, reference=[0.5, 1.0, 16.0])
    scaled = value_and_factors(method, [5.0, 2.0, 0.8], reference=[5.0, 1.0, 1.6])
    assert value == scaled[0] == pytest.approx(3.5)
    same(factors, [2, 1, 1 / 16])


def test_dynamic_and_geometric_have_one_direction():
    dynamic, geometric = (value_and_factors(m)[1] for m in ("dynamic", "geometric"))
    torch.testing.assert_close(dynamic * 2 / 3, geometric, rtol=1e-12, atol=0)


def test_uncertainty_at_its_optimum_is_half_n_plus_half_the_log_sum():
    losses = tensors()
    log_sigma = (losses.detach().log() / 2).requires_grad_()  # sigma^2 = L
    total = combine_losses(losses, "uncertainty", log_sigma=log_sigma)
    total.backward()
    assert total.item() == pytest.approx(1.5 + math.log(0.5 * 2 * 8) / 2, abs=1e-12)
    same(log_sigma.grad, [0.0, 0.0, 0.0], atol=1e-12)
    torch.testing.assert_close(losses.grad, value_and_factors("dynamic")[1] / 2)


def test_a_learned_uncertainty_finds_the_losses():
    log_sigma = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_sigma], max_iter=100, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        total = combine_losses(tensors().detach(), "uncertainty", log_sigma=log_sigma)
        total.backward()
        return total

    optimizer.step(closure)
    same((2 * log_sigma).exp().detach(), L, atol=1e-4)


def test_the_power_mean_rises_with_its_exponent_unless_all_losses_are_equal():
    gammas = [-math.inf, -300.0, -2.0, -1e-9, 0.0, 1e-9, 0.5, 1.0, 5.0, 300.0, math.inf]
    means = [value_and_factors("power_mean", gamma=g)[0] for g in gammas]
    assert all(a < b + 1e-7 for a, b in pairwise(means))
    assert means[0] == 0.5
    assert means[-1] == 8
    assert means[1] == pytest.approx(0.5, rel=0.01)
    assert means[-2] == pytest.approx(8, rel=0.01)
    for gamma in gammas:
        if abs(gamma) > 1e-6:
            equal = value_and_factors("power_mean", [3.0, 3.0], gamma=gamma)[0]
            assert equal == pytest.approx(3, rel=1e-12)


@pytest.mark.parametrize("gamma", [-3.0, 0.0, 0.5, 1.0, 2.0])
def test_the_losses_times_their_factors_sum_to_the_power_mean(gamma):
    value, factors = value_and_factors("power_mean", gamma=gamma)
    assert (factors * torch.tensor(L)).sum().item() == pytest.approx(value, rel=1e-12)
    expected = torch.tensor(L, dtype=torch.float64) ** (gamma - 1) * value ** (1 - gamma) / 3
    torch.testing.assert_close(factors, expected, rtol=1e-10, atol=0)


def test_exponents_near_zero_tend_to_the_geometric_mean():
    for gamma in (1e-3, 1e-5):
        near = value_and_factors("power_mean", gamma=gamma)[0]
        assert near == pytest.approx(2, rel=2 * gamma)


def test_weights_count_losses_as_often_as_they_say():
    for method, options in (("geometric", {}), ("power_mean", {"gamma": 2.0})):
        twice = value_and_factors(method, [0.5, 2.0, 2.0], **options)[0]
        weighted = value_and_factors(method, [0.5, 2.0], weights=[1.0, 2.0], **options)[0]
        assert weighted == pytest.approx(twice, rel=1e-12)
        alone = value_and_factors(method, [0.5, 2.0], weights=[0.0, 1.0], **options)[0]
        assert alone == pytest.approx(2)
    assert value_and_factors("sum", weights=[1.0, 0.0, 2.0])[0] == 16.5
    assert value_and_factors("power_mean", gamma=math.inf, weights=[1.0, 1.0, 0.0])[0] == 2


def test_large_exponents_of_small_losses_do_not_overflow():
    value, factors = value_and_factors("power_mean", [1e-30, 2e-30], gamma=50.0)
    assert value == pytest.approx(2e-30 * 0.5**0.02, rel=1e-6)
    assert factors.isfinite().all()


def test_prior_loss_of_regression_is_the_variance_as_the_loss_reduces_it():
    y = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = y.mean(0).expand_as(y)
    assert prior_loss(y, "regression", reduction="mean") == pytest.approx(
        torch.nn.functional.mse_loss(mean, y).item(), rel=1e-12
    )
    assert prior_loss(y, "regression") == pytest.approx(
        (y - mean).square().sum(1).mean().item(), rel=1e-12
    )


def test_prior_loss_is_the_loss_of_the_best_constant_prediction():
    labels = torch.tensor([[0, 1, 2, -100], [1, 1, 0, -100]])
    frequencies = torch.tensor([2, 3, 1], dtype=torch.float64) / 6
    logits = frequencies.log().expand(8, 3)
    best = torch.nn.functional.cross_entropy(logits, labels.flatten())
    assert prior_loss(labels) == pytest.approx(best.item(), rel=1e-12)


def test_under_autocast_the_result_is_float32():
    losses = [torch.tensor(2.0, dtype=torch.bfloat16), torch.tensor(0.5)]
    with torch.autocast("cpu", torch.bfloat16):
        assert combine_losses(losses, "geometric").dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: combine_losses(torch.tensor(3.0)), TypeError, "one scalar per task, got a single"),
        (lambda: separate({"a": torch.tensor(1.0)}), TypeError, r"list\(losses.values\(\)\)"),
        (lambda: combine_losses([]), ValueError, "must not be empty"),
        (lambda: combine_losses([torch.ones(2)]), ValueError, r"task 0 .* shape \(2,\)"),
        (lambda: combine_losses(torch.ones(2), "power_mean"), TypeError, "needs gamma"),
        (lambda: combine_losses(torch.ones(2), "prior"), TypeError, "needs reference"),
        (lambda: combine_losses(torch.ones(2), "uncertainty"), TypeError, "needs log_sigma"),
        (lambda: combine_losses(torch.ones(2), gamma=1.0), TypeError, "gamma belongs to"),
        (lambda: combine_losses(torch.ones(2), weights=[1.0]), ValueError, "2 numbers"),
        (lambda: combine_losses(torch.ones(2), weights=[1.0, -1.0]), ValueError, "for task 1"),
        (lambda: combine_losses(torch.ones(2), weights=[0.0, 0.0]), ValueError, "all be zero"),
        (
            lambda: combine_losses(torch.ones(2), "prior", reference=[1.0, 0.0]),
            ValueError,
            "> 0, got 0.0 for task 1",
        ),
        (
            lambda: combine_losses(torch.tensor([1.0, -2.0]), "geometric"),
            ValueError,
            "positive losses, got -2.0 for task 1",
        ),
        (
            lambda: combine_losses(torch.ones(2), "uncertainty", log_sigma=torch.zeros(3)),
            ValueError,
            r"shape \(2,\), got \(3,\)",
        ),
        (
            lambda: combine_losses(torch.ones(2), "prior", reference=[]),
            ValueError,
            "2 numbers, one per task",
        ),
        (lambda: prior_loss(torch.tensor([-100])), ValueError, "nothing but ignore_index"),
        (lambda: prior_loss(torch.ones(3)), ValueError, "rows of class probabilities"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_nan_loss_stays_nan_instead_of_being_called_negative():
    assert combine_losses(torch.tensor([1.0, torch.nan]), "geometric").isnan()
