"""S26 under torch.compile."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.optim.guided_search import MGS, mgs_weights, mixture_log_density

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.mark.parametrize("alpha", ["adaptive", 0.25])
def test_the_weights_compile_whole(alpha):
    def vote(losses, delta, grad):
        return mgs_weights(losses, mixture_log_density(delta, grad, 0.5), alpha) @ delta

    generator = torch.Generator().manual_seed(0)
    losses, delta, grad = (
        torch.randn(*shape, generator=generator) for shape in ((6,), (6, 3), (3,))
    )
    losses[2] = torch.nan
    found = torch.compile(vote, fullgraph=True)(losses, delta, grad)
    torch.testing.assert_close(found, vote(losses, delta, grad))


def test_a_search_with_a_compiled_model_and_surrogate_is_the_eager_one():
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    y, ends = (x[:, 0] > 0).long(), []

    def metric(model, batch):
        return model(x).softmax(1).gather(1, 1 - y[:, None]).mean()

    def likelihood(model, batch):
        return F.cross_entropy(model(x), y)

    for compile_it in (False, True):
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.0), nn.Linear(5, 2))
        model = torch.compile(plain, fullgraph=True) if compile_it else plain
        search = MGS(model, metric, likelihood, seed=5)
        losses = torch.cat([search.step(None)["losses"] for _ in range(3)])
        ends.append((losses, [p.detach() for p in plain.parameters()]))
    torch.testing.assert_close(ends[0], ends[1])
