"""Per-sample parameter-gradient norms from one backward pass, against one pass per sample (S15)."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.losses.ghost_norm import per_sample_param_grad_norm
from naive import gradient_penalty as naive

ROWS = 3


def values(out, y):
    return F.cross_entropy(out.flatten(1)[:, :4], y, reduction="none")


class Text(nn.Module):
    """Tokens in, scores out; one dense layer is used twice."""

    def __init__(self, kind="plain"):
        super().__init__()
        self.embedding = nn.Embedding(7, 6, padding_idx=0)
        self.dense = nn.Linear(6, 6, bias=kind != "unbiased")
        self.norm = nn.RMSNorm(6) if kind == "rms" else nn.LayerNorm(6)
        self.head = nn.Linear(6, 7)
        if kind == "tied":
            self.head.weight = self.embedding.weight
        self.kind = kind

    def forward(self, ids):
        h = self.embedding(ids)
        h = self.norm(h + self.dense(self.dense(h).tanh()))
        return self.head(h).mean(1)


def tokens():
    return torch.tensor([[1, 2, 2, 0], [3, 3, 3, 3], [4, 5, 6, 1]])


def dense(a, b):
    return nn.Sequential(nn.Linear(a, b), nn.GELU(), nn.Linear(b, a))


def pictures():
    wide = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(2, 1))
    return nn.Sequential(wide, nn.ReLU(), nn.Conv2d(3, 4, 2, dilation=2))


def sequences():
    wide = nn.Conv1d(2, 3, 3, padding=1, stride=2)
    return nn.Sequential(wide, nn.Tanh(), nn.Conv1d(3, 4, 3, padding="same"))


def normalised():
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 4))


NETS = {
    "vectors": lambda: (dense(5, 8), torch.randn(ROWS, 5)),
    "few tokens": lambda: (dense(9, 8), torch.randn(ROWS, 3, 9)),
    "many tokens": lambda: (dense(3, 2), torch.randn(ROWS, 11, 3)),
    "text": lambda: (Text(), tokens()),
    "text, rms": lambda: (Text("rms"), tokens()),
    "text, no bias": lambda: (Text("unbiased"), tokens()),
    "conv2d": lambda: (pictures(), torch.randn(ROWS, 2, 7, 6)),
    "conv1d": lambda: (sequences(), torch.randn(ROWS, 2, 9)),
    "norm on vectors": lambda: (normalised(), torch.randn(ROWS, 5)),
}


def built(name):
    torch.manual_seed(4)
    model, x = NETS[name]()
    return model.double(), x.double() if x.is_floating_point() else x, torch.tensor([0, 3, 1])


@pytest.mark.parametrize("name", NETS)
def test_ghost_norms_equal_those_of_every_sample_alone(name):
    model, x, y = built(name)
    samples = [(x[i : i + 1], y[i : i + 1]) for i in range(ROWS)]
    expected = naive.parameter_squares(model, samples, values)
    found = per_sample_param_grad_norm(model, x, y, values, squared=True)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
    assert not found.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["vectors", "text", "conv2d"])
def test_vmap_gives_the_same(name):
    model, x, y = built(name)
    expected = per_sample_param_grad_norm(model, x, y, values)
    for chunk in (None, 2):
        found = per_sample_param_grad_norm(model, x, y, values, method="vmap", chunk_size=chunk)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", ["vectors", "few tokens", "many tokens", "text"])
def test_ghost_norms_can_be_penalised(name):
    model, x, y = built(name)
    per_sample_param_grad_norm(
        model, x, y, values, squared=True, create_graph=True
    ).sum().backward()
    params, expected = list(model.parameters()), None
    for i in range(ROWS):
        value = values(model(x[i : i + 1]), y[i : i + 1]).sum()
        grads = torch.autograd.grad(value, params, create_graph=True)
        part = torch.autograd.grad(sum(g.square().sum() for g in grads), params, allow_unused=True)
        part = [torch.zeros_like(p) if g is None else g for p, g in zip(params, part, strict=True)]
        expected = (
            part if expected is None else [a + b for a, b in zip(expected, part, strict=True)]
        )
    for p, grad in zip(params, expected, strict=True):
        torch.testing.assert_close(
            torch.zeros_like(p) if p.grad is None else p.grad, grad, rtol=1e-9, atol=1e-12
        )


def test_frozen_parameters_do_not_count():
    model, x, y = built("vectors")
    model[0].weight.requires_grad_(False)
    samples = [(x[i : i + 1], y[i : i + 1]) for i in range(ROWS)]
    expected = naive.parameter_squares(model, samples, values)
    found = per_sample_param_grad_norm(model, x, y, values, squared=True)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


def test_arguments_come_as_tuples_or_mappings():
    model, x, y = built("vectors")
    expected = per_sample_param_grad_norm(model, x, y, values)
    for given in ((x,), {"input": x}):
        assert torch.equal(per_sample_param_grad_norm(model, given, y, values), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_norms_are_taken_in_float32(dtype):
    model = nn.Linear(2, 1, bias=False).to(dtype)
    x = torch.full((1, 2), 200.0, dtype=dtype)
    found = per_sample_param_grad_norm(model, x, None, lambda out, _: 100 * out[:, 0])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([20000 * 2**0.5]), rtol=1e-2, atol=0)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return F.linear(self.dense(x) * self.scale, self.dense.weight)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


def folded():
    return nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 4), nn.Unflatten(0, (ROWS, 2)))


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), Own()), torch.ones(ROWS, 4), "parameter 1.scale is used"),
        (Attends(), torch.ones(ROWS, 2, 4), "parameter attention.in_proj_weight is used"),
        (nn.Conv1d(4, 4, 1, groups=2), torch.ones(ROWS, 4, 5), "parameter weight is used outside"),
        (Text("tied"), torch.ones(ROWS, 3, dtype=torch.long), "embedding.weight is tied between"),
        (folded(), torch.ones(ROWS, 2, 4), "1 sees 6 rows for 3 samples"),
        (nn.BatchNorm1d(4), torch.ones(ROWS, 4), "mixes the samples"),
    ],
)
def test_what_the_ghost_cannot_see_is_named(model, x, message):
    with pytest.raises(ValueError, match=message):
        per_sample_param_grad_norm(model, x, torch.tensor([0, 1, 2]), values)


def test_a_parameter_used_by_its_module_and_beside_it_is_found_out():
    model = Own()
    model.scale.requires_grad_(False)
    with pytest.raises(ValueError, match=r"parameter dense\.weight is used outside"):
        per_sample_param_grad_norm(model, torch.ones(ROWS, 4), torch.tensor([0, 1, 2]), values)
    found = per_sample_param_grad_norm(
        model, torch.ones(ROWS, 4), torch.tensor([0, 1, 2]), values, method="vmap"
    )
    assert torch.isfinite(found).all()


def test_a_loss_of_the_batch_is_refused():
    model, x, y = built("vectors")
    with pytest.raises(ValueError, match=r"one value per sample, \(B,\), got shape \(\)"):
        per_sample_param_grad_norm(model, x, y, lambda out, y: values(out, y).mean())
    with pytest.raises((ValueError, TypeError), match="method"):
        per_sample_param_grad_norm(model, x, y, values, method="jvp")


def test_the_ghost_needs_memory_of_the_widths_not_of_the_parameters():
    sizes = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                o.numel() for o in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(o)
            )
            return out

    model = nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 4))
    with Largest():
        per_sample_param_grad_norm(
            model, torch.randn(50, 300), torch.zeros(50, dtype=torch.long), values
        )
    assert max(sizes) <= 300 * 300  # the weight itself (as a view); all samples' would be 4,500,000


def test_a_bert_of_transformers_is_covered():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    size = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**size, intermediate_size=32)).eval().double()
    ids, y = torch.randint(1, 30, (3, 7)), torch.tensor([0, 1, 0])

    def loss(out, y):
        return F.cross_entropy(out.logits, y, reduction="none")

    expected = naive.parameter_squares(
        model, [(ids[i : i + 1], y[i : i + 1]) for i in range(3)], loss
    )
    found = per_sample_param_grad_norm(model, {"input_ids": ids}, y, loss, squared=True)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
