"""S26: the closed forms of the sampling view, and the weights."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive

from kexue.optim.guided_search.candidates import draw_candidates
from kexue.optim.guided_search.sampling_view import (
    ball_update,
    bessel_ratio,
    effective_sample_size,
    evolution_update,
    gaussian_update,
    mgs_weights,
    mixture_log_density,
    newton_update,
    optimise_by_sampling,
)
from naive.guided_search import naive_log_z

DELTA = torch.tensor([[0.1, 0.2], [-0.4, 0.5], [-0.2, 0.3]], dtype=torch.float64)
GRAD = torch.tensor([0.3, -0.4], dtype=torch.float64)
LOSSES = torch.tensor([0.9, 0.7, 0.8], dtype=torch.float64)
H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
ONES = torch.ones(2, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def near(found, expected, atol=1e-10):
    torch.testing.assert_close(
        found, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=atol
    )


# Worked numbers


def test_the_worked_example_with_the_exact_density():
    log_q = mixture_log_density(DELTA, GRAD, sigma=0.5, pi=0.5)
    near(log_q, [-0.690374641381, -0.807385819626, -0.595544866899], 1e-12)
    weights = mgs_weights(LOSSES, log_q, 0.25)
    near(weights, [0.205818161657, 0.514916240080, 0.279265598262], 1e-12)
    near(weights @ DELTA, [-0.241237799519, 0.382401431850], 1e-12)
    near(effective_sample_size(weights), 2.594106906943, 1e-12)
    shifted = mgs_weights(LOSSES - 1, log_q, 0.25)  # l(θ) = 1 taken off
    near(shifted, weights, 1e-15)


def test_the_worked_example_without_a_density():
    weights = mgs_weights(LOSSES, temperature=0.25)
    near(weights, [0.211982720708, 0.471776221068, 0.316241058225], 1e-12)
    near(weights @ DELTA, [-0.230760428001, 0.373156972143], 1e-12)


@pytest.mark.parametrize(
    ("d", "length"), [(1, 0.306783654906), (2, 0.253597550024), (3, 0.214906518003)]
)
def test_the_worked_steps_in_a_ball(d, length):
    grad = torch.zeros(d, dtype=torch.float64)
    grad[-1] = 0.5
    update = ball_update(grad, radius=0.5, temperature=0.1)
    assert -update[-1].item() == pytest.approx(length, abs=1e-12)
    assert not update[:-1].any()


def test_the_worked_newton_steps():
    near(newton_update(ONES, H), [-0.285714285714, -0.857142857143], 1e-12)
    damped = newton_update(ONES, H, sigma=0.5, temperature=0.1)
    near(damped, [-0.289389067524, -0.610932475884], 1e-12)


# Weights


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12),
    st.floats(-1e3, 1e3),
    st.one_of(st.just("adaptive"), st.floats(1e-6, 1e6)),
)
@settings(max_examples=100, deadline=None)
def test_weights_sum_to_one_ignore_constants_and_rest_on_one_to_k_samples(losses, shift, alpha):
    losses = torch.tensor(losses, dtype=torch.float64)
    log_q = normal(len(losses))
    weights = mgs_weights(losses, log_q, alpha)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    near(mgs_weights(losses, log_q + shift, alpha), weights, 1e-9)
    ess = effective_sample_size(weights).item()
    assert 1 - 1e-12 <= ess <= len(losses) * (1 + 1e-12)


@pytest.mark.parametrize("alpha", ["adaptive", 0.01, 1.0])
def test_a_constant_on_all_losses_changes_nothing(alpha):
    losses = torch.tensor([0.25, 0.5, 0.125], dtype=torch.float64)  # sums with 64 are exact
    assert torch.equal(mgs_weights(losses + 64, None, alpha), mgs_weights(losses, None, alpha))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("alpha", ["adaptive", 0.1])
def test_a_loss_that_is_not_finite_gets_no_weight_and_leaves_the_others_alone(bad, alpha):
    weights = mgs_weights(torch.tensor([0.9, bad, 0.7, 0.8], dtype=torch.float64), None, alpha)
    assert weights[1] == 0
    near(weights[[0, 2, 3]], mgs_weights(LOSSES, None, alpha), 1e-14)


@pytest.mark.parametrize("alpha", ["adaptive", 1e-300, 1e300])
def test_a_single_sample_takes_everything(alpha):
    assert mgs_weights(torch.tensor([3.0]), None, alpha).tolist() == [1.0]


@pytest.mark.parametrize("alpha", ["adaptive", 1e-6, 1.0])
def test_equal_losses_give_the_plain_mean(alpha):
    losses = torch.full((5,), 0.1, dtype=torch.float64)
    near(mgs_weights(losses, None, alpha), [0.2] * 5, 1e-15)


def test_a_cold_vote_takes_the_best_and_a_hot_one_the_mean():
    assert mgs_weights(LOSSES, None, 1e-300).tolist() == [0, 1, 0]
    near(mgs_weights(LOSSES, None, 1e12), [1 / 3] * 3, 1e-12)


def test_the_adaptive_temperature_is_the_standard_deviation():
    alpha = LOSSES.std(correction=0).item()
    near(mgs_weights(LOSSES), mgs_weights(LOSSES, None, alpha), 1e-14)


@pytest.mark.parametrize(("k", "share"), [(4, 0.577), (8, 0.527), (16, 0.485)])
def test_the_adaptive_temperature_keeps_about_half_of_the_samples(k, share):
    losses = normal(4000, k) * 1e-7 + 3  # whatever the scale
    ess = [effective_sample_size(mgs_weights(row)).item() for row in losses]
    assert np.mean(ess) / k == pytest.approx(share, abs=0.01)


def test_huge_losses_do_not_overflow_the_adaptive_temperature():
    near(mgs_weights(LOSSES * 1e300), mgs_weights(LOSSES), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_computed_in_float32_or_better(dtype):
    assert mgs_weights(LOSSES.to(dtype)).dtype == torch.float32


def test_no_finite_loss_is_an_error_that_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"none of the 2 .*finite.*parameters are as before.*sigma"
    ):
        mgs_weights(torch.tensor([math.nan, math.inf]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_density_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=f"log_q must be finite, got .*{bad}"):
        mgs_weights(LOSSES, torch.tensor([0.0, bad, 0.0], dtype=torch.float64), 0.1)


@pytest.mark.parametrize("alpha", [0, -1.0, math.inf, math.nan, "warm"])
def test_a_temperature_must_be_positive(alpha):
    with pytest.raises(ValueError, match="temperature must be"):
        mgs_weights(LOSSES, None, alpha)


# The proposal


@pytest.mark.parametrize("pi", [0.0, 0.3, 1.0])
def test_the_mixture_density_integrates_to_one(pi):
    delta = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    q = mixture_log_density(delta[:, None], torch.tensor([1.5], dtype=torch.float64), 0.4, pi)
    assert torch.trapezoid(q.exp(), delta).item() == pytest.approx(1, abs=1e-12)


def test_the_mixture_density_does_not_underflow():
    far = torch.full((1, 10_000), 50.0)
    log_q = mixture_log_density(far, torch.zeros(10_000), sigma=0.1)
    assert log_q.item() == pytest.approx(
        -10_000 * (125_000 + math.log(math.sqrt(2 * math.pi) / 10))
    )


@pytest.mark.parametrize(
    ("sigma", "pi", "message"), [(0.0, 0.5, "sigma must be"), (1.0, 1.1, "pi must be between")]
)
def test_a_proposal_out_of_range_is_refused(sigma, pi, message):
    with pytest.raises(ValueError, match=message):
        mixture_log_density(DELTA, GRAD, sigma, pi)


@pytest.mark.parametrize("pi", [0.5, 0.3])
def test_stratified_components_leave_the_unnormalised_estimator_unbiased(pi):
    """Mean of exp(−l/α)/q · Δ over K = 4 samples with the components dealt out, not drawn."""
    rounds, k, sigma, alpha = 50_000, 4, 0.8, 0.5
    grad = torch.tensor([1.2], dtype=torch.float64)
    at_zero = [[c.at_zero for c in draw_candidates(k, pi, 0, step)] for step in range(1000)]
    at_zero = torch.tensor(at_zero * (rounds // 1000))
    delta = sigma * normal(rounds, k) - torch.where(at_zero, 0.0, grad)
    target = lambda x: torch.exp(-((x - 0.3) ** 2) / alpha)  # noqa: E731
    log_q = mixture_log_density(delta.reshape(-1, 1), grad, sigma, pi).reshape(rounds, k)
    estimates = (target(delta) / log_q.exp() * delta).mean(1)
    line = torch.linspace(-15, 15, 100_001, dtype=torch.float64)
    exact = torch.trapezoid(target(line) * line, line)
    error = estimates.std() / math.sqrt(rounds)
    assert abs(estimates.mean() - exact) < 5 * error
    assert error < 0.02 * exact


def test_half_and_half_is_exact_and_other_shares_are_met_on_average():
    for step in range(50):
        assert sum(c.at_zero for c in draw_candidates(6, 0.5, 3, step)) == 3
    shares = [[c.at_zero for c in draw_candidates(3, 0.4, 3, step)] for step in range(4000)]
    for one in np.mean(shares, axis=0):
        assert one == pytest.approx(0.4, abs=5 * math.sqrt(0.24 / 4000))
    assert {sum(row) for row in shares} == {1, 2}  # 1.2 of 3: never none, never all


# Closed forms


@pytest.mark.parametrize("kappa", [1e-8, 0.1, 2.5, 30.0, 700.0, 5e4])
def test_the_bessel_ratio_agrees_with_scipy(kappa):
    orders = [0.5, 1, 1.5, 5] + [500.5] * (kappa > 500)  # below, scipy's functions underflow
    for order in orders:
        expected = ive(order + 1, kappa) / ive(order, kappa)
        assert bessel_ratio(order, kappa) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kappa", [1e6, 1e9, 1e15])
def test_the_bessel_ratio_follows_its_expansion_where_scipy_stops(kappa):
    expected = 1 - 1.5 / kappa + 0.375 / kappa**2
    assert bessel_ratio(1, kappa) == pytest.approx(expected, rel=1e-13)


def test_the_bessel_ratio_survives_a_billion_dimensions():
    assert bessel_ratio(5e8, 10.0) == pytest.approx(10 / (2 * (5e8 + 1)), rel=1e-9)
    assert bessel_ratio(3, 0) == 0
    with pytest.raises(ValueError, match="kappa must be finite"):
        bessel_ratio(1, math.inf)


@pytest.mark.parametrize("kappa", [1e-3, 0.5, 2.5, 40.0])
def test_in_one_dimension_the_ball_step_is_the_langevin_function(kappa):
    grad = torch.tensor([kappa], dtype=torch.float64)
    update = ball_update(grad, radius=0.5, temperature=0.5).item()
    langevin = 1 / math.tanh(kappa) - 1 / kappa
    assert -update == pytest.approx(0.5 * langevin, rel=1e-9)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_ball_step_is_minus_alpha_times_the_gradient_of_log_z(d):
    grad, radius, alpha, h = normal(d, seed=d).tolist(), 0.7, 0.2, 1e-5
    found = ball_update(torch.tensor(grad, dtype=torch.float64), radius, alpha)
    for i in range(d):
        up, down = ([*grad[:i], grad[i] + s, *grad[i + 1 :]] for s in (h, -h))
        slope = (naive_log_z(up, radius, alpha) - naive_log_z(down, radius, alpha)) / (2 * h)
        assert found[i].item() == pytest.approx(-alpha * slope, rel=1e-7, abs=1e-9)


def test_the_ball_step_is_the_mean_over_the_ball():
    count, grad, radius, alpha = 400_000, GRAD * 3, 0.7, 0.4
    points = normal(count, 2)
    lengths = torch.rand(count, dtype=torch.float64, generator=generator(1)).sqrt() * radius
    points *= (lengths / points.norm(dim=1))[:, None]
    weights = mgs_weights(points @ grad, None, alpha)
    mean = weights @ points
    error = (weights.square() @ (points - mean).square()).sqrt()
    assert ((mean - ball_update(grad, radius, alpha)).abs() < 5 * error).all()


def test_the_ball_step_goes_from_gradient_descent_to_a_step_of_fixed_length():
    cold = ball_update(GRAD, radius=0.5, temperature=1e-9)
    near(cold, -0.5 * GRAD / GRAD.norm(), 1e-8)
    hot = ball_update(GRAD, radius=0.5, temperature=1e6)
    torch.testing.assert_close(hot, -(0.5**2) / (4 * 1e6) * GRAD, rtol=1e-6, atol=0)
    assert ball_update(GRAD * 0, 0.5, 1.0).tolist() == [0, 0]


def test_sampling_a_quadratic_around_a_gaussian_is_damped_newton():
    """Mean of 10^5 samples within five standard errors."""
    sigma, alpha = 0.5, 0.1
    delta = sigma * normal(100_000, 2)
    losses = delta @ ONES + 0.5 * ((delta @ H) * delta).sum(1)
    weights = mgs_weights(losses, None, alpha)
    mean = weights @ delta
    error = (weights.square() @ (delta - mean).square()).sqrt()
    assert ((mean - newton_update(ONES, H, sigma=sigma, temperature=alpha)).abs() < 5 * error).all()
    assert (error < 0.005).all()


def test_sampling_a_quadratic_over_flat_space_is_newton_with_covariance_alpha_over_h():
    alpha, wide = 0.1, 1.0
    delta = wide * normal(400_000, 2)
    losses = delta @ ONES + 0.5 * ((delta @ H) * delta).sum(1)
    log_q = mixture_log_density(delta, torch.zeros(2, dtype=torch.float64), wide, 1.0)
    weights = mgs_weights(losses, log_q, alpha)
    centred = delta - weights @ delta
    near(weights @ delta, newton_update(ONES, H), 0.01)
    covariance = (centred * weights[:, None]).T @ centred
    outer = centred[:, :, None] * centred[:, None, :]
    error = (weights[:, None, None].square() * (outer - covariance).square()).sum(0).sqrt()
    assert ((covariance - alpha * H.inverse()).abs() < 5 * error).all()
    assert (error < 0.1 * alpha).all()  # H⁻¹ itself is ten times as large


def test_newton_needs_a_positive_definite_curvature_and_says_what_damps_enough():
    saddle = torch.diag(torch.tensor([1.0, -2.0], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"not positive definite.*-2.*temperature/sigma² > 2"):
        newton_update(ONES, saddle)
    near(newton_update(ONES, saddle, sigma=1.0, temperature=3.0), [-0.25, -1.0])


def test_newton_with_a_hot_base_measure_is_gradient_descent():
    hot = newton_update(ONES, H, sigma=0.5, temperature=1e9)
    near(hot, gaussian_update(ONES, 0.5, 1e9), 1e-15)


def test_sampling_a_linear_loss_tends_to_gradient_descent_from_below():
    sigma, alpha, grad = 0.5, 0.5, GRAD * 2
    limit = gaussian_update(grad, sigma, alpha)
    delta = sigma * normal(200_000, 2)
    weights = mgs_weights(delta @ grad, None, alpha)
    many = weights @ delta
    error = (weights.square() @ (delta - many).square()).sqrt()
    assert ((many - limit).abs() < 5 * error).all()
    few = delta.view(-1, 4, 2)
    losses = few @ grad
    means = (torch.softmax(-losses / alpha, 1)[..., None] * few).sum(1)
    shrunk = (means.mean(0) @ limit) / (limit @ limit)
    spread = (means @ limit).std() / (limit @ limit) / math.sqrt(len(means))
    assert 0 < shrunk < 1 - 5 * spread  # K = 4 is biased towards zero


def test_a_hot_vote_is_the_evolution_strategies_estimate():
    delta = 0.5 * normal(64, 3)
    losses = delta.square().sum(1) + delta[:, 0]
    alpha = 1e6
    vote = mgs_weights(losses, None, alpha) @ delta - delta.mean(0)
    torch.testing.assert_close(vote, evolution_update(losses, delta, alpha), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("call", [
    lambda: ball_update(GRAD, 0.0, 1.0),
    lambda: ball_update(GRAD, 1.0, -1.0),
    lambda: gaussian_update(GRAD, 0, 1.0),
    lambda: newton_update(ONES, H, sigma=0.0, temperature=1.0),
    lambda: newton_update(ONES, H, temperature=-1.0),
    lambda: evolution_update(LOSSES, DELTA, 0.0),
])  # fmt: skip
def test_closed_forms_refuse_what_is_not_positive(call):
    with pytest.raises(ValueError, match=r"must (be positive|not be negative)"):
        call()


# Plain arrays


def test_plain_arrays_are_minimised_with_and_without_a_gradient():
    start = np.array([2.0, -3.0, 1.0])
    bowl = lambda x: float((x**2).sum())  # noqa: E731
    blind, losses = optimise_by_sampling(bowl, start, steps=60, sigma=0.3, generator=generator())
    assert isinstance(blind, np.ndarray)
    assert losses[0] == 14.0
    assert losses[-1] < 0.5
    assert len(losses) == 61
    guided, guided_losses = optimise_by_sampling(
        bowl, start, steps=10, sigma=0.1, gradient=lambda x: 0.4 * x, generator=generator()
    )
    assert guided_losses[-1] < 0.1 < losses[10]
    assert start.tolist() == [2, -3, 1]
    del guided


def test_a_tensor_in_is_a_tensor_out():
    x, _ = optimise_by_sampling(
        lambda x: x.square().sum(), torch.ones(2), steps=2, sigma=0.1, generator=generator()
    )
    assert x.dtype == torch.float32


@pytest.mark.parametrize("kind", [np.array, lambda x: torch.tensor(x, dtype=torch.float64)])
def test_a_loss_may_change_the_vector_it_is_given(kind):
    def careless(x):
        value = float((x**2).sum())
        x *= 0
        return value

    options = {"steps": 5, "sigma": 0.3}
    ends = []
    for loss in (careless, lambda x: float((x**2).sum())):
        random = torch.Generator().manual_seed(0)
        ends.append(optimise_by_sampling(loss, kind([3.0, 1.0]), generator=random, **options))
    assert ends[0][1] == ends[1][1]
    assert ends[0][0].tolist() == ends[1][0].tolist() != [0.0, 0.0]


def test_whole_numbers_are_searched_between():
    for start in (np.array([1, 2]), torch.tensor([1, 2])):
        seen = []
        optimise_by_sampling(lambda x: seen.append(x) or 0.0, start, steps=1, sigma=0.3)  # noqa: B023
        assert any(float(value) % 1 for x in seen for value in x)


def test_what_is_no_vector_is_refused():
    with pytest.raises(ValueError, match=r"start must be a vector.*\(2, 2\)"):
        optimise_by_sampling(lambda x: 0.0, np.ones((2, 2)), steps=1, sigma=1.0)
