"""R-Drop: two predictions of one batch, and the size of its terms (S15)."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kexue.losses.divergence import kl_divergence, symmetric_kl
from kexue.losses.multilabel import multilabel_cross_entropy
from kexue.losses.r_drop import RDropLoss, r_drop_loss, twice
from naive import r_drop as naive

KINDS = ["softmax", "sigmoid"]


def pair(*shape, scale=1.0, seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, *shape, generator=random, dtype=torch.float64) * scale
    return p.to(dtype).requires_grad_(), q.to(dtype).requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
def test_the_divergence_is_that_of_the_slow_twin(kind, scale):
    p, q = pair(4, 5, scale=scale)
    found = r_drop_loss(p, q, alpha=3.0, kind=kind, reduction="none")
    expected = [
        0.75 * naive.symmetric(a, b, kind) for a, b in zip(p.tolist(), q.tolist(), strict=True)
    ]
    torch.testing.assert_close(found.tolist(), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_sum_of_both_directions(kind):
    p, q = pair(6, 4, scale=3.0)
    both = kl_divergence(p, q, kind=kind) + kl_divergence(q, p, kind=kind)
    torch.testing.assert_close(symmetric_kl(p, q, kind=kind), both, rtol=1e-12, atol=1e-14)


def test_kl_agrees_with_torch():
    p, q = pair(6, 4)
    expected = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True)
    torch.testing.assert_close(kl_divergence(p, q), expected.sum(-1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_the_article_is_half_of_the_paper(kind):
    p, q = pair(4, 3)
    y = torch.tensor([0, 2, 1, 1]) if kind == "softmax" else torch.eye(4, 3)
    ce = F.cross_entropy if kind == "softmax" else multilabel_cross_entropy
    divergence = (kl_divergence(p, q, kind=kind) + kl_divergence(q, p, kind=kind)).mean()
    paper = ce(p, y) + ce(q, y) + 4 * divergence / 2
    found = RDropLoss(4.0, kind)(torch.cat([p, q]), y)
    torch.testing.assert_close(found, paper / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_predictions_cost_exactly_nothing(kind):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        p, _ = pair(50, 30, scale=20.0, dtype=dtype)
        assert r_drop_loss(p, p.detach(), kind=kind) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_never_negative_even_for_predictions_that_hardly_differ(kind):
    p, q = pair(2000, 7, dtype=torch.float32)
    near = p + 1e-6 * q
    assert (r_drop_loss(p, near, kind=kind, reduction="none") >= 0).all()
    naive_sum = F.kl_div(near.log_softmax(-1), p.softmax(-1), reduction="none").sum(-1)
    assert (naive_sum < 0).any()  # one direction alone, in float32, goes below zero


@pytest.mark.parametrize("kind", KINDS)
def test_exchanging_the_passes_changes_nothing(kind):
    p, q = pair(4, 5)
    assert torch.equal(r_drop_loss(p, q, kind=kind), r_drop_loss(q, p, kind=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_the_checks_and_reach_both_sides(kind):
    p, q = pair(3, 4)
    assert torch.autograd.gradcheck(lambda p, q: r_drop_loss(p, q, kind=kind), (p, q))
    assert torch.autograd.gradgradcheck(lambda p, q: r_drop_loss(p, q, kind=kind), (p, q))
    grads = torch.autograd.grad(r_drop_loss(p, q, kind=kind), (p, q))
    assert all(g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
def test_low_precision_is_computed_in_float32(kind, dtype, rtol):
    p, q = pair(16, 9, scale=4.0, dtype=dtype)
    found = r_drop_loss(p, q, kind=kind)
    assert found.dtype == torch.float32
    exact = [one.detach().double().requires_grad_() for one in (p, q)]
    expected = r_drop_loss(*exact, kind=kind)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    got = torch.autograd.grad(found, (p, q))
    want = torch.autograd.grad(expected, exact)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_lower_the_precision(kind):
    p, q = pair(16, 9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = r_drop_loss(p, q, kind=kind)
    assert torch.equal(inside, r_drop_loss(p, q, kind=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_masked_classes_take_no_part(kind):
    p, q = pair(3, 4)
    mask = torch.tensor([False, True, False, False])
    full = [one.masked_fill(mask, -torch.inf) for one in (p, q)]
    kept = [one[:, ~mask] for one in (p, q)]
    torch.testing.assert_close(r_drop_loss(*full, kind=kind), r_drop_loss(*kept, kind=kind))
    for function in (r_drop_loss, lambda a, b, kind: kl_divergence(a, b, kind=kind).sum()):
        grads = torch.autograd.grad(function(*full, kind=kind), (p, q), retain_graph=True)
        assert all(torch.isfinite(g).all() for g in grads)
        assert all(g[:, 1].abs().sum() == 0 for g in grads)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_classes_costs_nothing(kind):
    p, q = pair(2, 3)
    full = [torch.cat([one[:1], one[1:] - torch.inf]) for one in (p, q)]
    found = r_drop_loss(*full, kind=kind, reduction="none")
    assert found[1] == 0
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(found.sum(), (p, q)))


@pytest.mark.parametrize("kind", KINDS)
def test_huge_logits_stay_finite(kind):
    p = torch.tensor([[3e4, -3e4, 0.0]], requires_grad=True)
    found = r_drop_loss(p, -p, kind=kind)
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_reductions_accumulate_to_the_large_batch(kind):
    p, q = pair(6, 2, 3)
    weight = torch.tensor([1.0, 0, 1, 1, 0, 1])[:, None].expand(6, 2)
    whole = torch.autograd.grad(r_drop_loss(p, q, kind=kind, weight=weight), p)[0]
    parts, counts = [], []
    for part in (slice(0, 2), slice(2, 6)):
        total, count = r_drop_loss(
            p[part], q[part], kind=kind, weight=weight[part], reduction="sum_and_count"
        )
        parts.append(total)
        counts.append(count)
    (grad,) = torch.autograd.grad(sum(parts) / sum(counts), p)
    torch.testing.assert_close(grad, whole, rtol=1e-12, atol=1e-15)


def test_a_broken_row_of_weight_zero_leaks_nothing():
    p, q = pair(2, 3)
    bad = p * torch.tensor([[1.0], [torch.nan]])
    for found in (
        r_drop_loss(bad, q, weight=torch.tensor([1, 0])),
        RDropLoss()(torch.cat([bad, q]), torch.tensor([1, -100])),
    ):
        grads = torch.autograd.grad(found, (bad, q), retain_graph=True)
        assert all(torch.isfinite(g).all() for g in (found, *grads))


def test_twice_repeats_the_batch_in_blocks():
    ids = torch.tensor([[1, 2], [3, 4]])
    one = torch.ones(())
    found = twice({"input_ids": ids, "extra": [ids[:, 0], None], "flag": True, "scale": one})
    assert found["input_ids"].tolist() == [[1, 2], [3, 4], [1, 2], [3, 4]]
    assert found["extra"][0].tolist() == [1, 3, 1, 3]
    assert found["extra"][1] is None
    assert found["flag"] is True
    assert found["scale"] == 1
    assert twice((ids,))[0].shape == (4, 2)


def test_targets_may_be_doubled_or_not():
    p, q = pair(4, 3)
    y = torch.tensor([0, 2, 1, 1])
    loss = RDropLoss()
    assert torch.equal(loss(torch.cat([p, q]), y), loss(torch.cat([p, q]), twice(y)))


def test_ignored_rows_neither_count_nor_have_to_agree():
    p, q = pair(2, 5, 3)
    y = torch.tensor([[0, 1, -100, -100, 2], [1, -100, 0, 0, -100]])
    kept = y != -100
    found = RDropLoss()(torch.cat([p, q]), y)
    dense = RDropLoss()(torch.cat([p[kept], q[kept]]), y[kept])
    torch.testing.assert_close(found, dense)
    smooth = RDropLoss(0.0, label_smoothing=0.1)(torch.cat([p, q]), y)
    expected = F.cross_entropy(torch.cat([p[kept], q[kept]]), twice(y[kept]), label_smoothing=0.1)
    torch.testing.assert_close(smooth, expected)


def test_dropout_is_what_makes_the_passes_differ():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.3), nn.Linear(32, 3))
    x, y = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
    with_dropout = RDropLoss()(net(twice(x)), y) - RDropLoss(0.0)(net(twice(x)), y)
    net.eval()
    without = RDropLoss()(net(twice(x)), y) - RDropLoss(0.0)(net(twice(x)), y)
    assert with_dropout.abs() > 1e-2
    assert without.abs() < 1e-9


def test_training_with_it_brings_the_passes_together():
    agreement = {}
    for alpha in (0.0, 4.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 3))
        x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            RDropLoss(alpha)(net(twice(x)), y).backward()
            optimizer.step()
        agreement[alpha] = r_drop_loss(*net(twice(x)).chunk(2)).item()
    assert agreement[4.0] < agreement[0.0] / 3


def test_it_costs_two_plain_steps():
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    x, y = torch.randn(32, 64), torch.zeros(32, dtype=torch.long)
    with FlopCounterMode(display=False) as plain:
        F.cross_entropy(net(x), y).backward()
    with FlopCounterMode(display=False) as doubled:
        RDropLoss()(net(twice(x)), y).backward()
    assert doubled.get_total_flops() <= 2.1 * plain.get_total_flops()


def test_bad_input_is_named():
    p, q = pair(3, 4)
    with pytest.raises((ValueError, TypeError), match=r"one shape .*\(2, 4\)|logits_q"):
        symmetric_kl(p, q[:2])
    with pytest.raises(ValueError, match="alpha must not be negative, got -1"):
        r_drop_loss(p, q, alpha=-1.0)
    with pytest.raises(ValueError, match="alpha must not be negative, got nan"):
        RDropLoss(float("nan"))
    with pytest.raises((ValueError, TypeError), match="kind"):
        RDropLoss(kind="poisson")
    with pytest.raises((ValueError, TypeError), match="reduction"):
        r_drop_loss(p, q, reduction="avg")
    with pytest.raises(ValueError, match="rows of a batch twice, got 3"):
        RDropLoss()(p, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"need shape \(3,\) for one pass, got \(5,\)"):
        RDropLoss()(torch.cat([p, q]), torch.zeros(5, dtype=torch.long))
