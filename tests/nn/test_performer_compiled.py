"""The Performer under torch.compile: one graph, forward and backward, redrawing included (S30)."""

import pytest
import torch

from kexue.nn.favor_attention import favor_attention
from kexue.nn.performer import PerformerAttention

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "causal"), [("positive", False), ("relu", True)])
def test_the_layer_is_one_graph_and_equal_to_eager(kind, causal):
    torch.manual_seed(0)
    layer = PerformerAttention(16, 2, causal=causal, kind=kind, chunk=8, rope=True).eval()
    compiled = torch.compile(layer, fullgraph=True)
    x = normal(2, 21, 16).requires_grad_()
    mask = torch.ones(2, 21, dtype=torch.bool)
    mask[0, :5] = mask[1, 17:] = False
    inputs = [x, *layer.parameters()]
    outs = [net(x, mask) for net in (layer, compiled)]
    torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=1e-5)
    plain, ours = (torch.autograd.grad(out.square().sum(), inputs) for out in outs)
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_a_compiled_layer_counts_and_redraws_without_compiling_again():
    torch.manual_seed(0)
    layer = PerformerAttention(8, 2, redraw_every=2).train()
    twin = PerformerAttention(8, 2, redraw_every=2).train()
    twin.load_state_dict(layer.state_dict())
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(6):
            x = normal(1, 6, 8, seed=step)
            out, other = compiled(x), twin(x)
            torch.testing.assert_close(out, other, rtol=0, atol=1e-5)
            out.sum().backward()
    assert int(layer.calls) == 6
    assert torch.equal(layer.omega, twin.omega)


def test_a_causal_call_compiles_with_a_state():
    q, k, v, omega = (
        normal(*shape, seed=i) for i, shape in enumerate([(1, 2, 9, 4)] * 3 + [(5, 4)])
    )

    def decode(q, k, v):
        out, state = favor_attention(q[:, :, :5], k[:, :, :5], v[:, :, :5], omega, causal=True)
        late, _ = favor_attention(
            q[:, :, 5:], k[:, :, 5:], v[:, :, 5:], omega, causal=True, state=state
        )
        return out, late

    for mine, other in zip(
        torch.compile(decode, fullgraph=True)(q, k, v), decode(q, k, v), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


def test_the_operators_pass_torchs_own_checks():
    q, k, v = (normal(2, 7, 4, seed=i) for i in range(3))
    omega, values = normal(5, 4, seed=3), torch.nn.functional.pad(v, (0, 1), value=1.0)
    shift, sums = k[:, :1] @ omega.mT, torch.zeros(2, 5, 5)
    inputs = [one.requires_grad_() for one in (q, k, values)]
    for causal in (False, True):
        torch.library.opcheck(
            torch.ops.kexue.favor.default,
            (*inputs, omega, shift, sums, causal, False, 3),
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )
