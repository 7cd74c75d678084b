"""ZLPR, S37: the multi-label cross-entropy beside other losses, its mask, its probabilities."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kexue.losses import multilabel_cross_entropy
from kexue.losses.imbalance import ZLPRLoss, zlpr_loss, zlpr_probabilities
from naive.imbalance import unified_circle
from naive.multilabel import naive_multilabel_cross_entropy

REDUCTIONS = ["mean", "sum", "none", "sum_and_count"]
seeds = st.integers(0, 10_000)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator) * scale


def labels(*shape, seed=0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3).long()


def value_and_grad(loss_of, scores):
    scores = scores.detach().clone().requires_grad_()
    loss = loss_of(scores)
    return loss.detach(), torch.autograd.grad(loss.sum(), scores)[0]


def close(ours, expected, rtol=1e-12, atol=1e-14):
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)


def summed_bce(scores, targets):
    targets = targets.to(scores)
    return F.binary_cross_entropy_with_logits(scores, targets, reduction="none").sum(-1)


class TestWorkedNumbers:
    def test_hard_targets(self):
        loss = zlpr_loss(double([[1.5, -0.5, 0.2]]), torch.tensor([[1, 0, 0]]))
        assert loss.item() == pytest.approx(1.2409594818476974, abs=1e-10)

    def test_soft_targets(self):
        loss = zlpr_loss(double([[0.7, -0.1]]), double([[0.8, 0.4]]))
        assert loss.item() == pytest.approx(1.2750026181342904, abs=1e-10)


class TestBesideOtherLosses:
    @settings(max_examples=40, deadline=None)
    @given(seeds, st.integers(1, 12), st.sampled_from([0.1, 1.0, 10.0, 1000.0]))
    def test_for_hard_targets_it_never_exceeds_the_sum_of_binary_cross_entropies(
        self, seed, classes, scale
    ):
        scores, targets = (
            normal(20, classes, seed=seed, scale=scale),
            labels(20, classes, seed=seed),
        )
        ours = multilabel_cross_entropy(scores, targets, reduction="none")
        assert (ours <= summed_bce(scores, targets) * (1 + 1e-12) + 1e-12).all()

    def test_for_soft_targets_it_exceeds_it_about_half_of_the_time(self):
        scores, targets = normal(4000, 3, scale=2.0), torch.rand(4000, 3).double()
        more = multilabel_cross_entropy(scores, targets, reduction="none") > summed_bce(
            scores, targets
        )
        assert 0.2 < more.double().mean() < 0.8

    def test_one_wrong_and_one_right_class_are_their_binary_cross_entropies(self):
        scores, targets = normal(10, 2), torch.tensor([[1, 0]] * 10)
        ours = multilabel_cross_entropy(scores, targets, reduction="none")
        close(ours, summed_bce(scores, targets))

    def test_the_pairwise_form_with_one_positive_is_softmax_cross_entropy(self):
        scores, label = normal(10, 5), torch.arange(10) % 5
        pairs = unified_circle(scores, F.one_hot(label, 5))
        close(pairs, F.cross_entropy(scores, label, reduction="none"))

    def test_the_threshold_class_makes_it_differ_from_softmax_with_one_positive(self):
        scores, label = normal(10, 5), torch.arange(10) % 5
        ours = multilabel_cross_entropy(scores, F.one_hot(label, 5), reduction="none")
        softmax = F.cross_entropy(scores, label, reduction="none")
        assert (ours > softmax).all()
        shifted = multilabel_cross_entropy(scores + 1, F.one_hot(label, 5), reduction="none")
        assert (ours - shifted).abs().min() > 1e-3  # softmax would not notice

    def test_it_is_the_pairwise_form_with_a_threshold_class_on_both_sides(self):
        scores, targets = normal(10, 5), labels(10, 5)
        ours = multilabel_cross_entropy(scores, targets, reduction="none")
        negatives = (scores.exp() * (1 - targets)).sum(-1)
        positives = ((-scores).exp() * targets).sum(-1)
        pairs = unified_circle(scores, targets).exp() - 1
        close(ours.exp(), 1 + negatives + positives + pairs)


class TestSoftTargets:
    @settings(max_examples=30, deadline=None)
    @given(seeds, st.integers(1, 8))
    def test_the_gradient_is_zero_where_the_targets_are_sigmoid_of_twice_the_scores(
        self, seed, classes
    ):
        scores = normal(6, classes, seed=seed, scale=2.0)
        _, grad = value_and_grad(
            lambda s: multilabel_cross_entropy(s, zlpr_probabilities(s.detach())), scores
        )
        # 1 − target is known to eps and weighs e^s, in its own term and in the sums of its row
        rounding = torch.finfo(grad.dtype).eps * scores.detach().abs().exp().sum(1, keepdim=True)
        assert (grad.abs() <= rounding).all()

    def test_that_point_is_the_global_minimum(self):
        targets = normal(50, 4).sigmoid()
        best = (targets.log() - (1 - targets).log()) / 2
        least = multilabel_cross_entropy(best, targets, reduction="none")
        for seed, scale in ((1, 1e-3), (2, 0.1), (3, 1.0), (4, 30.0)):
            elsewhere = best + normal(50, 4, seed=seed, scale=scale)
            assert (multilabel_cross_entropy(elsewhere, targets, reduction="none") > least).all()

    def test_descent_finds_it_so_that_sigmoid_of_the_score_would_be_the_wrong_probability(self):
        targets = double([[0.9, 0.5, 0.2]])
        scores = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12)

        def closure():
            optimizer.zero_grad()
            loss = zlpr_loss(scores, targets)
            loss.backward()
            return loss

        optimizer.step(closure)
        close(zlpr_probabilities(scores.detach()), targets, rtol=0, atol=1e-5)
        assert abs(scores.detach().sigmoid()[0, 0].item() - 0.9) > 0.1

    @settings(max_examples=20, deadline=None)
    @given(seeds, st.sampled_from([1.0, 50.0, 1e4]))
    def test_it_is_never_negative_nor_nan(self, seed, scale):
        scores = normal(20, 5, seed=seed, scale=scale).float()
        targets = torch.rand(20, 5, generator=torch.Generator().manual_seed(seed))
        targets[0], targets[1] = 0, 1
        loss, grad = value_and_grad(
            lambda s: multilabel_cross_entropy(s, targets, reduction="none"), scores
        )
        assert (loss >= 0).all()
        assert loss.isfinite().all()
        assert grad.isfinite().all()

    def test_targets_of_zero_and_one_are_the_hard_ones(self):
        scores, targets = normal(9, 6), labels(9, 6)
        soft = value_and_grad(lambda s: multilabel_cross_entropy(s, targets.double()), scores)
        close(soft, value_and_grad(lambda s: multilabel_cross_entropy(s, targets), scores))


class TestSets:
    def test_the_order_of_classes_does_not_matter_in_either_form(self):
        scores, order = normal(4, 7), torch.randperm(7, generator=torch.Generator().manual_seed(1))
        for targets in (labels(4, 7), normal(4, 7, seed=2).sigmoid()):
            plain = zlpr_loss(scores, targets, reduction="none")
            close(zlpr_loss(scores[:, order], targets[:, order], reduction="none"), plain)

    def test_without_positives_the_positive_part_is_log_one(self):
        scores = normal(4, 7)
        for nothing in (torch.zeros(4, 7).long(), torch.zeros(4, 7).double()):
            loss = zlpr_loss(scores, nothing, reduction="none")
            close(loss, scores.exp().sum(-1).log1p())

    def test_a_class_that_is_not_valid_changes_nothing_whatever_stands_there(self):
        scores, targets = normal(4, 5), labels(4, 5)
        expected = value_and_grad(lambda s: zlpr_loss(s, targets), scores)
        for junk in (0.0, 1e4, torch.inf, torch.nan):
            padded = F.pad(scores, (0, 2), value=junk)
            valid = F.pad(torch.ones(4, 5, dtype=torch.bool), (0, 2))
            for more in (F.pad(targets, (0, 2), value=1), F.pad(targets, (0, 2), value=-100)):
                loss, grad = value_and_grad(
                    lambda s, t=more, v=valid: zlpr_loss(s, t, valid=v), padded
                )
                close((loss, grad[:, :5]), expected)
                assert (grad[:, 5:] == 0).all()

    def test_the_mask_holds_in_float16_where_a_big_constant_overflows(self):
        scores, valid = torch.zeros(1, 3).half(), torch.tensor([[True, True, False]])
        loss = zlpr_loss(scores, torch.tensor([[1, 0, 0]]), valid=valid)
        assert loss.item() == pytest.approx(2 * math.log(2), rel=1e-6)
        assert torch.tensor(-1e12).half().isinf()

    def test_masked_sets_count_neither_in_the_sum_nor_in_the_mean(self):
        scores, targets = normal(4, 5), labels(4, 5)
        mask = torch.tensor([True, False, True, True])
        dirty = torch.where(mask[:, None], scores, torch.nan)
        expected = zlpr_loss(scores[mask], targets[mask])
        loss, grad = value_and_grad(lambda s: zlpr_loss(s, targets, mask=mask), dirty)
        close(loss, expected)
        assert (grad[1] == 0).all()

    @settings(max_examples=30, deadline=None)
    @given(seeds)
    def test_duplicates_count_once(self, seed):
        generator = torch.Generator().manual_seed(seed)
        index = torch.randint(-1, 6, (5, 3), generator=generator)
        scores = normal(5, 6, seed=seed)
        once = value_and_grad(lambda s: multilabel_cross_entropy(s, positive_index=index), scores)
        twice = torch.cat([index, index.flip(-1), index[:, :1]], dim=-1)
        close(
            value_and_grad(lambda s: multilabel_cross_entropy(s, positive_index=twice), scores),
            once,
        )

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("kind", ["dense", "soft", "sparse", "masked"])
    def test_every_form_has_every_reduction(self, kind, reduction):
        scores, targets = normal(3, 2, 5), labels(3, 2, 5)
        index = torch.randint(-1, 5, (3, 2, 2), generator=torch.Generator().manual_seed(3))
        loss_of = {
            "dense": lambda **o: multilabel_cross_entropy(scores, targets, **o),
            "soft": lambda **o: multilabel_cross_entropy(scores, scores.sigmoid(), **o),
            "sparse": lambda **o: multilabel_cross_entropy(scores, positive_index=index, **o),
            "masked": lambda **o: zlpr_loss(scores, targets, valid=scores > -1.5, **o),
        }[kind]
        each = loss_of(reduction="none")
        assert each.shape == (3, 2)
        expected = {
            "none": each,
            "sum": each.sum(),
            "mean": each.mean(),
            "sum_and_count": (each.sum(), 6),
        }[reduction]
        found = loss_of(reduction=reduction)
        if reduction == "sum_and_count":
            close(found[0], expected[0])
            assert found[1] == 6
        else:
            close(found, expected)

    def test_it_is_the_naive_formula_class_by_class(self):
        scores, targets = normal(9, 6, scale=2.0), labels(9, 6)
        for t in (targets, normal(9, 6, seed=2).sigmoid()):
            ours = value_and_grad(lambda s, t=t: zlpr_loss(s, t, reduction="none"), scores)
            twin = value_and_grad(
                lambda s, t=t: naive_multilabel_cross_entropy(s, t.double()), scores
            )
            close(ours, twin, rtol=1e-11)


class TestHugeScores:
    @pytest.mark.parametrize("scale", [100.0, 1e4])
    def test_loss_and_gradient_stay_finite_in_float32(self, scale):
        scores = ((torch.rand(100, 6) * 2 - 1) * scale).clone()
        scores[0], scores[1] = scale, -scale
        targets = labels(100, 6)
        loss, grad = value_and_grad(lambda s: zlpr_loss(s, targets, reduction="none"), scores)
        assert loss.isfinite().all()
        assert (loss >= 0).all()
        assert grad.isfinite().all()


class TestModule:
    def test_it_is_the_function_with_its_settings(self):
        scores, targets = normal(3, 5), labels(3, 5)
        valid, mask = scores > -1, torch.tensor([True, True, False])
        module = ZLPRLoss(threshold=0.3, reduction="sum")
        expected = zlpr_loss(
            scores, targets, valid=valid, mask=mask, threshold=0.3, reduction="sum"
        )
        assert torch.equal(module(scores, targets, valid, mask), expected)
        assert torch.equal(
            pickle.loads(pickle.dumps(module))(scores, targets, valid, mask), expected
        )
        assert repr(module) == "ZLPRLoss(threshold=0.3)"

    @pytest.mark.compiled  # the shape hook of the other run speaks first
    def test_other_shapes_are_refused(self):
        scores = normal(3, 5)
        with pytest.raises(ValueError, match=r"targets must have shape \(3, 5\) .* got \(3, 4\)"):
            zlpr_loss(scores, labels(3, 4))
        with pytest.raises(ValueError, match=r"valid must have shape \(3, 5\)"):
            zlpr_loss(scores, labels(3, 5), valid=torch.ones(3, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"mask must have shape \(3,\)"):
            zlpr_loss(scores, labels(3, 5), mask=torch.ones(3, 5, dtype=torch.bool))
