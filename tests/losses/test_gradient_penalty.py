"""Gradient penalties: values and gradients, and where no second derivative exists (S15)."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kexue.losses.gradient_penalty import (
    EmbeddingGradientPenalty,
    finite_difference_backward,
    gradient_penalty,
    input_gradient_norm,
)
from kexue.losses.same_noise import SameNoise
from kexue.losses.shift import frobenius_norm
from naive import gradient_penalty as naive

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
Y = torch.tensor([0, 1, 0, 1])


def mlp(dropout=0.0, dtype=torch.float64):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 2)]
    return nn.Sequential(*layers).to(dtype)


def losses(model, x=X):
    return F.cross_entropy(model(x), Y, reduction="none")


class Tagger(nn.Module):
    """Embeds, mixes and classifies; every token but the first repeats."""

    ids = torch.tensor([[1, 2, 2, 0], [3, 2, 4, 4], [1, 1, 1, 1]])

    def __init__(self, sparse=False):
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(6, 3, sparse=sparse, dtype=torch.float64)
        self.head = nn.Linear(3, 2, dtype=torch.float64)

    def loss(self):
        hidden = self.embedding(self.ids).tanh().mean(1)
        return F.cross_entropy(self.head(hidden), torch.tensor([0, 1, 0]))


def test_the_input_penalty_of_each_sample_is_that_of_the_sample_alone():
    model, x = mlp(), X.clone().requires_grad_()
    found = gradient_penalty(losses(model, x), x, reduction="none")
    alone = []
    for row, target in zip(X.split(1), Y.split(1), strict=True):
        alone.append(naive.input_squares(lambda r, y=target: F.cross_entropy(model(r), y), row))
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-12, atol=0)


def test_the_parameter_penalty_is_the_squared_gradient_of_the_batch():
    model = mlp()
    found = gradient_penalty(losses(model).mean(), model)
    losses(model).mean().backward()
    expected = sum(p.grad.square().sum() for p in model.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_squared_gradient_of_the_mean_is_below_the_mean_of_the_squares():
    model = mlp()
    batch = gradient_penalty(losses(model).mean(), model)
    samples = naive.parameter_squares(
        model, [(X[i : i + 1], Y[i : i + 1]) for i in range(4)], F.cross_entropy
    )
    assert batch < samples.mean()


def test_the_gradient_of_the_penalised_loss_is_its_difference_quotient():
    model = mlp()
    loss = losses(model).mean()
    (loss + 0.5 * gradient_penalty(loss, model)).backward()
    expected = naive.penalised_gradients(model, lambda m: losses(m).mean(), 0.5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-6, atol=1e-9)


def test_input_penalties_pass_the_checks_of_both_derivatives():
    weight = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def penalty(x, w):
        return gradient_penalty(((x @ w).tanh() ** 3).sum(1), x)

    inputs = (X.clone().requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(penalty, inputs)
    assert torch.autograd.gradgradcheck(penalty, inputs)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accumulated_gradients_equal_those_of_the_large_batch(reduction):
    model, other = mlp(), mlp()
    x = X.clone().requires_grad_()
    whole = gradient_penalty(losses(model, x), x, reduction=reduction)
    whole.backward()
    for part in (slice(0, 1), slice(1, 4)):
        piece = X[part].clone().requires_grad_()
        each = F.cross_entropy(other(piece), Y[part], reduction="none")
        total, count = gradient_penalty(each, piece, reduction="sum_and_count")
        assert count == len(piece)
        (total / (4 if reduction == "mean" else 1)).backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-15)


def test_a_sample_of_weight_zero_does_not_count():
    model, x = mlp(), X.clone().requires_grad_()
    each = gradient_penalty(losses(model, x), x, reduction="none")
    x = X.clone().requires_grad_()
    weight = torch.tensor([1.0, 0.0, 1.0, 0.0])
    found = gradient_penalty(losses(model, x), x, weight=weight)
    torch.testing.assert_close(found, (each[0] + each[2]) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_gradients_are_squared_in_float32(dtype):
    x = torch.tensor([300.0, 1.0], dtype=dtype, requires_grad=True)
    penalty = gradient_penalty((x.square() / 2).sum(), x)  # 300² overflows float16
    assert penalty.dtype == torch.float32
    torch.testing.assert_close(penalty, torch.tensor(90001.0), rtol=1e-2, atol=0)


def test_a_scale_rescues_gradients_that_float16_would_lose():
    x = torch.ones(4, dtype=torch.float16, requires_grad=True)
    value = (x.float() * 1e-9).sum()
    assert gradient_penalty(value, x) == 0
    value = (x.float() * 1e-9).sum()
    found = gradient_penalty(value, x, scale=2.0**14)
    torch.testing.assert_close(found, torch.tensor(4e-18), rtol=1e-2, atol=0)


def test_unused_tensors_count_zero_and_all_unused_is_an_error():
    x, other = X.clone().requires_grad_(), torch.ones(2, requires_grad=True)
    value = x.square().sum()
    torch.testing.assert_close(gradient_penalty(value, [x, other]), 4 * X.square().sum())
    with pytest.raises(ValueError, match="does not depend on any tensor"):
        gradient_penalty(value, other)


def test_bad_input_is_named():
    model, x = mlp(), X.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"tensor 0 of wrt, shape \(4, 3\), does not require"):
        gradient_penalty(losses(model).sum(), X)
    with pytest.raises(ValueError, match="holds no tensor"):
        gradient_penalty(losses(model).sum(), [])
    with pytest.raises(ValueError, match=r"parameter 0 of wrt has shape \(5, 3\)"):
        gradient_penalty(losses(model), model)
    with pytest.raises(ValueError, match=r"tensor 0 of wrt has shape \(2, 3\)"):
        gradient_penalty(losses(model), X[:2].clone().requires_grad_())
    with pytest.raises(ValueError, match=r"got shape \(4, 2\)"):
        gradient_penalty(model(x), x)
    with pytest.raises((ValueError, TypeError), match="reduction"):  # the shape hook is first
        gradient_penalty(losses(model, x), x, reduction="avg")
    with pytest.raises(ValueError, match="no graph"):
        gradient_penalty(torch.ones(()), x)


def test_input_norms_survive_where_their_squares_vanish():
    x = torch.ones(2, 3, dtype=torch.float64)
    found = input_gradient_norm(lambda x: 1e-200 * x, x, None, lambda out, _: out.sum(1))
    expected = torch.full((2,), math.sqrt(3) * 1e-200, dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-14)
    assert frobenius_norm(torch.zeros(3)) == 0
    with pytest.raises(ValueError, match=r"one value per sample, \(2,\), got shape \(\)"):
        input_gradient_norm(lambda x: x, x, None, lambda out, _: out.sum())


# --- finite differences ---------------------------------------------------------------------------


@pytest.mark.parametrize("only", [None, "0.weight"])
def test_finite_differences_agree_with_double_backward_to_first_order(only):
    model, errors = mlp(), []
    names = None if only is None else {only}
    expected = naive.penalised_gradients(model, lambda m: losses(m).mean(), 0.5, names)
    size = torch.cat([g.flatten() for g in expected.values()]).norm()
    for epsilon in (1e-2, 1e-3, 1e-4):
        model.zero_grad()
        wrt = None if only is None else dict(model.named_parameters())[only]
        loss, penalty = finite_difference_backward(
            lambda: losses(model).mean(), model.parameters(), wrt=wrt, epsilon=epsilon
        )
        found = torch.cat([p.grad.flatten() for p in model.parameters()])
        errors.append((found - torch.cat([g.flatten() for g in expected.values()])).norm() / size)
        exact = gradient_penalty(losses(model).mean(), model if wrt is None else wrt)
        torch.testing.assert_close(penalty, exact.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(loss, losses(model).mean().detach())
    assert errors[0] < 2e-2
    assert errors[1] < errors[0] / 8  # ten times the step, ten times the error
    assert errors[2] < errors[1] / 8


def test_finite_differences_drop_the_same_units_and_leave_the_weights_alone():
    model = mlp(dropout=0.5)
    before = [p.detach().clone() for p in model.parameters()]
    outputs = []

    def closure():
        outputs.append(model(X).detach())
        return F.cross_entropy(model(X), Y)

    finite_difference_backward(closure, model.parameters(), epsilon=1e-9)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-6, atol=1e-8)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_finite_differences_add_to_the_gradients_that_are_there():
    model, again = mlp(), mlp()
    finite_difference_backward(lambda: losses(model).mean(), model.parameters())
    losses(again).sum().backward()
    start = [p.grad.clone() for p in again.parameters()]
    finite_difference_backward(lambda: losses(again).mean(), again.parameters())
    for p, q, old in zip(model.parameters(), again.parameters(), start, strict=True):
        torch.testing.assert_close(q.grad - old, p.grad, rtol=1e-10, atol=1e-14)


def test_a_scale_multiplies_what_finite_differences_leave_behind():
    model, scaled = mlp(), mlp()
    first = finite_difference_backward(lambda: losses(model).mean(), model.parameters())
    again = finite_difference_backward(
        lambda: losses(scaled).mean(), scaled.parameters(), scale=2.0**10
    )
    torch.testing.assert_close(again, first)
    for p, q in zip(model.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(q.grad / 2**10, p.grad)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_finite_differences_do_nothing_where_the_gradient_is_useless(value):
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    finite_difference_backward(lambda: (w * torch.tensor([value, 0.0])).sum(), [w])
    assert w.tolist() == [1.0, 2.0]
    torch.testing.assert_close(w.grad, torch.tensor([value, 0.0]), equal_nan=True)


def test_finite_differences_refuse_what_they_cannot_do():
    w, other = (torch.ones(2, requires_grad=True) for _ in range(2))
    with pytest.raises(ValueError, match="epsilon must be positive, got 0"):
        finite_difference_backward(lambda: w.sum(), [w], epsilon=0.0)
    with pytest.raises(ValueError, match=r"shape \(2,\), is not in parameters"):
        finite_difference_backward(lambda: w.sum(), [w], wrt=other)
    half = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    with pytest.raises(ValueError, match="bfloat16, too coarse"):
        finite_difference_backward(lambda: half.sum(), [half])


def test_finite_differences_work_through_fused_attention():
    q = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def closure():
        return F.scaled_dot_product_attention(q, q, q).square().sum()

    finite_difference_backward(closure, [q], epsilon=1e-3)
    with sdpa_kernel(SDPBackend.MATH):
        loss = closure()
    (exact,) = torch.autograd.grad(loss + 0.5 * gradient_penalty(loss, q), q)
    assert (q.grad - exact).norm() / exact.norm() < 1e-2


def test_same_noise_leaves_the_outer_stream_where_it_was():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    noise = SameNoise(torch.device("cpu"))
    with noise.replay():
        torch.rand(100)
    assert torch.equal(torch.rand(4), expected)


# --- embedding tables -----------------------------------------------------------------------------


def test_the_table_adds_up_repeated_tokens_and_the_lookups_do_not():
    model = Tagger()
    at_table = EmbeddingGradientPenalty(model.embedding, coef=1.0)
    at_lookups = EmbeddingGradientPenalty(model.embedding, coef=1.0, at="lookups")
    loss = model.loss()
    found = at_table(loss), at_lookups(loss)

    looked_up = model.embedding.weight[model.ids].detach().requires_grad_()
    value = F.cross_entropy(model.head(looked_up.tanh().mean(1)), torch.tensor([0, 1, 0]))
    (each,) = torch.autograd.grad(value, looked_up)
    table = torch.zeros_like(model.embedding.weight)
    table.index_add_(0, model.ids.flatten(), each.flatten(0, 1))
    torch.testing.assert_close(found[0], table.square().sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1], each.square().sum(), rtol=1e-12, atol=0)
    assert found[0] > 1.1 * found[1]


@pytest.mark.parametrize(("at", "count"), [("table", 5), ("lookups", 12)])
def test_per_token_divides_by_the_rows_with_a_gradient(at, count):
    model = Tagger()
    sums, means = (
        EmbeddingGradientPenalty(model.embedding, normalize=how, at=at)
        for how in (None, "per_token")
    )
    loss = model.loss()
    torch.testing.assert_close(sums(loss) / count, means(loss), rtol=1e-12, atol=0)


@pytest.mark.parametrize("normalize", [None, "per_token"])
@pytest.mark.parametrize("at", ["table", "lookups"])
def test_the_embedding_penalty_trains_every_weight(at, normalize):
    model = Tagger()
    penalty = EmbeddingGradientPenalty(model.embedding, normalize=normalize, at=at)
    loss = model.loss()
    (loss + penalty(loss)).backward()
    plain = Tagger()
    plain.loss().backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.isfinite(p.grad).all()
        assert not torch.allclose(p.grad, q.grad)


def test_the_embedding_penalty_matches_the_difference_quotient():
    model = Tagger()
    loss = model.loss()
    (loss + EmbeddingGradientPenalty(model.embedding)(loss)).backward()
    expected = naive.penalised_gradients(model, Tagger.loss, 0.5, {"embedding.weight"})
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-6, atol=1e-9)


def test_sparse_tables_are_penalised_like_dense_ones():
    found = []
    for sparse in (False, True):
        model = Tagger(sparse)
        penalty = EmbeddingGradientPenalty(model.embedding)(model.loss())
        found.append((penalty, *torch.autograd.grad(penalty, [model.head.weight])))
    torch.testing.assert_close(*found)


def test_lookups_are_forgotten_after_the_call_and_need_gradients():
    model = Tagger()
    penalty = EmbeddingGradientPenalty(model.embedding, at="lookups")
    with torch.no_grad():
        model.loss()
    with pytest.raises(ValueError, match="was not looked up since"):
        penalty(torch.zeros((), requires_grad=True))
    loss = model.loss()
    penalty(loss)
    with pytest.raises(ValueError, match="was not looked up since"):
        penalty(loss)
    penalty.remove()
    model.loss()
    assert penalty._lookups == []


def test_tables_that_cannot_be_penalised_are_named():
    with pytest.raises(ValueError, match="Tanh has no parameter called weight"):
        EmbeddingGradientPenalty(nn.Tanh())
    with pytest.raises(ValueError, match="frozen"):
        EmbeddingGradientPenalty(nn.Embedding.from_pretrained(torch.ones(2, 2)))
    table = nn.Embedding(2, 2)
    with pytest.raises(ValueError, match="coef must not be negative, got -1"):
        EmbeddingGradientPenalty(table, coef=-1.0)
    with pytest.raises(ValueError, match="needs the embedding module"):
        EmbeddingGradientPenalty(table.weight, at="lookups")
    for option in ({"normalize": "batch"}, {"at": "rows"}):
        with pytest.raises((ValueError, TypeError), match=next(iter(option))):
            EmbeddingGradientPenalty(table, **option)


# --- no second derivative -------------------------------------------------------------------------


def test_fused_attention_is_refused_with_the_way_out():
    x = torch.randn(1, 2, 4, 8).requires_grad_()
    loss = F.scaled_dot_product_attention(x, x, x).square().sum()
    with pytest.raises(
        RuntimeError, match=r"ScaledDotProductFlash.*attn_implementation='eager'.*MATH"
    ):
        gradient_penalty(loss, x)
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.scaled_dot_product_attention(x, x, x).square().sum()
    gradient_penalty(loss, x).backward()
    assert torch.isfinite(x.grad).all()


def test_other_errors_of_torch_pass_unchanged():
    x = torch.ones(2, requires_grad=True)
    loss = x.square().sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gradient_penalty(loss, x)


def test_a_real_encoder_trains_with_the_penalty_once_attention_is_eager():
    from transformers import BertConfig, BertForSequenceClassification

    size = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids, labels = torch.randint(1, 30, (3, 7)), torch.tensor([0, 1, 0])
    for attention, works in (("sdpa", False), ("eager", True)):
        config = BertConfig(**size, intermediate_size=32, attn_implementation=attention)
        config.attention_probs_dropout_prob = 0.0
        model = BertForSequenceClassification(config)
        penalty = EmbeddingGradientPenalty(model.get_input_embeddings())
        loss = model(input_ids=ids, labels=labels).loss
        if works:
            (loss + penalty(loss)).backward()
            assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        else:
            with pytest.raises(RuntimeError, match="attn_implementation='eager'"):
                penalty(loss)
