"""CAN: worked numbers, properties, the estimator, complaints."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch

from kexue.probability.can import can_correct, topk_uncertainty
from kexue.probability.can_estimator import CAN, can_multilabel
from naive.can import naive_can, naive_uncertainty

HIGH = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.85, 0.1, 0.05]])
LOW = np.array([[0.4, 0.35, 0.25]])
PRIOR = np.array([0.4, 0.3, 0.3])


def draw(rows, classes, seed=0, sharp=3.0):
    scores = np.random.default_rng(seed).standard_normal((rows, classes)) * sharp
    p = np.exp(scores)
    return p / p.sum(1, keepdims=True)


def mixed(seed=0, classes=4):
    """Sure and unsure rows, enough sure ones."""
    p = np.concatenate([draw(40, classes, seed, 8.0), draw(15, classes, seed + 1, 0.3)])
    return p[np.random.default_rng(seed).permutation(len(p))]


# --- worked numbers


def test_the_undecided_sample_goes_to_the_class_that_is_short():
    found = can_correct(np.array([[0.5, 0.5]]), np.array([[0.05, 0.95]]), np.array([0.5, 0.5]))
    np.testing.assert_allclose(found, [[0.725, 0.275]], rtol=0, atol=1e-10)


def test_the_worked_uncertainties():
    found = topk_uncertainty(np.array([[0.05, 0.95], [0.5, 0.5]]), k=2)
    np.testing.assert_allclose(found, [0.2863969571, 1], rtol=0, atol=1e-10)
    found = topk_uncertainty(np.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0]]), k=3)
    np.testing.assert_allclose(found, [0.9463946304, 0.6309297536], rtol=0, atol=1e-10)
    found = topk_uncertainty(np.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0]]), k=2)
    np.testing.assert_allclose(found, [0.9182958341, 1], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("alpha", "steps", "expected"),
    [
        (1.0, 1, [0.25976207, 0.24100770, 0.49923023]),
        (1.0, 2, [0.24281504, 0.23925039, 0.51793456]),
        (1.0, 200, [0.23761287, 0.24219044, 0.52019669]),
        (0.5, 1, [0.33024135, 0.27883757, 0.39092108]),
        (0.5, 200, [0.4, 0.3, 0.3]),
        (2.0, 1, [0.14832161, 0.14491841, 0.70675997]),
        (2.0, 200, [0, 0, 1]),
    ],
)
def test_the_worked_corrections(alpha, steps, expected):
    found = can_correct(LOW, HIGH, PRIOR, alpha=alpha, steps=steps)
    np.testing.assert_allclose(found, [expected], rtol=0, atol=6e-9)


# --- properties


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_way_to_compute_it_is_the_loop(alpha, steps):
    low, high, prior = draw(6, 5, 1), draw(9, 5, 2), np.array([1, 2, 3, 4, 5]) / 15
    found = can_correct(low, high, prior, alpha=alpha, steps=steps, chunk=4)
    expected = [naive_can(row, high, prior, alpha, steps) for row in low]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_uncertainty_is_that_of_the_formula_and_deaf_to_the_tail():
    p = draw(20, 7)
    for k in (2, 3, 7):
        expected = [naive_uncertainty(row, k) for row in p]
        np.testing.assert_allclose(topk_uncertainty(p, k), expected, rtol=0, atol=1e-12)
    tail = np.array([[0.4, 0.3, 0.3, 0.0], [0.4, 0.3, 0.15, 0.15]])
    assert topk_uncertainty(tail, 2)[0] == topk_uncertainty(tail, 2)[1]


def test_uncertainty_is_zero_for_one_hot_rows_and_one_only_for_equal_ones():
    p = np.array([[1.0, 0, 0, 0], [0.3, 0.3, 0.3, 0.1], [0.30001, 0.3, 0.29999, 0.1]])
    found = topk_uncertainty(p, 3)
    assert found[0] == 0
    assert found[1] == pytest.approx(1, abs=1e-15)
    assert found[1] <= 1
    assert found[2] < 1 - 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uncertainty_of_equal_probabilities_is_not_above_one_by_rounding(dtype):
    for k in range(2, 60):
        u = topk_uncertainty(torch.full((1, k), 1 / k, dtype=dtype), k)
        assert 1 - 4 * torch.finfo(dtype).eps <= float(u) <= 1


def test_the_other_two_uncertainties():
    p = np.array([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]])
    np.testing.assert_allclose(
        topk_uncertainty(p, 3, "any_topk"), [1.0, 0.9463946304], rtol=0, atol=1e-10
    )
    two = -(0.5 * math.log(0.5) + 0.25 * math.log(0.25)) / math.log(3)
    np.testing.assert_allclose(topk_uncertainty(p, 2, "paper")[1], two, rtol=0, atol=1e-12)


def test_trusted_rows_come_back_bit_for_bit_and_the_others_change():
    p = mixed()
    found = CAN(prior="uniform").fit_transform(p)
    sure = topk_uncertainty(p, 3) < 0.9
    assert 20 <= sure.sum() < len(p)
    assert (found[sure] == p[sure]).all()
    assert (np.abs(found[~sure] - p[~sure]).max(1) > 0).all()


def test_a_result_does_not_depend_on_other_unsure_rows_or_their_order():
    p = mixed()
    low = np.flatnonzero(topk_uncertainty(p, 3) >= 0.9)
    found = CAN(prior="uniform").fit_transform(p)
    fewer = np.delete(p, low[1:], axis=0)
    position = int(np.flatnonzero((fewer == p[low[0]]).all(1))[0])
    alone = CAN(prior="uniform").fit_transform(fewer)[position]
    np.testing.assert_allclose(alone, found[low[0]], rtol=0, atol=1e-15)
    turned = CAN(prior="uniform").fit_transform(p[::-1].copy())
    np.testing.assert_allclose(turned[::-1], found, rtol=0, atol=1e-15)


def test_permuting_the_classes_commutes():
    p, prior, order = mixed(), np.array([0.1, 0.2, 0.3, 0.4]), [2, 0, 3, 1]
    plain = CAN(prior=prior).fit_transform(p)
    turned = CAN(prior=prior[order]).fit_transform(p[:, order])
    np.testing.assert_allclose(turned, plain[:, order], rtol=0, atol=1e-15)


@pytest.mark.parametrize("steps", [1, 3])
def test_where_the_column_means_are_the_prior_nothing_changes(steps):
    high, low = draw(6, 4), draw(1, 4, 1)
    prior = np.concatenate([high, low]).mean(0)
    found = can_correct(low, high, prior, steps=steps)
    np.testing.assert_allclose(found, low, rtol=0, atol=1e-14)


def test_one_round_makes_column_means_the_prior_and_row_sums_one():
    y = np.concatenate([HIGH, LOW])
    column = y / y.mean(0) * PRIOR
    np.testing.assert_allclose(column.mean(0), PRIOR, rtol=0, atol=1e-15)
    expected = column[-1] / column[-1].sum()
    found = can_correct(LOW, HIGH, PRIOR)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-15)
    assert found.sum() == pytest.approx(1, abs=1e-15)


def test_a_factor_of_the_prior_changes_nothing():
    found = can_correct(LOW, HIGH, 1000 * PRIOR)
    np.testing.assert_allclose(found, can_correct(LOW, HIGH, PRIOR), rtol=0, atol=1e-15)


def test_with_many_trusted_rows_it_is_a_fixed_weight_per_class():
    high = np.tile(HIGH, (200_000, 1))
    weight = PRIOR / HIGH.mean(0)
    expected = LOW * weight / (LOW * weight).sum()
    np.testing.assert_allclose(can_correct(LOW, high, PRIOR), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_zeros_stay_zero_and_a_column_of_zeros_too(alpha, steps):
    low = np.array([[0.5, 0.5, 0.0, 0.0], [0.4, 0.3, 0.3, 0.0]])
    high = np.array([[0.9, 0.0, 0.1, 0.0], [0.1, 0.9, 0.0, 0.0]])
    found = can_correct(low, high, np.array([0.4, 0.3, 0.2, 0.1]), alpha=alpha, steps=steps)
    assert (found[low == 0] == 0).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=0, atol=1e-12)


def test_high_powers_do_not_underflow():
    low = torch.tensor([[1e-12, 2e-12, 1 - 3e-12]])
    found = can_correct(low, torch.full((4, 3), 1 / 3), torch.tensor([0.4, 0.3, 0.3]), alpha=9.0)
    assert found.isfinite().all()
    assert found.argmax() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_steps_and_high_powers_end_in_one_class_and_not_in_nothing(dtype):
    high, low = torch.tensor([[1.0, 0.0]], dtype=dtype).repeat(5, 1), torch.tensor([[0.5, 0.5]])
    prior = torch.tensor([0.5, 0.5])
    for steps in (10, 100, 1000):  # the rows cannot have these column means: factors fall to 0
        found = can_correct(low.to(dtype), high, prior, steps=steps)
        expected = torch.tensor([naive_can(low[0], high, prior, 1.0, steps)], dtype=dtype)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-37)
    mild = torch.cat((low.to(dtype), torch.tensor([[0.45, 0.55]], dtype=dtype)))
    both = can_correct(mild, torch.cat((high, mild)), prior, steps=3)
    expected = [naive_can(row, torch.cat((high, mild)), prior, 1.0, 3) for row in mild]
    torch.testing.assert_close(both, torch.tensor(expected, dtype=dtype), rtol=1e-6, atol=0)
    p = torch.full((1, 119), 1 / 120, dtype=dtype)
    p[0, 7] += 1 - p.sum()
    for alpha in (50.0, 400.0):  # 119^-50 is no number in float32, 119^-400 in none
        found = can_correct(p, torch.full((4, 119), 1 / 119), torch.ones(119), alpha=alpha, steps=2)
        assert found.argmax() == 7
        torch.testing.assert_close(found.sum(1), torch.ones(1, dtype=dtype))


# --- the estimator


def test_streamed_batches_give_what_one_fit_gives():
    p = mixed()
    labels = p.argmax(1)
    for steps in (1, 3):
        whole = CAN(steps=steps).fit(p, labels)
        stream = CAN(steps=steps)
        for batch in range(0, len(p), 7):
            stream.partial_fit(p[batch : batch + 7], labels[batch : batch + 7])
        np.testing.assert_allclose(stream.transform(p), whole.transform(p), rtol=0, atol=1e-13)
        assert stream.confident_rows == whole.confident_rows


def test_fitting_again_forgets_what_was_fitted_before():
    p, other = mixed(), mixed(7)
    labels = p.argmax(1)
    for steps in (1, 3):
        again = CAN(steps=steps).fit(other, other.argmin(1)).fit(p, labels)
        once = CAN(steps=steps).fit(p, labels)
        np.testing.assert_array_equal(again.transform(p), once.transform(p))
        assert again.confident_rows == once.confident_rows


def test_a_row_exactly_as_unsure_as_tau_is_corrected_and_not_trusted():
    p = np.array([[0.9, 0.1]] * 12 + [[0.5, 0.5]])
    assert topk_uncertainty(p, 2)[-1] == 1
    can = CAN(k=2, tau=1.0, prior="uniform").fit(p)
    assert can.confident_rows == 12
    found = can.transform(p)
    np.testing.assert_allclose(found[-1], can_correct(p[-1:], p[:12], np.ones(2))[0], atol=1e-15)
    assert found[-1, 1] > 0.8


def test_the_reference_may_be_other_rows_and_the_prior_their_labels():
    reference, p = mixed(1), mixed(2)
    labels = np.array([0] * 30 + [1] * 15 + [2] * 6 + [3] * 4)
    found = CAN().fit(reference, labels).transform(p)
    sure = topk_uncertainty(reference, 3) < 0.9
    low = topk_uncertainty(p, 3) >= 0.9
    expected = can_correct(p[low], reference[sure], np.bincount(labels) / len(labels))
    np.testing.assert_allclose(found[low], expected, rtol=0, atol=1e-13)


def test_logits_are_softmaxed():
    logits = torch.from_numpy(np.log(mixed()))
    found = CAN(prior="uniform").fit_transform(logits=logits)
    np.testing.assert_allclose(found, CAN(prior="uniform").fit_transform(mixed()), atol=1e-12)


def test_whole_numbers_as_logits_give_probabilities():
    logits = np.rint(20 * np.log(mixed()[:, ::-1]) + 40).astype(np.int64)
    found = CAN(prior="uniform").fit_transform(logits=logits)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(
        found, CAN(prior="uniform").fit_transform(logits=logits.astype(float))
    )


def test_a_class_whose_logit_is_minus_infinity_keeps_probability_zero():
    logits = np.log(mixed(classes=5))
    logits[:, 2] = -np.inf
    found = CAN(prior="uniform").fit_transform(logits=logits)
    np.testing.assert_array_equal(found[:, 2], 0)
    rest = CAN(prior="uniform").fit_transform(logits=np.delete(logits, 2, axis=1))
    np.testing.assert_allclose(np.delete(found, 2, axis=1), rest, rtol=0, atol=1e-14)


def test_arrays_that_torch_cannot_share_are_copied_and_left_alone():
    p, prior = mixed(), np.array([0.1, 0.2, 0.3, 0.4])
    expected = CAN(prior=prior).fit_transform(p)
    still = p.copy()
    still.flags.writeable = prior.flags.writeable = False
    reversed_twice = p[::-1].copy()[::-1]
    for one in (still, np.asfortranarray(p), reversed_twice):
        np.testing.assert_array_equal(CAN(prior=prior).fit_transform(one), expected)
    np.testing.assert_array_equal(topk_uncertainty(still), topk_uncertainty(p))
    low, high = np.broadcast_to(LOW, (2, 3)), np.broadcast_to(HIGH[:1], (4, 3))
    found = can_correct(low, high, PRIOR)
    np.testing.assert_allclose(found[1], naive_can(LOW[0], high, PRIOR), rtol=0, atol=1e-12)


def test_no_row_at_all_has_no_correction():
    p = mixed()
    can = CAN(prior="uniform").fit(p)
    assert can.transform(p[:0]).shape == (0, 4)
    assert can.partial_fit(p[:0]).confident_rows == CAN(prior="uniform").fit(p).confident_rows
    assert topk_uncertainty(p[:0]).shape == (0,)
    for alpha in (1.0, 2.0):
        for steps in (1, 2):
            empty = can_correct(p[:0], p, np.ones(4), alpha=alpha, steps=steps)
            assert empty.shape == (0, 4)


def test_labels_may_be_false_and_true_or_small_whole_numbers():
    p = mixed(classes=2)
    labels = p[:, 0] > 0.7
    expected = CAN(k=2, prior=np.bincount(labels)).fit_transform(p)
    for given in (labels, labels.astype(np.uint8), torch.from_numpy(labels)):
        np.testing.assert_array_equal(CAN(k=2).fit_transform(p, given), expected)


def test_it_survives_pickling_between_batches():
    p = mixed()
    for steps in (1, 2):
        half = CAN(prior="uniform", steps=steps).partial_fit(p[:30])
        whole = pickle.loads(pickle.dumps(half)).partial_fit(p[30:])
        expected = CAN(prior="uniform", steps=steps).fit(p).transform(p)
        np.testing.assert_allclose(whole.transform(p), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_stay_tensors_and_half_becomes_float32(dtype):
    p = torch.from_numpy(mixed()).to(dtype)
    p = (p / p.sum(1, keepdim=True)).to(dtype)
    found = CAN(prior="uniform").fit_transform(p)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert CAN(prior="uniform").fit_transform(mixed().astype(np.float32)).dtype == np.float32


def test_tau_zero_trusts_nobody_and_returns_the_input_with_a_warning():
    p = mixed()
    with pytest.warns(UserWarning, match="no row is trusted"):
        found = CAN(tau=0.0, prior="uniform").fit_transform(p)
    assert (found == p).all()


def test_tau_above_one_corrects_nobody():
    p = mixed()
    assert (CAN(tau=1.01, prior="uniform").fit_transform(p) == p).all()


def test_identity_takes_the_place_of_missing_trusted_rows():
    p = np.array([[0.4, 0.3, 0.3], [0.35, 0.35, 0.3]])
    prior = np.array([0.2, 0.3, 0.5])
    found = CAN(prior=prior, no_confident="identity").fit_transform(p)
    np.testing.assert_allclose(found, can_correct(p, np.eye(3), prior), rtol=0, atol=1e-14)
    wider, never = np.insert(p, 1, 0, axis=1), np.insert(prior, 1, 0)
    for steps in (1, 2):  # a class that never occurs and that no row predicts
        more = CAN(prior=never, no_confident="identity", steps=steps).fit_transform(wider)
        fewer = CAN(prior=prior, no_confident="identity", steps=steps).fit_transform(p)
        np.testing.assert_allclose(np.delete(more, 1, axis=1), fewer, rtol=0, atol=1e-14)


def test_few_trusted_rows_are_a_warning():
    p = np.concatenate([HIGH, LOW])
    with pytest.warns(UserWarning, match="only 3 trusted rows for 3 classes.* 15 rows"):
        CAN(prior="uniform").fit_transform(p)


def test_few_trusted_rows_are_no_matter_where_nothing_is_corrected():
    p = np.array([[0.9, 0.05, 0.05], [0.02, 0.97, 0.01]])
    np.testing.assert_array_equal(CAN(prior="uniform").fit_transform(p), p)


def test_k_beyond_the_classes_is_cut_with_a_warning():
    with pytest.warns(UserWarning, match="k = 3 is more than the 2 classes; taking 2"):
        assert topk_uncertainty(np.array([[0.5, 0.5]]), 3)[0] == pytest.approx(1)


def test_labels_that_do_not_exclude_each_other_are_two_classes_each():
    p = np.concatenate([np.tile([[0.05, 0.93]], (12, 1)), [[0.5, 0.45], [0.02, 0.5]]])
    assert can_multilabel(p.astype(np.float32), np.array([0.3, 0.8])).dtype == np.float32
    prior = np.array([0.3, 0.8])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = can_multilabel(p, prior)
    for label in (0, 1):
        pair = np.stack([p[:, label], 1 - p[:, label]], axis=1)
        both = np.array([prior[label], 1 - prior[label]])
        expected = CAN(k=2, prior=both).fit_transform(pair)[:, 0]
        np.testing.assert_allclose(found[:, label], expected, rtol=0, atol=1e-15)


def test_a_complaint_about_one_of_many_labels_names_it():
    p = np.tile([[0.05, 0.93, 0.5]], (12, 1))
    with pytest.warns(UserWarning, match="^label 2: no row is trusted"):
        found = can_multilabel(p, np.array([0.3, 0.8, 0.5]))
    np.testing.assert_allclose(found, p, rtol=0, atol=1e-15)
    assert can_multilabel(p[:, :0], np.zeros(0)).shape == (12, 0)
    with pytest.raises(ValueError, match=r"got 1\.25 in row 1, label 1"):
        can_multilabel(np.array([[0.5, 0.5], [0.5, 1.25]]), np.array([0.5, 0.5]))
    with pytest.raises(ValueError, match="label 1: prior must be frequencies ≥ 0"):
        can_multilabel(p[:, :2], np.array([0.5, 1.25]))
    with pytest.raises(ValueError, match="label 1: the prior of class 0 is 0"):
        can_multilabel(p[:, :2], np.array([0.3, 0.0]))
    with pytest.raises(ValueError, match=r"got shapes \(12, 3\) and \(2,\)"):
        can_multilabel(p, np.array([0.3, 0.8]))


# --- complaints


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0.5, 0.5], [1.2, -0.2]], r"got -0\.2.* in row 1, column 1"),
        ([[0.5, math.nan]], "got nan in row 0, column 1"),
        ([[0.5, 0.5], [0.5, 0.6]], r"row 1 sums to 1\.1"),
        ([[0.0, 0.0]], "row 0 sums to 0"),
    ],
)
def test_rows_that_are_no_distributions_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        topk_uncertainty(np.array(rows), 2)


def test_a_class_that_is_predicted_needs_a_prior():
    with pytest.raises(ValueError, match=r"prior of class 1 is 0, yet row 0 gives it 0\.35"):
        can_correct(LOW, HIGH, np.array([0.5, 0.0, 0.5]))
    with pytest.raises(ValueError, match=r"frequencies ≥ 0, not all 0"):
        can_correct(LOW, HIGH, np.array([0.5, -0.1, 0.6]))
    with pytest.raises(ValueError, match="prior must hold 3 numbers"):
        can_correct(LOW, HIGH, np.array([0.5, 0.5]))
    unsure, never = np.array([[0.5, 0.5, 0.0]]), np.array([0.5, 0.5, 0.0])
    with pytest.raises(ValueError, match="prior of class 2 is 0"):
        can_correct(unsure, HIGH, never)
    fitted = CAN(k=2, prior=never).fit(np.tile(HIGH, (5, 1)))
    with pytest.raises(ValueError, match="prior of class 2 is 0, yet a trusted row"):
        fitted.transform(unsure)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CAN(k=1), "k must be a whole number of at least 2"),
        (lambda: topk_uncertainty(HIGH, 1), "k must be a whole number of at least 2"),
        (lambda: CAN(alpha=0.0), "alpha must be positive"),
        (lambda: CAN(alpha=math.nan), "alpha must be positive"),
        (lambda: CAN(steps=0), "steps must be a whole number of at least 1, got 0"),
        (lambda: CAN(chunk=0), "chunk must be a whole number of at least 1, got 0"),
        (lambda: CAN(tau=math.nan), "tau must be 0 or more, got nan"),
        (lambda: CAN(prior=np.ones(2)).fit(HIGH), "prior must hold 3 numbers"),
        (lambda: CAN(prior="uniform").fit(logits=HIGH * [1, math.nan, 1]), "logits of row 0"),
        (lambda: CAN(prior="uniform").fit(logits=HIGH[0]), r"\(rows, classes\), got shape \(3,\)"),
        (lambda: CAN(prior="uniform").transform(LOW), "fit this CAN first"),
        (lambda: CAN().fit(HIGH), "no prior: give prior="),
        (lambda: CAN(prior="uniform").fit(HIGH).partial_fit(np.eye(2)), "batches before had 3"),
        (lambda: CAN().fit(HIGH, np.array([0, 1, 3])), "labels must be 0 to 2"),
        (lambda: CAN(prior="uniform").fit(HIGH).transform(np.eye(2)), "the reference has 3"),
        (lambda: can_correct(LOW, HIGH[:0], PRIOR), "confident holds no row"),
        (lambda: CAN(prior="uniform").fit(), "exactly one of p and logits"),
    ],
)
def test_senseless_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CAN().fit(HIGH, np.array(["a", "b", "c"])), "labels must be numbers"),
        (lambda: topk_uncertainty(np.array([["a", "b"]])), "p must be numbers"),
        (lambda: topk_uncertainty(np.array([[0, 1]]), 2), "floating numbers"),
    ],
)
def test_things_that_are_no_numbers_are_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()
