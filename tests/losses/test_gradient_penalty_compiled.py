"""S15 with torch.compile: what compiles whole, and a clear word about what cannot."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.losses.adversarial import FGM
from kexue.losses.gradient_penalty import finite_difference_backward, gradient_penalty
from kexue.losses.r_drop import RDropLoss, r_drop_loss, twice

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
IDS, Y = torch.tensor([[1, 2, 2], [3, 4, 5]]), torch.tensor([0, 1])


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_r_drop_compiles_whole(kind):
    found = []
    for function in (r_drop_loss, torch.compile(r_drop_loss, fullgraph=True)):
        torch.manual_seed(0)
        p, q = (torch.randn(4, 5).requires_grad_() for _ in range(2))
        loss = function(p, q, kind=kind, weight=torch.tensor([1.0, 0.0, 1.0, 2.0]))
        found.append((loss.detach(), *torch.autograd.grad(loss, (p, q))))
    torch.testing.assert_close(*found)


def test_a_compiled_step_of_r_drop_is_the_plain_one():
    loss, found = RDropLoss(), []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = nn.Linear(6, 3)
        x = torch.randn(4, 6)

        def step(x, net=net):
            return loss(net(twice(x)), torch.tensor([0, 1, 2, 0]))

        value = (torch.compile(step, fullgraph=True) if compiled else step)(x)
        value.backward()
        found.append((value.detach(), net.weight.grad))
    torch.testing.assert_close(*found)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Tanh(), nn.Linear(12, 2))


def test_fgm_and_finite_differences_go_through_a_compiled_model():
    found = []
    for compiled in (False, True):
        model = net()
        run = torch.compile(model, fullgraph=True) if compiled else model
        F.cross_entropy(run(IDS), Y).backward()
        with FGM(model[0], 0.3).perturbed():
            F.cross_entropy(run(IDS), Y).backward()
        finite_difference_backward(lambda run=run: F.cross_entropy(run(IDS), Y), model.parameters())
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_the_second_derivative_of_a_compiled_model_is_refused_at_once():
    model = net()
    loss = F.cross_entropy(torch.compile(model)(IDS), Y)
    with pytest.raises(RuntimeError, match=r"no second derivative.*uncompiled.*finite_difference"):
        gradient_penalty(loss, model)
