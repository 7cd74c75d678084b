"""Class imbalance, S37: the losses over single logits (sigmoid), element by element."""

import math
import pickle

import pytest
import torch
from torch.nn import functional as F

from kexue.losses.imbalance import (
    GHMCLoss,
    HardTruncatedLoss,
    SigmoidDiceLoss,
    SigmoidFocalLoss,
    SmoothF1WeightedBCE,
    SoftTruncatedLoss,
    f1_weighted_bce,
    gradient_histogram,
    sigmoid_dice_loss,
    sigmoid_focal_loss,
    sigmoid_ghm_loss,
    sigmoid_hard_truncated_loss,
    sigmoid_soft_truncated_loss,
    smooth_f1,
)
from naive import imbalance as naive

COUNTS = torch.tensor([9.0, 2.0, 1.0, 4.0])
LOSSES = {
    "focal": sigmoid_focal_loss,
    "focal, 1/2 and alpha": lambda z, y, **o: sigmoid_focal_loss(z, y, 0.5, alpha=0.25, **o),
    "hard": sigmoid_hard_truncated_loss,
    "hard 0.6": lambda z, y, **o: sigmoid_hard_truncated_loss(z, y, 0.6, **o),
    "soft": sigmoid_soft_truncated_loss,
    "soft 5": lambda z, y, **o: sigmoid_soft_truncated_loss(z, y, 5.0, **o),
    "F1, given": lambda z, y, **o: f1_weighted_bce(z, y, 0.3, **o),
    "GHM, given": lambda z, y, **o: sigmoid_ghm_loss(z, y, 4, counts=COUNTS, **o),
    "F1": f1_weighted_bce,
    "GHM": sigmoid_ghm_loss,
    "dice": sigmoid_dice_loss,
    "dice per example": lambda z, y, **o: sigmoid_dice_loss(z, y, per_example=True, **o),
}
OF_THE_BATCH = {"F1", "GHM", "dice"}
"""Their terms depend on the other elements of the batch."""
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator) * scale


def labels(*shape, seed=0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3).long()


def value_and_grad(loss_of, z):
    z = z.detach().clone().requires_grad_()
    loss = loss_of(z)
    return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]


def close(ours, expected, rtol=1e-12, atol=1e-14):
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)


def bce(z, y, reduction="none"):
    return F.binary_cross_entropy_with_logits(z, y.to(z), reduction=reduction)


class TestWorkedNumbers:
    Z, Y = double([1.5, -0.5]), torch.tensor([1, 0])

    @pytest.mark.parametrize(
        ("loss", "expected"),
        [
            (
                lambda z, y: sigmoid_focal_loss(z, y, gamma=0.0, reduction="none"),
                [0.2014132779827524, 0.4740769841801067],
            ),
            (
                lambda z, y: sigmoid_focal_loss(z, y, gamma=2.0, reduction="none"),
                [0.0067028469265756, 0.0675734905175036],
            ),
            (
                lambda z, y: sigmoid_soft_truncated_loss(z, y, sharpness=3.0, reduction="none"),
                [0.0022129161302362, 0.0864837421635937],
            ),
        ],
        ids=["cross-entropy", "focal", "softened"],
    )
    def test_two_elements(self, loss, expected):
        close(loss(self.Z, self.Y), double(expected), rtol=0, atol=1e-10)

    def test_smooth_f1_and_its_weights(self):
        z, y = double([0.5, -1, 0.2, -2]), torch.tensor([1, 0, 0, 0])
        assert smooth_f1(z, y).item() == pytest.approx(0.48621322677101936, abs=1e-10)
        weights = f1_weighted_bce(z, y, reduction="none") / bce(z, y)
        close(weights, double([0.7568933866] + [0.2431066134] * 3), rtol=0, atol=1e-10)


class TestAgainstTheNaiveTwin:
    Z, Y = normal(8, 5, scale=2.0), labels(8, 5)

    @pytest.mark.parametrize(
        ("ours", "twin"),
        [
            (
                lambda z, y: sigmoid_focal_loss(z, y, 1.7, alpha=0.25, reduction="none"),
                lambda z, y: naive.sigmoid_focal(z, y, 1.7, 0.25),
            ),
            (
                lambda z, y: sigmoid_soft_truncated_loss(z, y, 2.5, reduction="none"),
                lambda z, y: naive.soft_truncated(z, y, 2.5),
            ),
            (
                lambda z, y: sigmoid_hard_truncated_loss(z, y, 0.6, reduction="none"),
                lambda z, y: naive.hard_truncated(z, y, 0.6),
            ),
            (lambda z, y: f1_weighted_bce(z, y, reduction="none"), naive.f1_weighted),
            (
                lambda z, y: sigmoid_dice_loss(z, y, smooth=0.7),
                lambda z, y: naive.dice(z, y, 0.7),
            ),
            (
                lambda z, y: sigmoid_ghm_loss(z, y, 7, reduction="none"),
                lambda z, y: naive.ghm(z, y, 7),
            ),
        ],
        ids=["focal", "softened", "hard", "F1", "dice", "GHM"],
    )
    @pytest.mark.parametrize("kind", ["hard", "soft"])
    def test_values_and_gradients_are_the_formula_s(self, ours, twin, kind):
        y = self.Y if kind == "hard" else normal(8, 5, seed=3).sigmoid()
        mine = value_and_grad(lambda z: ours(z, y), self.Z)
        close(mine, value_and_grad(lambda z: twin(z, y), self.Z), rtol=1e-10, atol=1e-13)

    @each_loss
    def test_autograd_agrees_with_finite_differences_twice(self, loss, request):
        if (
            request.node.callspec.id == "F1"
        ):  # finite differences cannot hold F constant, so give it
            loss = LOSSES["F1, given"]
        z, y = normal(3, 4).requires_grad_(), labels(3, 4)
        assert torch.autograd.gradcheck(lambda z: loss(z, y), [z])
        assert torch.autograd.gradgradcheck(lambda z: loss(z, y), [z])


class TestFocal:
    Z, Y = normal(50, scale=3.0), labels(50)

    def test_gamma_zero_is_cross_entropy(self):
        close(sigmoid_focal_loss(self.Z, self.Y, gamma=0.0), bce(self.Z, self.Y, "mean"))

    @pytest.mark.parametrize("soft", [False, True])
    def test_it_is_the_softened_truncation_of_sharpness_one_at_gamma_one(self, soft):
        y = normal(50, seed=2).sigmoid() if soft else self.Y
        focal = value_and_grad(lambda z: sigmoid_focal_loss(z, y, gamma=1.0), self.Z)
        close(focal, value_and_grad(lambda z: sigmoid_soft_truncated_loss(z, y, 1.0), self.Z))

    def test_alpha_weighs_positives_and_the_rest_of_one_the_negatives(self):
        plain = sigmoid_focal_loss(self.Z, self.Y, reduction="none")
        factor = torch.where(self.Y == 1, 0.25, 0.75)
        close(sigmoid_focal_loss(self.Z, self.Y, alpha=0.25, reduction="none"), factor * plain)

    def test_alpha_per_class_belongs_to_the_last_axis(self):
        z, y, alpha = self.Z.view(10, 5), self.Y.view(10, 5), [0.1, 0.2, 0.5, 0.9, 0.3]
        together = sigmoid_focal_loss(z, y, alpha=alpha, reduction="none")
        for k, a in enumerate(alpha):
            one = sigmoid_focal_loss(z[:, k], y[:, k], alpha=a, reduction="none")
            close(together[:, k], one)

    def test_soft_targets_mix_the_losses_of_both_answers(self):
        t = normal(50, seed=2).sigmoid()
        yes, no = (
            sigmoid_focal_loss(self.Z, torch.full((50,), y), reduction="none") for y in (1, 0)
        )
        close(sigmoid_focal_loss(self.Z, t, reduction="none"), t * yes + (1 - t) * no)


class TestTruncation:
    Z, Y = normal(200, scale=2.0), labels(200)

    def test_hard_costs_what_is_not_right_yet_its_cross_entropy_and_the_rest_nothing(self):
        losses, grads = value_and_grad(
            lambda z: sigmoid_hard_truncated_loss(z, self.Y, 0.6, reduction="none"), self.Z
        )
        plain, plain_grads = value_and_grad(lambda z: bce(z, self.Y), self.Z)
        p = self.Z.sigmoid()
        counts = torch.where(self.Y == 1, p <= 0.6, p >= 0.4)
        assert 0 < counts.sum() < 200
        close(losses, plain * counts)
        close(grads, plain_grads * counts)

    def test_softened_tends_to_hard_as_it_gets_sharper(self):
        z = self.Z[self.Z.abs() > 0.01]
        y = self.Y[self.Z.abs() > 0.01]
        hard = sigmoid_hard_truncated_loss(z, y, reduction="none")
        gaps = [
            (sigmoid_soft_truncated_loss(z, y, sharpness, reduction="none") - hard).abs().max()
            for sharpness in (1.0, 10.0, 100.0, 1e4)
        ]
        assert gaps == sorted(gaps, reverse=True)
        assert gaps[-1] < 1e-12

    def test_the_gradient_flows_through_the_softened_weight(self):
        z = self.Z.clone().requires_grad_()
        sigmoid_soft_truncated_loss(z, self.Y, 3.0, reduction="sum").backward()
        m = torch.where(self.Y == 1, self.Z, -self.Z)
        held = torch.sigmoid(-3 * m) * (torch.sigmoid(m) - 1) * torch.where(self.Y == 1, 1, -1)
        assert (z.grad - held).abs().max() > 0.1


class TestSmoothF1:
    Z, Y = normal(60), labels(60)

    def test_with_f1_one_it_is_half_the_cross_entropy(self):
        close(f1_weighted_bce(self.Z, self.Y, 1.0), 0.5 * bce(self.Z, self.Y, "mean"))

    def test_f1_of_certain_predictions_is_that_of_scikit_learn(self):
        from sklearn.metrics import f1_score

        predicted = labels(60, seed=4)
        f1 = smooth_f1(200.0 * (2 * predicted.double() - 1), self.Y)
        assert f1.item() == pytest.approx(f1_score(self.Y, predicted), abs=1e-12)

    def test_its_gradient_is_that_of_f1_with_log_p_written_for_p(self):
        """d(−F) ∝ −(1 − F/2) y dp + (F/2) (1 − y) dp, and dp becomes dlog p or −dlog(1 − p)."""
        z = self.Z.clone().requires_grad_()
        p = z.sigmoid()
        top, bottom = (self.Y * p).sum(), (self.Y + p).sum()
        (2 * top / bottom).backward()
        f1 = float((2 * top / bottom).detach())
        slope = (p * (1 - p)).detach()
        right = torch.where(self.Y == 1, p, 1 - p).detach()
        written = -z.grad * bottom.detach() / 2 * (1 - right) / slope
        _, grad = value_and_grad(lambda z: f1_weighted_bce(z, self.Y, f1, reduction="sum"), self.Z)
        close(grad, written, rtol=1e-10)

    def test_a_batch_without_positives_teaches_nothing_by_itself(self):
        nothing = torch.zeros(60, dtype=torch.long)
        assert smooth_f1(self.Z, nothing) == 0
        assert f1_weighted_bce(self.Z, nothing) == 0

    def test_the_running_f1_starts_at_the_first_positive_and_then_follows(self):
        loss, nothing = SmoothF1WeightedBCE(momentum=0.9).double(), torch.zeros(60).long()
        assert loss(self.Z, nothing) == 0
        assert loss.f1 == 0
        loss(self.Z, self.Y)
        first = smooth_f1(self.Z, self.Y)
        close(loss.f1, first)  # nothing of the batch before
        other = labels(60, seed=9)
        value = loss(self.Z, other)
        p = self.Z.sigmoid()
        tops = [(y * p).sum() for y in (self.Y, other)]
        bottoms = [(y + p).sum() for y in (self.Y, other)]
        mixed = 2 * (0.9 * tops[0] + 0.1 * tops[1]) / (0.9 * bottoms[0] + 0.1 * bottoms[1])
        close(loss.f1, mixed)
        close(value, f1_weighted_bce(self.Z, other, mixed.item()))
        assert loss(self.Z, nothing) > 0  # now an empty batch teaches its negatives

    def test_evaluation_does_not_move_the_running_f1(self):
        loss = SmoothF1WeightedBCE()
        loss(self.Z, self.Y)
        before = loss.f1.clone()
        loss.eval()
        loss(self.Z, labels(60, seed=9))
        assert loss.f1 == before

    def test_each_class_may_have_its_own(self):
        z, y = self.Z.view(12, 5), self.Y.view(12, 5)
        each = smooth_f1(z, y, per_class=True)
        close(each, torch.stack([smooth_f1(z[:, k], y[:, k]) for k in range(5)]))
        loss = SmoothF1WeightedBCE(num_classes=5, reduction="none").double()
        close(loss(z, y), f1_weighted_bce(z, y, each, reduction="none"))
        close(loss.f1, each)
        with pytest.raises(ValueError, match=r"num_classes=5 must be the last axis .* \(60,\)"):
            loss(self.Z, self.Y)


class TestDice:
    Z, Y = normal(6, 4), labels(6, 4)

    def test_it_is_one_minus_the_smooth_f1(self):
        close(sigmoid_dice_loss(self.Z, self.Y, smooth=0.0), 1 - smooth_f1(self.Z, self.Y))

    def test_per_example_it_is_that_of_each_example_alone(self):
        each = sigmoid_dice_loss(self.Z, self.Y, per_example=True, reduction="none")
        alone = [sigmoid_dice_loss(z, y) for z, y in zip(self.Z, self.Y, strict=True)]
        close(each, torch.stack(alone))

    @pytest.mark.parametrize("smooth", [0.0, 1.0])
    @pytest.mark.parametrize("score", [-1e4, -200.0, 0.0])
    def test_no_positives_at_all_is_defined(self, smooth, score):
        z, y = torch.full((4,), score), torch.zeros(4).long()
        loss, grad = value_and_grad(lambda z: sigmoid_dice_loss(z, y, smooth), z)
        assert loss.isfinite()
        assert grad.isfinite().all()
        if score < -1:
            assert loss == (1 if smooth == 0 else 0)

    def test_its_gradient_dies_where_everything_is_badly_wrong_and_f1_weights_keep_it(self):
        z, y = torch.tensor([-12.0, 12.0]), torch.tensor([1, 0])
        _, dice = value_and_grad(lambda z: sigmoid_dice_loss(z, y), z)
        _, weighted = value_and_grad(lambda z: f1_weighted_bce(z, y), z)
        assert dice.abs().max() < 1e-4
        assert weighted[0].abs() > 0.4

    def test_an_example_in_which_nothing_counts_does_not_count(self):
        mask = torch.ones(6, 4, dtype=torch.bool)
        mask[2] = False
        kept = sigmoid_dice_loss(self.Z, self.Y, per_example=True, mask=mask)
        rest = [0, 1, 3, 4, 5]
        close(kept, sigmoid_dice_loss(self.Z[rest], self.Y[rest], per_example=True))


class TestGHM:
    Z, Y = normal(100, scale=3.0), labels(100)

    def test_one_bin_is_cross_entropy(self):
        plain = bce(self.Z, self.Y, "mean")
        close(sigmoid_ghm_loss(self.Z, self.Y, bins=1), plain)
        module = GHMCLoss(bins=1).double()
        module(self.Z[:50], self.Y[:50])  # a smaller batch before does not matter
        close(module(self.Z, self.Y), plain)

    @pytest.mark.parametrize("bins", [2, 10, 30])
    def test_every_used_bin_weighs_the_same_and_weights_have_mean_one(self, bins):
        weight = sigmoid_ghm_loss(self.Z, self.Y, bins, reduction="none") / bce(self.Z, self.Y)
        assert weight.mean().item() == pytest.approx(1, abs=1e-12)
        g = (self.Z.sigmoid() - self.Y).abs()
        where = (g * bins).floor().clamp(max=bins - 1)
        totals = torch.stack([weight[where == b].sum() for b in where.unique()])
        close(totals, totals[0].expand_as(totals))

    def test_a_gradient_of_one_joins_the_last_bin(self):
        z, y = torch.tensor([200.0, -200.0, 0.0]), torch.tensor([0, 1, 1])
        assert gradient_histogram(z, y, bins=4).tolist() == [0, 0, 1, 2]

    def test_running_counts_start_at_the_first_batch_and_then_follow(self):
        module, other = GHMCLoss(bins=4, momentum=0.75).double(), labels(100, seed=7)
        close(module(self.Z, self.Y), sigmoid_ghm_loss(self.Z, self.Y, 4))
        first, second = (gradient_histogram(self.Z, y, 4) for y in (self.Y, other))
        value = module(self.Z, other)
        close(module.counts, 0.75 * first + 0.25 * second)
        close(value, sigmoid_ghm_loss(self.Z, other, 4, counts=module.counts))

    def test_a_bin_that_faded_away_or_was_never_seen_counts_one_example_when_it_is_used(self):
        z, y = double([-5.0, 4.0]), torch.tensor([1, 1])
        values = [
            sigmoid_ghm_loss(z, y, 4, counts=double([2.0, 0.0, 0.0, last]), reduction="none")
            for last in (0.0, 1e-300, 0.5, 1.0)
        ]
        for one in values:
            close(one, values[-1])
        close(values[-1] / bce(z, y), double([3 / 2, 3 / 4]))  # N = 3 and M = 2

    def test_evaluation_does_not_move_the_counts(self):
        module = GHMCLoss(bins=4).double()
        module(double([5.0, 4.0]), torch.tensor([1, 1]))
        module.eval()
        loss = module(double([-5.0, 4.0]), torch.tensor([1, 1]))
        assert loss.isfinite()
        assert module.counts.tolist() == [2, 0, 0, 0]

    def test_counts_of_another_number_of_bins_are_refused(self):
        with pytest.raises(Exception, match=r"counts need shape \(4,\)|Type-check error"):
            sigmoid_ghm_loss(self.Z, self.Y, 4, counts=torch.ones(3))


@each_loss
class TestEveryLoss:
    Z, Y = normal(12, 4, scale=2.0), labels(12, 4)

    @pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
    @pytest.mark.parametrize("soft", [False, True])
    def test_it_stays_finite_with_its_gradient_for_huge_float32_logits(self, loss, scale, soft):
        generator = torch.Generator().manual_seed(0)
        z = (torch.rand(50, 4, generator=generator) * 2 - 1) * scale
        z[0], z[1] = scale, -scale
        y = labels(50, 4)
        y[0] = y[1] = torch.tensor([0, 1, 0, 1])
        targets = torch.where(y == 1, 0.9, 0.0) if soft else y
        values, grad = value_and_grad(lambda z: loss(z, targets, reduction="none"), z)
        assert values.isfinite().all()
        assert grad.isfinite().all()
        assert (values >= 0).all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_logits_are_computed_in_float32(self, loss, dtype):
        z = self.Z.to(dtype)
        exact = value_and_grad(lambda z: loss(z, self.Y), z.double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value, grad = value_and_grad(lambda z: loss(z, self.Y), z)
        assert (value.dtype, grad.dtype) == (torch.float32, dtype)
        close(value.double(), exact[0], rtol=1e-5)
        close(grad.double(), exact[1], rtol=0.01, atol=1e-4)

    def test_parts_add_up_to_the_gradient_of_the_whole_batch_where_terms_are_independent(
        self, loss, request
    ):
        def accumulated(z):
            parts = [
                loss(a, b, reduction="sum_and_count")
                for a, b in zip(z.split([3, 9]), self.Y.split([3, 9]), strict=True)
            ]
            return sum(total for total, _ in parts) / sum(count for _, count in parts)

        name = request.node.callspec.id
        whole = value_and_grad(lambda z: loss(z, self.Y), self.Z)
        if name in OF_THE_BATCH:
            assert (value_and_grad(accumulated, self.Z)[1] - whole[1]).abs().max() > 1e-6
        else:
            close(value_and_grad(accumulated, self.Z), whole)

    def test_elements_that_do_not_count_leak_nothing_not_even_nan(self, loss):
        mask = labels(12, 4, seed=5).bool()
        mask[:, 0] = True
        clean = torch.where(mask, self.Z, 0.3)
        dirty = torch.where(mask, self.Z, torch.nan)
        ignored = torch.where(mask, self.Y, -100)
        expected = value_and_grad(lambda z: loss(z, self.Y, mask=mask), clean)
        assert expected[0].isfinite()
        assert (expected[1][~mask] == 0).all()
        close(value_and_grad(lambda z: loss(z, self.Y, mask=mask), dirty), expected)
        close(value_and_grad(lambda z: loss(z, ignored), dirty), expected)

    def test_a_mask_of_rows_drops_them(self, loss):
        rows = torch.tensor([True] * 7 + [False] * 5)
        masked = loss(self.Z, self.Y, mask=rows)
        close(masked, loss(self.Z[:7], self.Y[:7]))

    def test_a_batch_in_which_nothing_counts_costs_nothing(self, loss):
        value, grad = value_and_grad(lambda z: loss(z, torch.full((12, 4), -100)), self.Z)
        assert value == 0
        assert (grad == 0).all()

    @pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.float32, torch.float64])
    def test_hard_targets_may_be_of_any_type(self, loss, kind):
        close(loss(self.Z, self.Y.to(kind)), loss(self.Z, self.Y))

    @pytest.mark.parametrize("bad", [2.0, -0.5, math.nan])
    def test_a_target_outside_the_unit_interval_is_named(self, loss, bad):
        y = self.Y.double()
        y[3, 2] = bad
        with pytest.raises(ValueError, match=r"element \(3, 2\): target .* is outside \[0, 1\]"):
            loss(self.Z, y)


class TestBadInput:
    Z, Y = normal(4, 3), labels(4, 3)

    def test_a_focal_alpha_of_the_wrong_length_or_size_is_named(self):
        with pytest.raises(ValueError, match=r"alpha needs one number per class, shape \(3,\)"):
            sigmoid_focal_loss(self.Z, self.Y, alpha=[0.25, 0.75])
        with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 2"):
            sigmoid_focal_loss(self.Z, self.Y, alpha=2.0)
        with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 3"):
            sigmoid_focal_loss(self.Z, self.Y, alpha=[0.1, 0.2, 3.0])

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: SigmoidFocalLoss(gamma=-1.0), "gamma must be finite and >= 0, got -1"),
            (lambda: HardTruncatedLoss(1.0), "threshold must be between 0 and 1, got 1"),
            (lambda: SoftTruncatedLoss(0.0), "sharpness must be finite and positive, got 0"),
            (lambda: SoftTruncatedLoss(math.inf), "limit at infinity is sigmoid_hard_truncated"),
            (lambda: SmoothF1WeightedBCE(momentum=1.0), r"momentum must be in \[0, 1\), got 1"),
            (lambda: GHMCLoss(momentum=-0.1), r"momentum must be in \[0, 1\), got -0.1"),
            (lambda: GHMCLoss(bins=0), "bins must be at least 1, got 0"),
            (lambda: SigmoidDiceLoss(smooth=-1.0), "smooth must be finite and >= 0, got -1"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_an_f1_that_is_none_is_refused(self):
        with pytest.raises(ValueError, match=r"f1 must be in \[0, 1\], got 1.5"):
            f1_weighted_bce(self.Z, self.Y, 1.5)
        with pytest.raises(ValueError, match=r"one per class, shape \(3,\), got \(2,\)"):
            f1_weighted_bce(self.Z, self.Y, torch.tensor([0.1, 0.2]))

    @pytest.mark.compiled  # the shape hook of the other run speaks first
    def test_other_shapes_are_refused(self):
        with pytest.raises(ValueError, match=r"targets \(4,\) .* logits \(4, 3\); .* squeeze"):
            sigmoid_focal_loss(self.Z, self.Y[:, 0])
        with pytest.raises(
            ValueError, match=r"mask must have shape \(4, 3\) or \(4,\), got \(3,\)"
        ):
            sigmoid_focal_loss(self.Z, self.Y, mask=torch.ones(3, dtype=torch.bool))


MODULES = {
    "focal": (
        SigmoidFocalLoss(1.5, alpha=0.25),
        lambda z, y, **o: sigmoid_focal_loss(z, y, 1.5, alpha=0.25, **o),
    ),
    "focal, alphas": (
        SigmoidFocalLoss(alpha=[0.25, 0.5, 0.75]),
        lambda z, y, **o: sigmoid_focal_loss(z, y, alpha=[0.25, 0.5, 0.75], **o),
    ),
    "hard": (
        HardTruncatedLoss(0.6),
        lambda z, y, **o: sigmoid_hard_truncated_loss(z, y, 0.6, **o),
    ),
    "soft": (SoftTruncatedLoss(3.0), lambda z, y, **o: sigmoid_soft_truncated_loss(z, y, 3.0, **o)),
    "dice": (
        SigmoidDiceLoss(0.5, per_example=True),
        lambda z, y, **o: sigmoid_dice_loss(z, y, 0.5, per_example=True, **o),
    ),
    "F1": (SmoothF1WeightedBCE(0.0), f1_weighted_bce),
    "GHM": (GHMCLoss(5, 0.0), lambda z, y, **o: sigmoid_ghm_loss(z, y, 5, **o)),
}


@pytest.mark.parametrize(("module", "function"), MODULES.values(), ids=MODULES)
def test_a_module_is_its_function_also_after_pickling_and_a_state_dict(module, function):
    z, y = normal(6, 3), labels(6, 3, seed=1)
    mask = torch.tensor([True, True, False, True, True, True])
    close(module(z, y, mask), function(z, y, mask=mask), rtol=1e-6)
    copy = pickle.loads(pickle.dumps(module)).eval()
    module.eval()
    assert torch.equal(copy(z, y, mask), module(z, y, mask))
    for buffer in copy.buffers():
        buffer.zero_()
    copy.load_state_dict(module.state_dict())
    assert torch.equal(copy(z, y, mask), module(z, y, mask))
    assert type(module).__name__ in repr(module)
