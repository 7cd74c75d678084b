"""Lion: its formula, its peer, and what it shares with Tiger."""

import pytest
import torch
from pytorch_optimizer import Lion as PeerLion
from torch import nn

from kexue.optim.lion import Lion, lion_
from kexue.tensor_loop import Loop


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def run(optimizer, x, gradients):
    for g in gradients:
        x.grad = g.to(x.dtype)
        optimizer.step()
    return x.detach()


def naive_lion(x, gradients, *, lr, betas, weight_decay):
    """One number, in Python floats."""
    m = 0.0
    for g in gradients:
        u = betas[0] * m + (1 - betas[0]) * g
        x = x - lr * ((u > 0) - (u < 0) + weight_decay * x)
        m = betas[1] * m + (1 - betas[1]) * g
    return x, m


SETTINGS = [
    {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0},
    {"lr": 0.01, "betas": (0.95, 0.98), "weight_decay": 0.1},
    {"lr": 0.1, "betas": (0.0, 0.5), "weight_decay": 1.0},
    {"lr": 0.1, "betas": (0.965, 0.965), "weight_decay": 0.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("way", ["compiled loop", "torch", "float64"])
def test_every_number_follows_the_formula(settings, way, monkeypatch):
    if way == "torch":
        monkeypatch.setattr(Loop, "takes", lambda self, *tensors: False)
    dtype = torch.float64 if way == "float64" else torch.float32
    start, gradients = normal(30), [normal(30, seed=s + 1) for s in range(15)]
    x = nn.Parameter(start.to(dtype, copy=True))
    optimizer = Lion([x], **settings)
    run(optimizer, x, gradients)
    naive = [
        naive_lion(start[i].item(), [g[i].item() for g in gradients], **settings) for i in range(30)
    ]
    m = optimizer.state[x]["exp_avg"]
    for ours, expected in ((x.detach(), [a for a, _ in naive]), (m, [b for _, b in naive])):
        tolerance = 1e-14 if way == "float64" else 2e-6
        torch.testing.assert_close(
            ours, torch.tensor(expected, dtype=dtype), rtol=0, atol=tolerance
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("settings", SETTINGS)
def test_it_is_the_peers_lion(settings):
    x, y = nn.Parameter(normal(20, 10)), nn.Parameter(normal(20, 10))
    ours, peer = Lion([x], **settings), PeerLion([y], **settings)
    gradients = [normal(20, 10, seed=s + 1) for s in range(20)]
    torch.testing.assert_close(run(ours, x, gradients), run(peer, y, gradients), rtol=0, atol=2e-16)


def test_defaults_are_the_papers():
    group = Lion([nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.99), 0.0)


def test_every_moving_entry_moves_by_the_learning_rate():
    x = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    g = normal(50)
    g[7] = 0
    moved = run(Lion([x], lr=0.25), x, [g])
    assert torch.equal(moved, -0.25 * g.sign())
    assert moved[7] == 0


@pytest.mark.parametrize("factor", [2.0**-30, 2.0**15])
def test_the_scale_of_the_loss_does_not_matter(factor):
    ends = []
    for scale in (1.0, factor):
        x = nn.Parameter(normal(30))
        ends.append(run(Lion([x]), x, [scale * normal(30, seed=s) for s in range(10)]))
    assert torch.equal(*ends)


def test_accumulation_cannot_be_hidden_because_the_step_needs_m_and_the_mean_gradient():
    """Folding two micro-gradients one by one gives another m and u than their mean."""
    a, b = torch.tensor([1.0]), torch.tensor([-3.0])
    x, m = torch.zeros(1), torch.zeros(1)
    for g in (a, b):
        lion_(x, g, m, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    y, n = torch.zeros(1), torch.zeros(1)
    lion_(y, (a + b) / 2, n, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    assert x.item() != y.item()
    assert m.item() != n.item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must not be negative"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), got \(0.9, 1.0\)"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Lion([nn.Parameter(torch.zeros(1))], **options)
