"""S35 under torch.compile: one graph, whatever side of the level the loss is on."""

import pytest
import torch
from torch import nn

from kexue.losses.flooding import FloodingLoss, flooding

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.mark.parametrize("mode", ["batch", "sample", "hinge"])
def test_values_and_gradients_are_the_same_on_both_sides_with_one_graph(mode):
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def function(x):
        losses = x.square()
        loss = losses if mode == "sample" else losses.mean()
        return flooding(loss, 0.5, mode=mode)

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for size in (0.3, 0.7, 2.0):
        found = []
        for run in (function, compiled):
            x = (size * torch.tensor([1.0, 1.2, 0.8])).requires_grad_()
            value = run(x)
            value.backward()
            found.append((value.detach(), x.grad))
        torch.testing.assert_close(*found)
    assert len(graphs) == 1


def test_a_compiled_training_step_with_the_module_is_the_plain_one():
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model, loss = nn.Linear(5, 3), FloodingLoss(nn.CrossEntropyLoss(), 0.9, start=2)
        x, y = torch.randn(8, 5), torch.randint(3, (8,))

        def step(x, y, model=model, loss=loss):
            return loss(model(x), y)

        run = torch.compile(step, fullgraph=True) if compiled else step
        optimizer, values = torch.optim.SGD(model.parameters(), lr=0.5), []
        for _ in range(12):
            optimizer.zero_grad()
            value = run(x, y)
            value.backward()
            optimizer.step()
            values.append(value.item())
        found.append(values)
        assert min(values[3:]) >= 0.9 - 1e-6
        assert loss.raw.item() < 0.95
    assert found[0] == pytest.approx(found[1], abs=1e-5)
