"""S35: two unequal steps on one batch, and the penalty they stand for."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.optim.backstitch import Backstitch

HESSIAN = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)


def two_steps(start, rate, alpha, descend_first=False, hessian=HESSIAN):
    x = start.clone().requires_grad_()
    stitch = Backstitch(torch.optim.SGD([x], lr=rate), alpha, descend_first=descend_first)

    def closure():
        stitch.zero_grad()
        loss = x @ hessian @ x / 2
        loss.backward()
        return loss

    loss = stitch.step(closure)
    assert loss.item() == (start @ hessian @ start / 2).item()
    return x.detach(), stitch.equivalent_penalty()


@pytest.mark.parametrize("descend_first", [False, True])
def test_the_worked_steps_are_one_step_on_the_penalised_loss(descend_first):
    """ε₁ = 0.1 and ε₂ = 0.05 are the rate 0.05 with α = 1."""
    start = torch.tensor([1.0, -1.0], dtype=torch.float64)
    found, penalty = two_steps(start, 0.05, 1.0, descend_first)
    worked = torch.tensor([0.91125, -0.97625], dtype=torch.float64)
    torch.testing.assert_close(found, worked, rtol=0, atol=1e-10)
    assert penalty == [pytest.approx(0.05, abs=1e-12)]


def test_the_papers_alpha_has_the_worked_penalty():
    _, penalty = two_steps(torch.ones(2).double(), 0.1, 0.3)
    assert penalty == [pytest.approx(0.0195, abs=1e-12)]


@pytest.mark.parametrize("descend_first", [False, True])
@pytest.mark.parametrize(("rate", "alpha"), [(0.1, 0.0), (0.1, 0.3), (0.02, 4.0)])
def test_on_quadratics_the_formula_is_exact_in_both_orders(rate, alpha, descend_first):
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    hessian, start = root @ root.T / 6, torch.randn(6, dtype=torch.float64)
    found, (penalty,) = two_steps(start, rate, alpha, descend_first, hessian)
    x = start.clone().requires_grad_()
    (g,) = torch.autograd.grad(x @ hessian @ x / 2, x, create_graph=True)
    loss = x @ hessian @ x / 2 + penalty * g.square().sum()
    (step,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(found, start - rate * step, rtol=0, atol=1e-12)


def test_groups_of_different_rates_have_their_own_penalties():
    start = torch.tensor([1.0, -1.0], dtype=torch.float64)
    a, b = (start[i : i + 1].clone().requires_grad_() for i in range(2))
    sgd = torch.optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.02}])
    stitch = Backstitch(sgd, 0.5)

    def loss():
        x = torch.cat([a, b])
        return x @ HESSIAN @ x / 2

    def closure():
        stitch.zero_grad()
        value = loss()
        value.backward()
        return value

    gradients = torch.autograd.grad(loss(), [a, b], create_graph=True)
    penalties = stitch.equivalent_penalty()
    total = loss() + sum(p * g.square().sum() for p, g in zip(penalties, gradients, strict=True))
    steps = torch.autograd.grad(total, [a, b])
    expected = [start[0] - 0.1 * steps[0], start[1] - 0.02 * steps[1]]
    stitch.step(closure)
    torch.testing.assert_close([a.detach(), b.detach()], expected, rtol=0, atol=1e-12)


def test_on_a_network_the_error_is_of_third_order():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(12, 3).double(), torch.randint(2, (12,))
    start = [p.detach().clone() for p in model.parameters()]
    errors = []
    for rate in (0.02, 0.01, 0.005):
        with torch.no_grad():
            for p, value in zip(model.parameters(), start, strict=True):
                p.copy_(value)
        stitch = Backstitch(torch.optim.SGD(model.parameters(), lr=rate), 1.0)
        loss = F.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        penalty = stitch.equivalent_penalty()[0] * sum(g.square().sum() for g in gradients)
        step = torch.autograd.grad(loss + penalty, list(model.parameters()))
        expected = [p - rate * s for p, s in zip(start, step, strict=True)]

        def closure(stitch=stitch):
            stitch.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        stitch.step(closure)
        gaps = [(p - e).square().sum() for p, e in zip(model.parameters(), expected, strict=True)]
        errors.append(torch.stack(gaps).sum().sqrt().item())
    for large, small in pairwise(errors):
        assert 7.5 <= large / small <= 8.5


def test_the_rates_are_the_users_again_even_if_a_step_fails():
    x = torch.ones(1, requires_grad=True)
    stitch = Backstitch(torch.optim.SGD([x], lr=0.1), 0.3)
    stitch.optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stitch.step(lambda: 0.0)
    assert stitch.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_schedules_and_states_are_those_of_the_optimizer(name):
    torch.manual_seed(0)

    def build():
        x = torch.tensor([1.0, 2.0], requires_grad=True)
        return x, Backstitch(getattr(torch.optim, name)([x], lr=0.1), 0.3)

    def train(x, stitch, steps):
        def closure():
            stitch.zero_grad()
            loss = (x - 0.3).square().sum()
            loss.backward()
            return loss

        for _ in range(steps):
            stitch.step(closure)

    x, stitch = build()
    schedule = torch.optim.lr_scheduler.ExponentialLR(stitch.optimizer, 0.5)
    train(x, stitch, 2)
    schedule.step()
    assert stitch.param_groups[0]["lr"] == pytest.approx(0.05)
    other, twin = build()
    twin.load_state_dict(copy.deepcopy(stitch.state_dict()))
    other.data.copy_(x.data)
    train(x, stitch, 3)
    train(other, twin, 3)
    assert torch.equal(x, other)


def test_what_does_not_fit_is_refused():
    x = torch.ones(1, requires_grad=True)
    sgd = torch.optim.SGD([x], lr=0.1)
    with pytest.raises(ValueError, match=r"alpha must be a number of at least 0, got -0\.1"):
        Backstitch(sgd, -0.1)
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer"):
        Backstitch([x], 0.3)
    for optimizer in (torch.optim.Adam([x]), torch.optim.SGD([x], lr=0.1, momentum=0.9)):
        with pytest.raises(ValueError, match="SGD without momentum, not for"):
            Backstitch(optimizer, 0.3).equivalent_penalty()


def test_a_step_without_a_closure_says_why_it_needs_one():
    stitch = Backstitch(torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1), 0.3)
    with pytest.raises(Exception, match="closure"):
        stitch.step(None)
