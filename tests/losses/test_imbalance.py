"""Class imbalance, S37: the losses over classes (softmax), their weights and priors."""

import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.losses.imbalance import (
    LDAMLoss,
    LogitAdjustedLoss,
    SoftmaxFocalLoss,
    class_balanced_weights,
    class_counts,
    inverse_frequency_weights,
    ldam_loss,
    ldam_margins,
    logit_adjusted_loss,
    posthoc_adjusted,
    prior_from_counts,
    softmax_cross_entropy,
    softmax_focal_loss,
)
from naive import imbalance as naive

PI = [0.8, 0.15, 0.05]
COUNTS = [100, 30, 7, 1, 12]
WEIGHTS = [0.5, 1.0, 3.0, 2.0, 0.25]
PRIOR = [0.5, 0.2, 0.2, 0.07, 0.03]
LOSSES = {
    "cross-entropy": softmax_cross_entropy,
    "weighted": lambda z, y, **o: softmax_cross_entropy(z, y, class_weight=WEIGHTS, **o),
    "weighted, mean over samples": lambda z, y, **o: softmax_cross_entropy(
        z, y, class_weight=WEIGHTS, mean_over="samples", **o
    ),
    "smoothed": lambda z, y, **o: softmax_cross_entropy(z, y, label_smoothing=0.1, **o),
    "adjusted": lambda z, y, **o: logit_adjusted_loss(z, y, PRIOR, 1.5, **o),
    "focal": lambda z, y, **o: softmax_focal_loss(z, y, 2.0, **o),
    "focal, 1/2 and weights": lambda z, y, **o: softmax_focal_loss(z, y, 0.5, alpha=WEIGHTS, **o),
    "ldam": lambda z, y, **o: ldam_loss(z, y, ldam_margins(COUNTS), 3.0, **o),
    "ldam, deferred": lambda z, y, **o: ldam_loss(
        z, y, ldam_margins(COUNTS), 1.0, class_weight=WEIGHTS, **o
    ),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator) * scale


def classes(*shape, seed=0):
    return torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(seed))


def value_and_grad(loss_of, z):
    z = z.detach().clone().requires_grad_()
    loss = loss_of(z)
    return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]


def close(ours, expected, rtol=1e-12, atol=1e-14):
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)


class TestWorkedNumbers:
    def test_cross_entropy_of_each_class(self):
        z = double([[1, 2, 0]] * 3)
        losses = softmax_cross_entropy(z, torch.arange(3), reduction="none")
        expected = [1.4076059644443804, 0.4076059644443804, 2.4076059644443806]
        close(losses, double(expected), rtol=0, atol=1e-10)

    def test_logit_adjustment_of_each_class(self):
        z = double([[1, 2, 0]] * 3)
        losses = logit_adjusted_loss(z, torch.arange(3), PI, tau=1.0, reduction="none")
        expected = [0.4270115134264431, 1.1009879469981148, 4.1996002356662245]
        close(losses, double(expected), rtol=0, atol=1e-10)

    def test_class_balanced_weights(self):
        expected = [0.18932747024699326, 1.8106725297530066]
        close(class_balanced_weights([100, 10], beta=0.999), double(expected), rtol=0, atol=1e-10)


class TestAgainstTheNaiveTwin:
    Z, Y = normal(40, 5, scale=2.0), classes(40, seed=1)

    @pytest.mark.parametrize(
        ("ours", "twin"),
        [
            (
                lambda z, y: softmax_cross_entropy(
                    z, y, class_weight=WEIGHTS, label_smoothing=0.2, reduction="none"
                ),
                lambda z, y: naive.cross_entropy(z, y, WEIGHTS, 0.2),
            ),
            (
                lambda z, y: logit_adjusted_loss(z, y, PRIOR, 0.7, reduction="none"),
                lambda z, y: naive.logit_adjusted(z, y, PRIOR, 0.7),
            ),
            (
                lambda z, y: softmax_focal_loss(z, y, 1.7, alpha=WEIGHTS, reduction="none"),
                lambda z, y: naive.softmax_focal(z, y, 1.7, WEIGHTS),
            ),
            (
                lambda z, y: ldam_loss(z, y, ldam_margins(COUNTS, 0.6), 4.0, reduction="none"),
                lambda z, y: naive.ldam(z, y, COUNTS, 0.6, 4.0),
            ),
        ],
        ids=["weighted and smoothed", "adjusted", "focal", "ldam"],
    )
    def test_values_and_gradients_are_the_formula_s(self, ours, twin):
        mine = value_and_grad(lambda z: ours(z, self.Y), self.Z)
        close(mine, value_and_grad(lambda z: twin(z, self.Y), self.Z), rtol=1e-10, atol=1e-13)

    @each_loss
    def test_autograd_agrees_with_finite_differences_twice(self, loss):
        z, y = normal(3, 5).requires_grad_(), classes(3)
        assert torch.autograd.gradcheck(lambda z: loss(z, y), [z])
        assert torch.autograd.gradgradcheck(lambda z: loss(z, y), [z])


class TestCrossEntropy:
    Z, Y = normal(20, 5), classes(20, seed=2)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("weight", [None, WEIGHTS])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_it_is_torch_s(self, weight, smoothing, reduction):
        y = self.Y.clone()
        y[3] = -100
        mine = softmax_cross_entropy(
            self.Z, y, class_weight=weight, label_smoothing=smoothing, reduction=reduction
        )
        theirs = F.cross_entropy(
            self.Z,
            y,
            None if weight is None else double(weight),
            reduction=reduction,
            label_smoothing=smoothing,
        )
        close(mine, theirs)

    @pytest.mark.parametrize("mean_over", ["weights", "samples"])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_weights_of_one_change_nothing_under_any_reduction(self, mean_over, reduction):
        mine = softmax_cross_entropy(
            self.Z, self.Y, class_weight=[1.0] * 5, mean_over=mean_over, reduction=reduction
        )
        close(mine, F.cross_entropy(self.Z, self.Y, reduction=reduction))

    def test_a_common_weight_scales_the_mean_over_samples_and_cancels_over_weights(self):
        plain = F.cross_entropy(self.Z, self.Y)
        common = {"class_weight": [3.0] * 5}
        by_samples = softmax_cross_entropy(self.Z, self.Y, mean_over="samples", **common)
        by_weights = softmax_cross_entropy(self.Z, self.Y, mean_over="weights", **common)
        close(by_samples, 3 * plain)
        close(by_weights, plain)

    def test_a_one_hot_distribution_is_its_label(self):
        options = {"class_weight": WEIGHTS, "label_smoothing": 0.1}
        soft = softmax_cross_entropy(self.Z, F.one_hot(self.Y, 5).double(), **options)
        close(soft, softmax_cross_entropy(self.Z, self.Y, **options))

    def test_a_distribution_is_the_mixture_of_its_labels(self):
        t = normal(20, 5, seed=3).softmax(-1)
        mixed = sum(
            t[:, k] * softmax_cross_entropy(self.Z, torch.full((20,), k), reduction="none")
            for k in range(5)
        )
        close(softmax_cross_entropy(self.Z, t, reduction="none"), mixed)
        close(softmax_cross_entropy(self.Z, t), F.cross_entropy(self.Z, t))

    def test_masked_classes_take_part_neither_in_softmax_nor_in_smoothing(self):
        padded = F.pad(self.Z, (0, 2), value=-torch.inf)
        mine = value_and_grad(
            lambda z: softmax_cross_entropy(z, self.Y, label_smoothing=0.1), padded
        )
        loss, grad = value_and_grad(
            lambda z: softmax_cross_entropy(z, self.Y, label_smoothing=0.1), self.Z
        )
        close(mine, (loss, F.pad(grad, (0, 2))))


class TestLogitAdjustment:
    Z, Y = normal(20, 5), classes(20, seed=2)

    def test_a_uniform_prior_or_tau_zero_is_cross_entropy(self):
        plain = F.cross_entropy(self.Z, self.Y)
        close(logit_adjusted_loss(self.Z, self.Y, [0.2] * 5), plain)
        close(logit_adjusted_loss(self.Z, self.Y, PRIOR, tau=0.0), plain)

    @pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
    def test_it_is_cross_entropy_of_shifted_logits_with_gradient_softmax_minus_one_hot(self, tau):
        shifted = self.Z + tau * double(PRIOR).log()
        loss, grad = value_and_grad(
            lambda z: logit_adjusted_loss(z, self.Y, PRIOR, tau, reduction="sum"), self.Z
        )
        close(loss, F.cross_entropy(shifted, self.Y, reduction="sum"))
        close(grad, shifted.softmax(-1) - F.one_hot(self.Y, 5))

    def test_lowering_every_logit_by_its_own_margin_gives_it_and_the_target_s_alone_does_not(self):
        margins = -double(PRIOR).log()
        adjusted = logit_adjusted_loss(self.Z, self.Y, PRIOR)
        close(F.cross_entropy(self.Z - margins, self.Y), adjusted)
        alone = ldam_loss(self.Z, self.Y, margins, scale=1.0)
        assert abs(alone - adjusted) > 0.1

    def test_a_fixed_last_bias_of_the_log_prior_is_the_same(self):
        layer = nn.Linear(3, 5, dtype=torch.float64)
        x = normal(20, 3)
        with torch.no_grad():
            layer.bias.copy_(double(PRIOR).log())
        without = x @ layer.weight.T
        close(F.cross_entropy(layer(x), self.Y), logit_adjusted_loss(without, self.Y, PRIOR))

    def test_balanced_predictions_are_the_logits_and_accurate_ones_add_the_prior(self):
        loss = LogitAdjustedLoss(PRIOR, tau=1.5).double()
        loss.log_prior.copy_(double(PRIOR).log())
        assert loss.adjust(self.Z) is self.Z
        accurate = loss.adjust(self.Z, objective="accuracy")
        close(accurate, self.Z + 1.5 * double(PRIOR).log())
        close(loss.probabilities(self.Z), accurate.softmax(-1))
        close(posthoc_adjusted(accurate, PRIOR, tau=1.5), self.Z)

    def test_an_unknown_objective_is_refused(self):
        with pytest.raises(Exception, match="objective"):
            LogitAdjustedLoss(PRIOR).adjust(self.Z, objective="f1")

    def test_a_trainable_prior_starts_as_given_and_learns(self):
        loss = LogitAdjustedLoss(PRIOR, trainable=True)
        before = loss(self.Z.float(), self.Y)
        close(before, logit_adjusted_loss(self.Z.float(), self.Y, PRIOR), rtol=1e-6)
        before.backward()
        assert loss.log_prior.grad.abs().max() > 0.01
        assert not list(LogitAdjustedLoss(PRIOR).parameters())


def fitted_boundary(tau, prior, rows=40_000):
    """Where a linear model trained on samples of two unit Gaussians at ±1 changes its argmax."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(rows, generator=generator) < prior[1]).long()
    noise = torch.randn(rows, generator=generator, dtype=torch.float64)
    x = (2.0 * y - 1 + noise)[:, None]
    weight = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        logits = x * weight[0] + weight[1]
        loss = logit_adjusted_loss(logits, y, prior, tau)
        loss.backward()
        return loss

    optimizer.step(closure)
    slope, offset = (weight[:, 1] - weight[:, 0]).tolist()
    return slope, offset


class TestFisherConsistency:
    """Two Gaussians at ±1 with priors 0.9 and 0.1: the balanced Bayes rule is x > 0."""

    PRIOR = (0.9, 0.1)
    LOG_ODDS = math.log(9)

    def test_at_tau_one_the_argmax_is_the_balanced_bayes_rule(self):
        slope, offset = fitted_boundary(1.0, self.PRIOR)
        assert -offset / slope == pytest.approx(0, abs=0.03)
        assert slope == pytest.approx(2, abs=0.08)  # the log-odds of the likelihoods is 2x

    def test_cross_entropy_puts_the_boundary_where_the_rare_class_is_lost(self):
        slope, offset = fitted_boundary(0.0, self.PRIOR)
        assert -offset / slope == pytest.approx(self.LOG_ODDS / 2, abs=0.05)

    @pytest.mark.parametrize("tau", [0.5, 2.0])
    def test_at_another_tau_the_balanced_rule_needs_the_rest_of_the_prior(self, tau):
        slope, offset = fitted_boundary(tau, self.PRIOR)
        assert abs(offset / slope) > 0.4
        rest = (tau - 1) * -self.LOG_ODDS  # (tau − 1) (log pi_1 − log pi_0)
        assert -(offset + rest) / slope == pytest.approx(0, abs=0.03)


class TestFocal:
    Z, Y = normal(20, 5, scale=2.0), classes(20, seed=2)

    def test_gamma_zero_is_cross_entropy(self):
        close(softmax_focal_loss(self.Z, self.Y, gamma=0.0), F.cross_entropy(self.Z, self.Y))

    def test_two_classes_are_the_binary_loss_of_their_difference(self):
        from kexue.losses.imbalance import sigmoid_focal_loss

        z, y = self.Z[:, :2], self.Y % 2
        binary = sigmoid_focal_loss(z[:, 1] - z[:, 0], y, gamma=1.3, reduction="none")
        close(softmax_focal_loss(z, y, gamma=1.3, reduction="none"), binary)

    def test_what_is_nearly_right_keeps_its_tiny_loss_in_float32(self):
        z, y = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([0])
        exact = softmax_focal_loss(z.double(), y, gamma=1.0).item()
        assert 0 < exact < 1e-16
        assert softmax_focal_loss(z, y, gamma=1.0).item() == pytest.approx(exact, rel=1e-5)

    @pytest.mark.parametrize("others", [0, 1])
    def test_masked_classes_drop_out_even_if_none_is_left(self, others):
        z = torch.tensor([[1.0, 0.5, -torch.inf, -torch.inf]][:1])
        z[0, 1 + others :] = -torch.inf
        loss, grad = value_and_grad(lambda z: softmax_focal_loss(z, torch.tensor([0])), z)
        small = torch.tensor([[1.0, 0.5]])[:, : 1 + others]
        if others:
            expected = softmax_focal_loss(small, torch.tensor([0]))
            close(loss, expected, rtol=1e-6)
        else:
            assert loss == 0
        assert grad.isfinite().all()
        assert (grad[0, 1 + others :] == 0).all()


class TestUnsoundMultiClassSoftening:
    """Why the author's form for several classes is documented and not offered."""

    def test_it_calls_a_wrong_answer_free_and_focal_does_not(self):
        z, y = double([[0, 1, -500]]), torch.tensor([0])  # class 1 is predicted
        assert naive.softened_softmax(z, y, 1.0).item() < 1e-200
        assert softmax_focal_loss(z, y, gamma=1.0).item() > 0.9

    def test_its_descent_leaves_a_wrong_answer_wrong_and_focal_s_mends_it(self):
        def argmax_after(loss_of):
            z = double([[0.0, 1.0, -8.0]]).requires_grad_()
            optimizer = torch.optim.SGD([z], lr=0.5)
            for _ in range(300):
                optimizer.zero_grad()
                loss_of(z).sum().backward()
                optimizer.step()
            return int(z.argmax())

        y = torch.tensor([0])
        assert argmax_after(lambda z: naive.softened_softmax(z, y, 1.0)) == 1
        assert argmax_after(lambda z: softmax_focal_loss(z, y, gamma=1.0)) == 0


class TestMargins:
    Z, Y = normal(20, 5), classes(20, seed=2)

    def test_without_margin_and_scale_it_is_cross_entropy(self):
        plain = F.cross_entropy(self.Z, self.Y)
        close(ldam_loss(self.Z, self.Y, [0.0] * 5, scale=1.0), plain)
        close(LDAMLoss(COUNTS, 0.0, 1.0)(self.Z, self.Y), plain)

    def test_margins_go_with_the_fourth_root_and_the_largest_is_given(self):
        margins = ldam_margins(COUNTS, max_margin=0.5)
        close(margins, 0.5 * double(COUNTS) ** -0.25)  # the rarest class has one example
        assert ldam_margins([400, 80], max_margin=0.3).max() == pytest.approx(0.3)

    def test_reweighting_is_deferred_until_it_is_asked_for(self):
        loss = LDAMLoss(COUNTS, scale=1.0)
        before = loss(self.Z, self.Y)
        close(before, ldam_loss(self.Z, self.Y, ldam_margins(COUNTS), 1.0), rtol=1e-6)
        loss.reweight(WEIGHTS)
        margins = ldam_margins(COUNTS)
        after = ldam_loss(self.Z, self.Y, margins, 1.0, class_weight=WEIGHTS)
        close(loss(self.Z, self.Y), after, rtol=1e-6)
        with pytest.raises(ValueError, match=r"class_weight needs one number per class, .*\(3,\)"):
            loss.reweight([1.0, 2.0, 3.0])


class TestWeightsAndPriors:
    def test_priors_are_smoothed_shares(self):
        close(prior_from_counts([3, 1, 0]), double([4, 2, 1]) / 7)
        close(prior_from_counts([3, 1], smoothing=0.0), double([3, 1]) / 4)

    def test_inverse_frequencies_give_every_class_the_same_total(self):
        totals = inverse_frequency_weights(COUNTS) * double(COUNTS)
        close(totals, double([sum(COUNTS) / 5] * 5))
        close(inverse_frequency_weights(COUNTS, power=0.0), double([1.0] * 5))
        close(inverse_frequency_weights(COUNTS, 0.5) ** 2, inverse_frequency_weights(COUNTS))

    def test_class_balanced_goes_from_equal_weights_to_inverse_frequencies(self):
        close(class_balanced_weights(COUNTS, beta=0.0), double([1.0] * 5))
        inverse = inverse_frequency_weights(COUNTS)
        nearly = class_balanced_weights(COUNTS, beta=1 - 1e-12)
        close(nearly, inverse * 5 / inverse.sum(), rtol=1e-9)
        assert class_balanced_weights(COUNTS, beta=0.9).sum().item() == pytest.approx(5)

    def test_counts_are_those_of_the_labels(self):
        labels = torch.tensor([[0, 2], [2, -100]])
        assert class_counts(labels, 4).tolist() == [1, 0, 2, 0]
        with pytest.raises(ValueError, match=r"label 2 is outside 0 … 1"):
            class_counts(labels, 2)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: prior_from_counts([1, 0], smoothing=0.0), r"class 1 has no examples.*smooth"),
            (lambda: prior_from_counts([1, -1]), r"counts must be finite and >= 0, got -1 of cl"),
            (lambda: prior_from_counts([1, 2], smoothing=-1.0), "smoothing must be finite"),
            (lambda: prior_from_counts(torch.ones(1, 2)), "counts need one number for each"),
            (lambda: class_balanced_weights([5, 0]), r"class 1 has no examples"),
            (lambda: class_balanced_weights([5, 1], beta=1.0), r"beta must be in \[0, 1\)"),
            (lambda: inverse_frequency_weights([5, 0]), r"class 1 has no examples"),
            (lambda: inverse_frequency_weights([5, 1], power=-1.0), "power must be finite"),
            (lambda: ldam_margins([0, 3]), r"class 0 has no examples"),
            (lambda: ldam_margins([1, 3], max_margin=-0.1), "max_margin must be finite"),
        ],
    )
    def test_bad_counts_are_refused_with_the_way_out(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()


@each_loss
class TestEveryLoss:
    Z, Y = normal(12, 5, scale=2.0), classes(12, seed=2)

    @pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
    def test_it_stays_finite_with_its_gradient_for_huge_float32_logits(self, loss, scale):
        generator = torch.Generator().manual_seed(0)
        z = ((torch.rand(500, 5, generator=generator) * 2 - 1) * scale).clone()
        z[0], z[1] = scale, -scale
        z[2] = torch.tensor([scale, -scale, -scale, -scale, -scale])
        z[3] = torch.tensor([-scale, scale, scale, scale, scale])
        y = classes(500, seed=1)
        y[2:4] = 0
        values, grad = value_and_grad(lambda z: loss(z, y, reduction="none"), z)
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

    def test_float32_agrees_with_float64(self, loss):
        z = self.Z.float()
        value, grad = value_and_grad(lambda z: loss(z, self.Y), z)
        exact = value_and_grad(lambda z: loss(z, self.Y), z.double())
        close((value.double(), grad.double()), exact, rtol=1e-5, atol=1e-7)

    def test_parts_add_up_to_the_gradient_of_the_whole_batch(self, loss):
        def accumulated(z):
            parts = [
                loss(a, b, reduction="sum_and_count")
                for a, b in zip(z.split([3, 9]), self.Y.split([3, 9]), strict=True)
            ]
            return sum(total for total, _ in parts) / sum(count for _, count in parts)

        close(
            value_and_grad(accumulated, self.Z),
            value_and_grad(lambda z: loss(z, self.Y), self.Z),
        )

    def test_rows_that_do_not_count_leak_nothing_not_even_nan(self, loss):
        z, y = F.pad(self.Z, (0, 0, 0, 2), value=torch.nan), F.pad(self.Y, (0, 2), value=-100)
        mask = torch.ones(14, dtype=torch.bool)
        mask[12:] = False
        expected, expected_grad = value_and_grad(lambda z: loss(z, self.Y), self.Z)
        for options in ({}, {"mask": mask}):
            labels = y if not options else y.clamp(min=0)
            value, grad = value_and_grad(lambda z, y=labels, o=options: loss(z, y, **o), z)
            close((value, grad), (expected, F.pad(expected_grad, (0, 0, 0, 2))))

    def test_another_ignore_index_may_be_one_of_the_classes(self, loss):
        kept = self.Y != 0
        ignored = loss(self.Z, self.Y, ignore_index=0)
        close(ignored, loss(self.Z[kept], self.Y[kept]))

    def test_a_batch_in_which_nothing_counts_costs_nothing(self, loss):
        value, grad = value_and_grad(lambda z: loss(z, torch.full((12,), -100)), self.Z)
        assert value == 0
        assert (grad == 0).all()

    def test_leading_axes_are_rows(self, loss):
        z, y = self.Z.view(3, 4, 5), self.Y.view(3, 4)
        close(loss(z, y), loss(self.Z, self.Y))
        assert loss(z, y, reduction="none").shape == (3, 4)
        close(loss(self.Z[0], self.Y[0]), loss(self.Z[:1], self.Y[:1]))

    def test_a_label_out_of_range_is_named_with_its_row(self, loss):
        y = self.Y.clone()
        y[7] = 5
        with pytest.raises(ValueError, match=r"row \(7,\): label 5 is outside 0 … 4; mark rows"):
            loss(self.Z, y)

    def test_a_label_on_a_masked_class_is_named(self, loss):
        z = self.Z.clone()
        z[2, self.Y[2]] = -torch.inf
        with pytest.raises(ValueError, match=r"row \(2,\): label \d is a masked class"):
            loss(z, self.Y)


class TestBadInput:
    Z, Y = normal(4, 3), torch.tensor([0, 1, 2, 0])

    @pytest.mark.parametrize(
        ("prior", "message"),
        [
            ([0.5, 0.5, 0.0], r"prior must be positive, got 0.0 of class 2; prior_from_counts"),
            ([0.5, 0.6, -0.1], r"prior must be positive, got -0.1 of class 2; prior_from_counts"),
            ([80.0, 15.0, 5.0], r"prior must sum to 1, got 100; prior_from_counts"),
            ([0.5, 0.5], r"prior of 2 classes needs logits .* got shape \(4, 3\)"),
            (torch.full((1, 3), 1 / 3), r"prior needs one number per class, got shape \(1, 3\)"),
        ],
    )
    def test_a_prior_that_is_none_is_refused_with_the_way_out(self, prior, message):
        with pytest.raises(ValueError, match=message):
            logit_adjusted_loss(self.Z, self.Y, prior)

    def test_a_focal_alpha_of_the_wrong_length_is_named(self):
        with pytest.raises(ValueError, match=r"alpha needs one number per class, shape \(3,\)"):
            softmax_focal_loss(self.Z, self.Y, alpha=[0.25, 0.75])

    @pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
    def test_settings_out_of_range_are_refused(self, bad):
        with pytest.raises(ValueError, match="gamma must be finite and >= 0"):
            softmax_focal_loss(self.Z, self.Y, gamma=bad)
        with pytest.raises(ValueError, match="gamma must be finite and >= 0"):
            SoftmaxFocalLoss(gamma=bad)
        with pytest.raises(ValueError, match="tau must be finite and >= 0"):
            logit_adjusted_loss(self.Z, self.Y, PI, tau=bad)
        with pytest.raises(ValueError, match="scale must be finite and positive"):
            ldam_loss(self.Z, self.Y, [0.1, 0.2, 0.3], scale=bad)
        with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\)"):
            softmax_cross_entropy(self.Z, self.Y, label_smoothing=bad)
        with pytest.raises(ValueError, match=r"class_weight must be finite .* got .* of class 1"):
            softmax_cross_entropy(self.Z, self.Y, class_weight=[1.0, bad, 1.0])

    def test_a_row_that_is_no_distribution_is_named(self):
        t = double([[0.5, 0.5, 0.0]] * 4)
        t[1, 1] = 0.7
        with pytest.raises(ValueError, match=r"row \(1,\): labels .* no distribution .* zlpr_loss"):
            softmax_cross_entropy(self.Z, t)

    def test_one_class_is_no_choice(self):
        with pytest.raises(ValueError, match=r"at least 2 classes, .* \(4, 1\); .* sigmoid loss"):
            softmax_cross_entropy(self.Z[:, :1], self.Y)

    @pytest.mark.compiled  # the shape hook of the other run speaks first
    def test_labels_of_another_shape_are_refused(self):
        with pytest.raises(ValueError, match=r"labels \(3,\) must have the shape of logits \(4, 3"):
            softmax_focal_loss(self.Z, self.Y[:3])
        with pytest.raises(ValueError, match=r"mask must have shape \(4,\), got \(2,\)"):
            softmax_focal_loss(self.Z, self.Y, mask=torch.ones(2, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"must have the shape of logits \(4, 3\), got \(4, 2"):
            softmax_cross_entropy(self.Z, torch.zeros(4, 2))
        with pytest.raises(ValueError, match="'average'"):
            softmax_focal_loss(self.Z, self.Y, reduction="average")
        with pytest.raises(ValueError, match="mean_over must be"):
            softmax_cross_entropy(self.Z, self.Y, class_weight=[1, 1, 1], mean_over="rows")


MODULES = {
    "adjusted": (
        LogitAdjustedLoss(PRIOR, 0.8, label_smoothing=0.1),
        lambda z, y, **o: logit_adjusted_loss(z, y, PRIOR, 0.8, label_smoothing=0.1, **o),
    ),
    "focal": (
        SoftmaxFocalLoss(1.5, alpha=WEIGHTS),
        lambda z, y, **o: softmax_focal_loss(z, y, 1.5, alpha=WEIGHTS, **o),
    ),
    "ldam": (
        LDAMLoss(COUNTS, 0.4, 5.0),
        lambda z, y, **o: ldam_loss(z, y, ldam_margins(COUNTS, 0.4), 5.0, **o),
    ),
}


@pytest.mark.parametrize(("module", "function"), MODULES.values(), ids=MODULES)
def test_a_module_is_its_function_also_after_pickling_and_a_state_dict(module, function):
    z, y = normal(6, 5), classes(6)
    mask = torch.tensor([True, True, False, True, True, False])
    expected = function(z, y, mask=mask)
    close(module(z, y, mask), expected, rtol=1e-6)
    copy = pickle.loads(pickle.dumps(module))
    assert torch.equal(copy(z, y, mask), module(z, y, mask))
    for buffer in copy.buffers():
        buffer.zero_()
    copy.load_state_dict(module.state_dict())
    assert torch.equal(copy(z, y, mask), module(z, y, mask))
    assert type(module).__name__ in repr(module)
