"""S29: the piecewise linear schedule."""

import pickle

import numpy as np
import pytest
import torch

from kexue.optim.schedule import constant_with_warmup, piecewise_linear, warmup_linear


def test_it_is_the_polygon_at_every_knot_and_at_mid_points():
    points = {40: 1.0, 10: 0.2, 100: 0.5, 101: 0.0}
    factor = piecewise_linear(points)
    assert [factor(step) for step in points] == list(points.values())
    times = np.linspace(0, 200, 401)
    expected = np.interp(times, [0, 10, 40, 100, 101], [0, 0.2, 1, 0.5, 0])
    np.testing.assert_allclose([factor(float(t)) for t in times], expected, rtol=0, atol=1e-15)


def test_it_starts_from_zero_unless_told_and_stays_at_the_last_value():
    assert piecewise_linear({4: 1.0})(0) == 0
    assert piecewise_linear({0: 0.5, 4: 1.0})(0) == 0.5
    assert piecewise_linear({0: 0.5, 4: 1.0})(10**9) == 1
    assert piecewise_linear({0: 3.0})(7) == 3


def test_it_drives_an_optimizer_through_lambda_lr():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, piecewise_linear({2: 1, 4: 0.2}))
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.3, 0.1, 0.1], atol=1e-12)


def test_it_survives_pickle_and_the_state_of_the_scheduler():
    factor = piecewise_linear({2: 1.0, 4: 0.2})
    assert pickle.loads(pickle.dumps(factor)) == factor
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    saved = torch.optim.lr_scheduler.LambdaLR(optimizer, factor).state_dict()
    other = torch.optim.lr_scheduler.LambdaLR(optimizer, piecewise_linear({9: 9.0}))
    other.load_state_dict(saved)
    assert other.lr_lambdas[0](3) == factor(3)


def test_read_at_micro_steps_a_warmup_of_40000_is_10000_updates():
    factor, k = constant_with_warmup(40_000), 4
    rates = [factor(k * update) for update in (0, 5_000, 10_000, 20_000)]
    assert rates == [0, 0.5, 1, 1]


def test_the_helpers_are_polygons():
    assert warmup_linear(0, 10)(0) == 1
    assert warmup_linear(10, 20, end=0.1) == piecewise_linear({10: 1.0, 20: 0.1})
    assert constant_with_warmup(0)(0) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: piecewise_linear({}), "must not be empty"),
        (lambda: piecewise_linear({-1: 1.0}), r"got \{-1: 1.0\}"),
        (lambda: piecewise_linear({1: float("nan")}), "finite"),
        (lambda: warmup_linear(5, 5), "warmup=5, total=5"),
        (lambda: constant_with_warmup(-1), "got -1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
