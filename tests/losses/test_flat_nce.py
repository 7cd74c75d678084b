"""FlatNCE and InfoNCE on scores (S03)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kexue.losses.flat_nce import (
    effective_negatives,
    flat_nce_loss,
    info_nce_loss,
    log_odds_against,
    mutual_information,
)
from naive.flat_nce import (
    exact_gradient,
    naive_cross_entropy_gradient,
    naive_flat_clr,
    naive_flat_nce,
    naive_info_nce,
    naive_xis,
)

TARGET = torch.tensor([0, 3, 6, 1, 1])
REPORTS = ("infonce", "log_xi", "flat")
HALVES = (torch.float32, torch.bfloat16, torch.float16)


def draw(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


def gradient(loss, scores, target=TARGET, **options):
    scores = scores.clone().requires_grad_()
    loss(scores, target, reduction="sum", **options).backward()
    return scores.grad


def one(*row, dtype=torch.float64):
    return torch.tensor([row], dtype=dtype)


FIRST = torch.tensor([0])
MASK = torch.zeros(5, 7, dtype=torch.bool)
MASK[0, 2] = MASK[2, 1] = MASK[2, 0] = MASK[4, 6] = True


class TestFormulas:
    @pytest.mark.parametrize("ignore", [None, MASK])
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 5.0])
    def test_values_and_gradients_are_the_naive_ones(self, scale, ignore):
        scores = draw(5, 7, scale=scale)
        for ours, naive in ((info_nce_loss, naive_info_nce), (flat_nce_loss, naive_flat_nce)):
            twin = scores.clone().requires_grad_()
            naive(twin, TARGET, ignore).sum().backward()
            mine = gradient(ours, scores, ignore=ignore)
            torch.testing.assert_close(mine, twin.grad, rtol=1e-12, atol=1e-14)
        values = info_nce_loss(scores, TARGET, ignore=ignore, reduction="none")
        torch.testing.assert_close(
            values, naive_info_nce(scores, TARGET, ignore), rtol=1e-12, atol=0
        )
        values = flat_nce_loss(scores, TARGET, ignore=ignore, reduction="none", report="log_xi")
        naive = naive_xis(scores, TARGET, ignore).log()
        torch.testing.assert_close(values, naive, rtol=1e-12, atol=1e-14)

    def test_the_default_is_value_and_gradient_of_the_papers_code(self):
        scores, twin = draw(5, 7), draw(5, 7).requires_grad_()
        theirs = naive_flat_clr(twin, TARGET)
        theirs.sum().backward()
        torch.testing.assert_close(
            flat_nce_loss(scores, TARGET, reduction="none"), theirs.detach(), rtol=1e-12, atol=0
        )
        torch.testing.assert_close(gradient(flat_nce_loss, scores), twin.grad, rtol=1e-12, atol=0)

    def test_gradient_is_the_softmax_over_negatives_and_minus_one_at_the_positive(self):
        scores = draw(5, 7)
        positive = F.one_hot(TARGET, 7).bool()
        expected = scores.masked_fill(positive, -torch.inf).softmax(1) - positive.double()
        grad = gradient(flat_nce_loss, scores)
        torch.testing.assert_close(grad, expected, rtol=0, atol=1e-14)
        assert grad.sum(dim=1).abs().max() < 1e-14

    def test_info_nce_is_flat_nce_times_what_the_positive_lacks(self):
        scores = draw(5, 7, scale=3.0)
        lacks = 1 - scores.softmax(1).gather(1, TARGET[:, None])
        flat, info = gradient(flat_nce_loss, scores), gradient(info_nce_loss, scores)
        torch.testing.assert_close(flat * lacks, info, rtol=1e-12, atol=1e-15)

    def test_over_a_batch_the_directions_differ(self):
        scores = torch.cat((draw(1, 7), 4 * F.one_hot(torch.tensor([3]), 7).double()))
        target = torch.tensor([0, 3])
        flat, info = (gradient(f, scores, target) for f in (flat_nce_loss, info_nce_loss))
        cosine = F.cosine_similarity(flat.flatten(), info.flatten(), dim=0)
        assert cosine < 0.95

    @pytest.mark.parametrize("loss", [flat_nce_loss, info_nce_loss])
    @pytest.mark.parametrize("ignore", [None, MASK])
    def test_first_and_second_derivatives_pass_gradcheck(self, loss, ignore):
        scores = draw(5, 7).requires_grad_()

        def f(s):
            options = {"report": "log_xi"} if loss is flat_nce_loss else {}
            return loss(s, TARGET, ignore=ignore, **options)

        assert torch.autograd.gradcheck(f, scores)
        assert torch.autograd.gradgradcheck(f, scores)


class TestReport:
    @pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1000.0, 1e30])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_the_flat_value_is_exactly_one_for_every_finite_input(self, scale, dtype):
        scores = draw(5, 7, scale=scale).to(dtype)
        values = flat_nce_loss(scores, TARGET, report="flat", reduction="none")
        assert values.tolist() == [1.0] * 5

    def test_the_quotient_of_the_paper_is_not_a_number_once_xi_underflows(self):
        scores = one(1000.0, 0.0, 1.0)
        assert naive_flat_nce(scores, FIRST).isnan().all()
        assert flat_nce_loss(scores, FIRST, report="flat") == 1

    def test_the_info_nce_value_is_exact_however_small(self):
        scores = one(60.0, 0.0, 1.0)
        shown = flat_nce_loss(scores, FIRST)
        assert shown == info_nce_loss(scores, FIRST)
        assert 0 < shown < 1e-25

    @pytest.mark.parametrize("dtype", HALVES)
    def test_the_report_never_touches_the_gradient(self, dtype):
        scores = draw(5, 7, scale=10.0).to(dtype)
        grads = [gradient(flat_nce_loss, scores, report=report) for report in REPORTS]
        assert grads[0].equal(grads[1])
        assert grads[0].equal(grads[2])

    def test_nor_the_second_derivative(self):
        direction, found = draw(5, 7, seed=1), []
        for report in REPORTS:
            scores = draw(5, 7).requires_grad_()
            loss = flat_nce_loss(scores, TARGET, report=report)
            (grad,) = torch.autograd.grad(loss, scores, create_graph=True)
            found.append(torch.autograd.grad((grad * direction).sum(), scores)[0])
        assert found[0].abs().max() > 1e-3
        assert found[0].equal(found[1])
        assert found[0].equal(found[2])


class TestInvariance:
    @given(st.floats(-1e3, 1e3), st.integers(0, 99))
    @settings(max_examples=25, deadline=None)
    def test_adding_a_constant_to_a_row_changes_nothing(self, constant, seed):
        scores = draw(5, 7, seed=seed)
        moved = log_odds_against(scores + constant, TARGET)
        torch.testing.assert_close(moved, log_odds_against(scores, TARGET), rtol=0, atol=1e-12)

    def test_permuting_the_candidates_permutes_the_gradient_and_keeps_the_value(self):
        scores, order = draw(5, 7), torch.randperm(7, generator=torch.Generator().manual_seed(1))
        moved = order.argsort()[TARGET]
        for loss in (flat_nce_loss, info_nce_loss):
            torch.testing.assert_close(
                loss(scores[:, order], moved), loss(scores, TARGET), rtol=1e-14, atol=0
            )
            torch.testing.assert_close(
                gradient(loss, scores[:, order], moved),
                gradient(loss, scores)[:, order],
                rtol=1e-12,
                atol=0,
            )

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 100.0])
    def test_the_losses_are_ordered(self, scale):
        scores = draw(50, 7, scale=scale)
        target = torch.zeros(50, dtype=torch.long)
        log_xi = log_odds_against(scores, target)
        info = info_nce_loss(scores, target, reduction="none")
        assert (info <= log_xi.exp()).all()
        assert (log_xi <= info).all()
        gap = torch.log1p((-log_xi).exp())  # log(1 + 1/xi)
        torch.testing.assert_close(info - log_xi, gap, rtol=1e-9, atol=1e-12)

    def test_the_difference_vanishes_for_hopeless_anchors(self):
        scores = one(-50.0, 0.0, 1.0)
        info, flat = (
            info_nce_loss(scores, FIRST),
            flat_nce_loss(scores, FIRST, report="log_xi"),
        )
        assert info == flat
        assert info > 50

    def test_with_one_negative_flat_is_linear_and_info_its_softplus(self):
        scores, target = draw(5, 2, scale=5.0), torch.tensor([0, 1, 0, 0, 1])
        away = scores.gather(1, 1 - target[:, None]) - scores.gather(1, target[:, None])
        flat = flat_nce_loss(scores, target, report="log_xi", reduction="none")
        torch.testing.assert_close(flat, away[:, 0], rtol=1e-14, atol=0)
        info = info_nce_loss(scores, target, reduction="none")
        torch.testing.assert_close(info, torch.log1p(away[:, 0].exp()), rtol=1e-13, atol=0)

    def test_adam_without_epsilon_takes_the_same_first_step_for_one_anchor(self):
        steps = []
        for loss in (flat_nce_loss, info_nce_loss):
            scores = draw(1, 7, scale=3.0).requires_grad_()
            before = scores.detach().clone()
            optimizer = torch.optim.Adam([scores], lr=0.1, eps=0.0)
            loss(scores, FIRST).backward()
            optimizer.step()
            steps.append(scores.detach() - before)
        torch.testing.assert_close(steps[0], steps[1], rtol=1e-10, atol=0)


class TestWorkedNumbers:
    def test_an_undecided_anchor(self):
        scores = one(1.0, 0.5, -0.2, 0.1)
        assert info_nce_loss(scores, FIRST).item() == pytest.approx(0.8391049030250295, abs=1e-10)
        assert log_odds_against(scores, FIRST).item() == pytest.approx(
            0.27330004362479166, abs=1e-10
        )
        info = [-0.5679028807927918, 0.26208015077267627, 0.13014515128914786, 0.17567757873096765]
        flat = [-1, 0.4614876233887257, 0.2291679716564659, 0.30934440495480836]
        assert gradient(info_nce_loss, scores, FIRST)[0].tolist() == pytest.approx(info, abs=1e-10)
        assert gradient(flat_nce_loss, scores, FIRST)[0].tolist() == pytest.approx(flat, abs=1e-10)

    def test_an_easy_anchor(self):
        scores = one(10.0, -8.0, -9.0, -8.5)
        info = info_nce_loss(scores, FIRST).item()
        assert info == pytest.approx(3.007022539211128e-08, rel=1e-10)
        log_xi = log_odds_against(scores, FIRST).item()
        assert log_xi == pytest.approx(-17.319730329358265, abs=1e-10)
        pull = gradient(info_nce_loss, scores, FIRST)[0, 0].item()
        assert pull == pytest.approx(-3.007022494000205e-08, rel=1e-10)
        push = gradient(flat_nce_loss, scores, FIRST)[0, 1:].tolist()
        expected = [0.506480391055654, 0.1863237232258476, 0.3071958857184984]
        assert push == pytest.approx(expected, abs=1e-10)


def lost(dtype, negatives, gap, seed):
    """Relative errors of d/ds_t: as written, torch's cross-entropy, softplus, flat; true value."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(negatives - 1, generator=generator, dtype=torch.float64)
    row = torch.cat((torch.tensor([20.0]), 20 - gap + 0.5 * noise)).to(dtype)
    exact = exact_gradient(row, 0)
    _, naive = naive_cross_entropy_gradient(row, 0, dtype)
    found = [naive[0].item()]
    for loss in (F.cross_entropy, info_nce_loss, flat_nce_loss):
        scores = row[None].clone().requires_grad_()
        loss(scores, FIRST).backward()
        found.append(scores.grad[0, 0].item())
    return [abs(x / exact - 1) for x in found[:3]] + [abs(found[3] + 1)], -math.log1p(exact)


class TestPrecision:
    @pytest.mark.parametrize(
        ("dtype", "negatives", "gap", "published"),
        [
            (torch.float32, 8, 10, 2.3e-3),
            (torch.float32, 8, 15, 0.11),
            (torch.float32, 8, 20, 1.0),
            (torch.float32, 512, 15, 4e-3),
            (torch.bfloat16, 8, 5, 1.0),
            (torch.bfloat16, 512, 10, 1.0),
            (torch.float16, 8, 10, 1.0),
            (torch.float16, 512, 20, 1.0),
        ],
    )
    def test_the_cross_entropy_as_written_loses_the_pull_and_flat_does_not(
        self, dtype, negatives, gap, published
    ):
        draws = [lost(dtype, negatives, gap, seed)[0] for seed in range(40)]
        naive = sorted(errors[0] for errors in draws)
        assert all(errors[3] == 0 for errors in draws)
        if published == 1.0:
            assert naive[4] == 1.0  # at least nine of ten draws lose all of it
        else:
            assert published / 10 < naive[20] < 10 * published

    @pytest.mark.parametrize(("gap", "at_least"), [(10, 5e-5), (15, 5e-3), (20, 0.9)])
    def test_torchs_cross_entropy_loses_it_a_little_later(self, gap, at_least):
        errors = sorted(lost(torch.float32, 8, gap, seed)[0][1] for seed in range(40))
        assert at_least < errors[20] < 30 * at_least

    @pytest.mark.parametrize("gap", [5, 10, 20, 30, 50, 69, 78])
    def test_the_softplus_form_keeps_the_pull_in_float32(self, gap):
        for seed in range(20):
            errors, _ = lost(torch.float32, 8, gap, seed)
            assert errors[2] < 1e-5

    def test_a_common_offset_of_a_thousand_costs_nothing(self):
        row = torch.tensor([[1020.0, 1000.5, 1000.25, 999.75]])
        scores = row.clone().requires_grad_()
        info_nce_loss(scores, FIRST).backward()
        assert abs(scores.grad[0, 0].item() / exact_gradient(row[0], 0) - 1) < 1e-6
        after = (row[:, 1:].logsumexp(1) - row[:, 0]).exp().item()  # subtracted too late
        assert abs(after / -exact_gradient(row[0], 0) - 1) > 1e-6

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("easy", [1.0, 12.0, 28.0])  # xi from 1 to 1e-12
    def test_flat_pull_is_exact_in_low_precision(self, dtype, easy):
        scores = one(easy, 0.0, 0.25, -0.5, dtype=dtype)
        assert gradient(flat_nce_loss, scores, FIRST)[0, 0] == -1

    def test_torchs_cross_entropy_has_no_pull_left_at_an_easy_anchor(self):
        scores = one(28.0, 0.0, 0.25, -0.5, dtype=torch.float32)
        assert gradient(F.cross_entropy, scores, FIRST)[0, 0] == 0
        assert gradient(info_nce_loss, scores, FIRST)[0, 0] < 0

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("loss", [flat_nce_loss, info_nce_loss])
    def test_half_inputs_are_computed_in_float32(self, dtype, loss):
        scores = draw(5, 7, scale=5.0).to(dtype)
        assert loss(scores, TARGET).dtype == torch.float32
        exact = gradient(loss, scores.double())
        relative = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
        torch.testing.assert_close(gradient(loss, scores).double(), exact, rtol=relative, atol=1e-7)

    def test_autocast_changes_nothing(self):
        scores = draw(5, 7, scale=5.0).float()
        plain = gradient(flat_nce_loss, scores)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert gradient(flat_nce_loss, scores).equal(plain)

    def test_unstable_is_torchs_cross_entropy(self):
        scores = draw(5, 7).float()
        mine, theirs = (
            info_nce_loss(scores, TARGET, stable=False),
            F.cross_entropy(scores, TARGET),
        )
        assert mine == theirs
        masked = info_nce_loss(scores, TARGET, ignore=MASK, stable=False)
        expected = info_nce_loss(scores, TARGET, ignore=MASK)
        torch.testing.assert_close(masked, expected)


class TestReductions:
    @pytest.mark.parametrize("loss", [flat_nce_loss, info_nce_loss])
    def test_parts_divided_by_the_count_of_all_give_the_gradient_of_the_whole(self, loss):
        whole, parts = (draw(5, 7).requires_grad_() for _ in range(2))
        loss(whole, TARGET).backward()
        sums = [
            loss(parts[rows], TARGET[rows], reduction="sum_and_count")
            for rows in (slice(0, 2), slice(2, 5))
        ]
        (sum(s for s, _ in sums) / sum(n for _, n in sums)).backward()
        torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-14, atol=0)

    @pytest.mark.parametrize("loss", [flat_nce_loss, info_nce_loss])
    def test_no_anchors_cost_nothing(self, loss):
        empty = torch.zeros(0, 7, requires_grad=True)
        value = loss(empty, torch.zeros(0, dtype=torch.long))
        assert value == 0
        value.backward()

    @pytest.mark.parametrize("loss", [flat_nce_loss, info_nce_loss])
    def test_an_unknown_reduction_is_refused(self, loss):
        with pytest.raises(Exception, match="reduction"):
            loss(draw(5, 7), TARGET, reduction="average")


class TestMonitors:
    def test_effective_negatives_are_one_over_the_sum_of_squared_weights(self):
        scores = draw(5, 7, scale=2.0)
        weights = gradient(flat_nce_loss, scores, ignore=MASK).scatter(1, TARGET[:, None], 0.0)
        expected = 1 / weights.square().sum(dim=1)
        found = effective_negatives(scores, TARGET, MASK)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        assert not found.requires_grad

    def test_effective_negatives_lie_between_one_and_all(self):
        assert effective_negatives(torch.zeros(5, 7), TARGET).tolist() == pytest.approx([6.0] * 5)
        lonely = 100.0 * F.one_hot((TARGET + 1) % 7, 7).float()
        assert effective_negatives(lonely, TARGET).tolist() == pytest.approx([1.0] * 5)
        found = effective_negatives(draw(50, 7, scale=30.0), torch.zeros(50, dtype=torch.long))
        assert ((found > 1 - 1e-9) & (found < 6 + 1e-9)).all()

    def test_the_estimate_of_mutual_information_may_exceed_log_k_and_the_bound_may_not(self):
        scores = one(30.0, 0.0, 0.0, 0.0)
        assert mutual_information(scores, FIRST).item() == pytest.approx(30)
        assert math.log(4) - info_nce_loss(scores, FIRST).item() <= math.log(4)
        assert mutual_information(torch.zeros(5, 7), TARGET).tolist() == pytest.approx([0.0] * 5)

    def test_masked_candidates_do_not_count_as_negatives(self):
        scores = torch.zeros(5, 7)
        assert mutual_information(scores, TARGET, MASK).tolist() == pytest.approx([0.0] * 5)
        assert effective_negatives(scores, TARGET, MASK).tolist() == pytest.approx([5, 6, 4, 6, 5])

    def test_the_estimate_is_close_to_the_truth_for_two_gaussians(self):
        """For correlation r the information is −log(1 − r²)/2 and the best score the log ratio."""
        r, n = 0.8, 2000
        x, noise = draw(n, seed=3), draw(n, seed=4)
        y = r * x + math.sqrt(1 - r**2) * noise
        ratio = -((y - r * x[:, None]) ** 2) / (2 * (1 - r**2)) + y**2 / 2
        truth = -math.log(1 - r**2) / 2
        found = mutual_information(ratio, torch.arange(n)).mean().item()
        assert found == pytest.approx(truth, abs=0.05)


class TestErrors:
    @pytest.mark.parametrize("loss", [flat_nce_loss, info_nce_loss, effective_negatives])
    def test_an_anchor_whose_negatives_are_all_masked_is_named(self, loss):
        ignore = torch.tensor([[False, False], [False, True]])
        with pytest.raises(ValueError, match="row 1 has no negative left among 2 candidates"):
            loss(torch.zeros(2, 2), torch.tensor([0, 0]), ignore=ignore)

    def test_a_single_candidate_is_refused(self):
        with pytest.raises(ValueError, match="row 0 has no negative left among 1 candidates"):
            flat_nce_loss(torch.zeros(2, 1), torch.tensor([0, 0]))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("column", [0, 2])
    def test_a_row_with_a_score_that_is_no_number_is_named(self, bad, column):
        scores = torch.zeros(3, 4)
        scores[2, column] = bad
        with pytest.raises(ValueError, match="row 2 has a score that is NaN or infinite"):
            flat_nce_loss(scores, torch.tensor([0, 0, 0]))

    def test_minus_infinity_masks_a_negative(self):
        scores = torch.zeros(1, 4)
        scores[0, 3] = -torch.inf
        loss = flat_nce_loss(scores, FIRST, report="log_xi")
        assert loss.item() == pytest.approx(math.log(2))
        grad = gradient(flat_nce_loss, scores, FIRST)
        assert grad.tolist() == [[-1.0, 0.5, 0.5, 0.0]]

    def test_a_masked_nan_does_no_harm(self):
        scores, ignore = draw(1, 4), torch.tensor([[False, False, True, False]])
        scores[0, 2] = torch.nan
        grad = gradient(flat_nce_loss, scores, FIRST, ignore=ignore)
        assert grad.isfinite().all()
        assert grad[0, 2] == 0

    @pytest.mark.parametrize("bad", [-1, 7])
    def test_a_target_outside_the_candidates_is_named(self, bad):
        with pytest.raises(ValueError, match=rf"row 1: target {bad} is outside 0 … 6"):
            flat_nce_loss(draw(2, 7), torch.tensor([0, bad]))

    @pytest.mark.compiled
    @pytest.mark.parametrize("shape", [(2, 7), (5,), (5, 7, 1)])
    def test_scores_of_another_shape_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"need shape \(B, K\) and target_index \(B,\)"):
            flat_nce_loss(torch.zeros(shape), TARGET)

    @pytest.mark.compiled
    def test_a_mask_of_another_shape_is_refused(self):
        with pytest.raises(ValueError, match=r"ignore must have the scores' shape \(5, 7\)"):
            flat_nce_loss(draw(5, 7), TARGET, ignore=MASK[:, :3])

    @pytest.mark.compiled
    def test_an_unknown_report_is_refused(self):
        with pytest.raises(ValueError, match='report must be "infonce", "log_xi" or "flat"'):
            flat_nce_loss(draw(5, 7), TARGET, report="value")
