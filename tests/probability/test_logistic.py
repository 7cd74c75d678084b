"""The softmax layer in closed form: the formula, batches, weights, shrinkage and bad input."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage, oas
from sklearn.datasets import load_iris, load_wine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from kexue.probability.class_statistics import ROWS, class_statistics
from kexue.probability.logistic import closed_form_logistic, closed_form_softmax
from kexue.probability.softmax_layer import ClosedFormSoftmax
from naive import logistic as naive

A = (
    torch.tensor([[0, 0], [1, 0], [0, 1], [2, 2], [3, 2], [2, 3], [3, 3]], dtype=torch.float64),
    torch.tensor([0, 0, 0, 1, 1, 1, 1]),
)
C = (
    torch.tensor([[0, 0], [1, 0.5], [2, 2], [3, 2.5], [0, 3], [1, 4]], dtype=torch.float64),
    torch.tensor([0, 0, 1, 1, 2, 2]),
)


def near(found, wanted, rtol=1e-10, atol=0.0):
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)


def gaussian(rows=200, features=5, classes=3, seed=0):
    """Correlated rows of several classes; every class occurs."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(rows) % classes
    y = y[torch.randperm(rows, generator=g)]
    mix = torch.randn(features, features, generator=g, dtype=torch.float64)
    means = torch.randn(classes, features, generator=g, dtype=torch.float64)
    noise = torch.randn(rows, features, generator=g, dtype=torch.float64)
    return noise @ mix + 2 * means[y], y


def wine(standardised=False):
    x, y = load_wine(return_X_y=True)
    if standardised:
        x = (x - x.mean(0)) / x.std(0)
    return torch.from_numpy(x), torch.from_numpy(y)


# worked numbers


def test_seven_points_give_the_worked_weight_bias_and_probability():
    w, b = closed_form_logistic(*A)
    near(w, [11.375, 11.375])
    near(b, -31.941484594214884)
    near((torch.tensor([1.2, 1.4], dtype=torch.float64) @ w + b).sigmoid(), 0.08576437726917557)
    counts, means, scatter = class_statistics(*A, 2)
    near(means, [[1 / 3, 1 / 3], [2.5, 2.5]])
    near(scatter / counts.sum(), np.array([[5, -1], [-1, 5]]) / 21)


def test_a_uniform_prior_takes_the_logarithm_of_the_shares_out_of_the_bias():
    near(closed_form_logistic(*A, prior="uniform")[1], -32.229166666666664)
    near(closed_form_logistic(*A)[1] - closed_form_logistic(*A, prior=[0.5, 0.5])[1], np.log(4 / 3))


def test_six_points_of_three_classes_give_the_worked_bias_and_probabilities():
    model = ClosedFormSoftmax(3, shrinkage=0.1).fit(*C)
    near(model.bias, [-1.6541678442236654, -20.419599942989098, -132.45663698002608])
    near(closed_form_softmax(*C, 3, shrinkage=0.1)[1], model.bias)
    p = model.predict_proba(torch.ones(1, 2).double())[0]
    near(p[:2], [0.9508725905449957, 0.049127409455004226])
    near(p[2], 1.29e-43, rtol=5e-3)
    counts, _, scatter = class_statistics(*C, 3)
    sigma = scatter / counts.sum()
    near(
        0.9 * sigma + 0.1 * sigma.trace() / 2 * torch.eye(2).double(),
        [[0.24375, 0.15], [0.15, 0.13125]],
    )


# the formula


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_layer_is_that_of_the_formula_written_out(classes, shrinkage):
    x, y = gaussian(classes=classes)
    weight, bias = naive.softmax_layer(x.numpy(), y.numpy(), classes, shrinkage)
    model = ClosedFormSoftmax(classes, shrinkage).fit(x, y)
    function = closed_form_softmax(x, y, classes, shrinkage=shrinkage)
    for found in ((model.weight, model.bias), function):
        near(found[0], weight, rtol=1e-10, atol=1e-12)
        near(found[1], bias, rtol=1e-10, atol=1e-12)
    near(model.predict_proba(x), naive.probabilities(x.numpy(), weight, bias), atol=1e-14)
    near(model.log_prob(x).exp(), model.predict_proba(x))
    assert torch.equal(model.predict(x), model.predict_proba(x).argmax(1))


def test_the_covariance_within_classes_is_the_articles_difference_of_moments():
    x, y = gaussian()
    counts, _, scatter = class_statistics(x, y, 3)
    near(scatter / counts.sum(), naive.covariance(x.numpy(), y.numpy(), 3), atol=1e-13)


@pytest.mark.parametrize(
    ("data", "classes"),
    [
        (wine(), 3),
        (wine(standardised=True), 3),
        (gaussian(classes=2), 2),
        (gaussian(400, 30, 9), 9),
    ],
    ids=["wine", "wine standardised", "two classes", "nine classes"],
)
def test_it_is_linear_discriminant_analysis_of_scikit_learn(data, classes):
    x, y = data
    model = ClosedFormSoftmax(classes).fit(x, y)
    peer = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), y.numpy())
    weight, bias = model.weight, model.bias
    if classes == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    near(weight, peer.coef_, rtol=1e-9, atol=1e-9 * float(weight.abs().max()))
    near(bias, peer.intercept_, rtol=1e-9)
    near(model.predict_proba(x), peer.predict_proba(x.numpy()), rtol=1e-7, atol=1e-10)


def test_two_classes_by_the_general_formula_are_the_binary_formula():
    x, y = gaussian(classes=2)
    weight, bias = closed_form_softmax(x, y, 2)
    w, b = closed_form_logistic(x, y)
    near(weight[1] - weight[0], w)
    near(bias[1] - bias[0], b)
    naive_w, naive_b = naive.binary(x.numpy(), y.numpy())
    near(w, naive_w)
    near(b, naive_b)


def test_least_squares_on_zero_and_one_has_the_same_direction_and_the_known_length():
    x, y = gaussian(classes=2)
    x, y = x[:170], y[:170]
    w, _ = closed_form_logistic(x, y)
    design = torch.cat((x, torch.ones(len(x), 1)), dim=1)
    slope = torch.linalg.lstsq(design, y.double()[:, None]).solution[:-1, 0]
    p = y.double().mean()
    gap = x[y == 1].mean(0) - x[y == 0].mean(0)
    distance = gap @ w  # (m_1 − m_0) Sigma^-1 (m_1 − m_0)ᵀ
    near(slope * (1 + p * (1 - p) * distance) / (p * (1 - p)), w, rtol=1e-9)


def test_an_invertible_affine_map_of_the_features_leaves_the_probabilities():
    x, y = gaussian()
    before = ClosedFormSoftmax(3).fit(x, y).predict_proba(x)
    g = torch.Generator().manual_seed(1)
    moved = x @ torch.randn(5, 5, generator=g).double() + 100
    near(ClosedFormSoftmax(3).fit(moved, y).predict_proba(moved), before, rtol=1e-8, atol=1e-12)
    units = x * torch.tensor([1e-12, 1e-6, 1.0, 1e6, 1e12]).double()
    near(ClosedFormSoftmax(3).fit(units, y).predict_proba(units), before, rtol=1e-9, atol=1e-13)


def test_whitening_first_changes_nothing():
    x, y = (torch.from_numpy(one) for one in load_iris(return_X_y=True))
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    white = (x - x.mean(0)) @ vectors / values.sqrt()
    near(
        ClosedFormSoftmax(3).fit(white, y).predict_proba(white),
        ClosedFormSoftmax(3).fit(x, y).predict_proba(x),
        rtol=1e-9,
        atol=1e-13,
    )


def test_a_mean_a_hundred_million_times_the_spread_costs_no_probability():
    x, y = gaussian()
    far = x + 2.0**27  # the rows are rounded to 2^-26, everything after is exact enough
    rounded = far - 2.0**27
    near(
        ClosedFormSoftmax(3).fit(far, y).predict_proba(far),
        ClosedFormSoftmax(3).fit(rounded, y).predict_proba(rounded),
        rtol=1e-6,
        atol=1e-9,
    )


def test_gradients_in_the_features_are_those_of_finite_differences():
    x, y = gaussian(rows=12, features=3)
    x.requires_grad_()

    def layer(x):
        return closed_form_softmax(x, y, 3, shrinkage=0.2)

    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradcheck(lambda x: closed_form_softmax(x, y, 3, shrinkage="oas"), (x,))
    assert torch.autograd.gradcheck(lambda x: closed_form_logistic(x, y.clamp(max=1)), (x,))


# batches and weights


@pytest.mark.parametrize("sizes", [(1,) * 200, (200,), (3, 0, 97, 100), (50, 150)])
def test_batches_of_any_size_in_any_order_give_the_same_layer(sizes):
    x, y = gaussian()
    order = torch.randperm(200, generator=torch.Generator().manual_seed(2))
    whole, parts = ClosedFormSoftmax(3).fit(x, y), ClosedFormSoftmax(3)
    for rows in order.split(sizes):
        parts.partial_fit(x[rows], y[rows])
    parts.finalize()
    near(parts.weight, whole.weight, atol=1e-12)
    near(parts.bias, whole.bias)


def test_merged_parts_give_the_layer_of_the_whole_and_stay_as_they_were():
    x, y = gaussian()
    whole = ClosedFormSoftmax(3, "oas").fit(x, y)
    parts = [ClosedFormSoftmax(3, "oas") for _ in range(4)]  # the last one sees nothing
    for part, rows in zip(parts, torch.arange(200).split([20, 80, 100]), strict=False):
        part.partial_fit(x[rows], y[rows])
    total = ClosedFormSoftmax(3, "oas")
    for part in parts:
        total.merge(part)
    near(total.finalize().weight, whole.weight, atol=1e-12)
    near(total.bias, whole.bias)
    assert float(parts[0].statistics.total) == 20
    with pytest.raises(ValueError, match="partial_fit and then finalize"):
        total.merge(parts[0]).predict(x)


def test_sorted_labels_and_classes_that_come_late_do_no_harm():
    x, y = gaussian()
    order = y.argsort()
    sequence = ClosedFormSoftmax(3)
    for rows in order.split(7):
        sequence.partial_fit(x[rows], y[rows])
    near(sequence.finalize().weight, ClosedFormSoftmax(3).fit(x, y).weight, atol=1e-12)


def test_more_rows_than_a_block_and_many_classes_are_the_formula_too():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(2 * ROWS + 5) % 500
    x = torch.randn(len(y), 4, generator=g).double() + torch.randn(500, 4, generator=g)[y]
    weight, bias = naive.softmax_layer(x.numpy(), y.numpy(), 500)
    model = ClosedFormSoftmax(500).fit(x, y)
    near(model.weight, weight, atol=1e-11)
    near(model.bias, bias, atol=1e-11)


@pytest.mark.parametrize("shrinkage", [0.0, 0.2, "oas", "ledoit_wolf"])
def test_a_whole_weight_is_a_row_repeated(shrinkage):
    x, y = gaussian()
    times = torch.arange(200) % 4
    repeated = ClosedFormSoftmax(3, shrinkage).fit(
        x.repeat_interleave(times, 0), y.repeat_interleave(times)
    )
    weighted = ClosedFormSoftmax(3, shrinkage).fit(x, y, times)
    near(weighted.weight, repeated.weight, atol=1e-12)
    near(weighted.bias, repeated.bias)


def test_doubling_every_row_changes_nothing_at_a_given_shrinkage():
    x, y = gaussian()
    once = ClosedFormSoftmax(3, 0.2).fit(x, y)
    twice = ClosedFormSoftmax(3, 0.2).fit(torch.cat((x, x)), torch.cat((y, y)))
    near(twice.weight, once.weight, atol=1e-12)
    near(twice.bias, once.bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_features_are_gathered_exactly(dtype):
    x, y = gaussian()
    low = (x * 100 + 300).to(dtype)  # squares overflow half precision
    wanted = ClosedFormSoftmax(3).fit(low.double(), y)
    near(ClosedFormSoftmax(3).fit(low, y).weight, wanted.weight, rtol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        near(ClosedFormSoftmax(3).fit(low, y).weight, wanted.weight, rtol=1e-12)
        fast = ClosedFormSoftmax(3, dtype=torch.float32).fit(low, y)
    near(fast.weight, wanted.weight, rtol=1e-3, atol=1e-6)
    assert closed_form_softmax(low, y, 3)[0].dtype == torch.float32


# shrinkage and prior


def test_full_shrinkage_is_the_nearest_mean():
    x, y = gaussian()
    model = ClosedFormSoftmax(3, 1.0).fit(x, y)
    counts, means, scatter = class_statistics(x, y, 3)
    variance = (scatter / counts.sum()).trace() / 5
    logits = (counts / 200).log() - torch.cdist(x, means).square() / (2 * variance)
    near(model.predict_proba(x), logits.softmax(1), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0, "oas", "ledoit_wolf"])
def test_equal_shares_put_the_boundary_through_the_middle(shrinkage):
    x, y = gaussian(rows=210)
    model = ClosedFormSoftmax(3, shrinkage).fit(x, y)
    _, means, _ = class_statistics(x, y, 3)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        logits = model.decision_function((means[[i]] + means[[j]]) / 2)[0]
        near(logits[i], logits[j], rtol=1e-9, atol=1e-9)


def test_another_prior_moves_the_bias_alone():
    x, y = gaussian()
    shares = torch.bincount(y).double() / 200
    prior = torch.tensor([0.7, 0.2, 0.1]).double()
    one, two = ClosedFormSoftmax(3).fit(x, y), ClosedFormSoftmax(3, prior=prior).fit(x, y)
    assert torch.equal(one.weight, two.weight)
    near(two.bias - one.bias, (prior / shares).log(), rtol=1e-9)


def test_gaussian_classes_are_classified_as_bayes_would():
    g = torch.Generator().manual_seed(0)
    y = torch.multinomial(torch.tensor([0.2, 0.5, 0.3]), 200_000, True, generator=g)
    means = torch.tensor([[0.0, 0.0], [1.0, 2.0], [-1.0, 1.0]])
    mix = torch.tensor([[1.0, 0.5], [0.0, 0.8]])
    x = means[y] + torch.randn(len(y), 2, generator=g) @ mix
    precision = torch.linalg.inv(mix.T @ mix)
    gaps = x[:, None] - means
    logits = torch.tensor([0.2, 0.5, 0.3]).log() - ((gaps @ precision) * gaps).sum(2) / 2
    found = ClosedFormSoftmax(3).fit(x, y).predict_proba(x)
    assert (found - logits.softmax(1)).abs().max() < 0.02


@pytest.mark.parametrize("rule", ["oas", "ledoit_wolf"])
def test_the_chosen_shrinkage_is_that_of_scikit_learn_on_the_residuals(rule):
    x, y = gaussian(rows=40, features=20)
    _, means, _ = class_statistics(x, y, 3)
    residuals = (x - means[y]).numpy()
    amount = (
        oas(residuals, assume_centered=True)[1]
        if rule == "oas"
        else ledoit_wolf_shrinkage(residuals, assume_centered=True)
    )
    assert 0.01 < amount < 0.9
    given = ClosedFormSoftmax(3, float(amount)).fit(x, y)
    near(ClosedFormSoftmax(3, rule).fit(x, y).weight, given.weight, atol=1e-12)
    near(closed_form_softmax(x, y, 3, shrinkage=rule)[0], given.weight, atol=1e-12)


@pytest.mark.parametrize("rule", ["oas", "ledoit_wolf"])
def test_few_rows_without_a_direction_are_shrunk_all_the_way_and_no_further(rule):
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    y = torch.arange(12) % 3
    full = ClosedFormSoftmax(3, 1.0).fit(x, y)
    near(ClosedFormSoftmax(3, rule).fit(x, y).weight, full.weight, atol=1e-12)


def test_with_shrinkage_there_may_be_more_features_than_rows():
    x, y = gaussian(rows=20, features=50)
    for shrinkage in (0.1, "oas", "ledoit_wolf"):
        assert (ClosedFormSoftmax(3, shrinkage).fit(x, y).predict(x) == y).double().mean() > 0.8


# use


def test_the_linear_layer_has_the_probabilities_of_the_model():
    x, y = wine()
    model = ClosedFormSoftmax(3).fit(x, y)
    near(model.to_linear(torch.float64)(x).softmax(1), model.predict_proba(x), atol=1e-10)
    layer = model.to_linear()
    assert layer.weight.dtype == torch.float32
    assert layer.weight.shape == (3, 13)
    assert layer.weight.requires_grad
    probabilities = layer(x.float()).softmax(1).double()
    near(probabilities, model.predict_proba(x), rtol=0, atol=1e-3)


def test_it_survives_pickling_and_copying():
    x, y = gaussian()
    model = ClosedFormSoftmax(3, 0.1).partial_fit(x[:100], y[:100])
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        twin.partial_fit(x[100:], y[100:]).finalize()
        near(twin.weight, ClosedFormSoftmax(3, 0.1).fit(x, y).weight, atol=1e-12)


def test_no_row_has_no_prediction():
    x, y = gaussian()
    model = ClosedFormSoftmax(3).fit(x, y)
    assert model.predict(x[:0]).shape == (0,)
    assert model.predict_proba(x[:0]).shape == (0, 3)


def test_what_inference_mode_gathered_may_be_used_outside():
    x, y = gaussian()
    model = ClosedFormSoftmax(3)
    with torch.inference_mode():
        model.partial_fit(x[:50] * 1, y[:50] * 1)
        other = ClosedFormSoftmax(3).partial_fit(x[50:100] * 1, y[50:100] * 1)
    model.partial_fit(x[100:], y[100:]).merge(other).finalize()
    near(model.weight, ClosedFormSoftmax(3).fit(x, y).weight, atol=1e-12)
    with torch.inference_mode():
        model.finalize()
    model.to_linear(torch.float64)(x).sum().backward()


def test_features_that_want_gradients_leave_none_in_the_statistics():
    x, y = gaussian()
    model = ClosedFormSoftmax(3).fit(x.clone().requires_grad_(), y)
    assert not model.weight.requires_grad
    assert torch.equal(model.weight, ClosedFormSoftmax(3).fit(x, y).weight)


def test_labels_of_every_whole_dtype_are_taken():
    x, y = gaussian(classes=2)
    wanted = ClosedFormSoftmax(2).fit(x, y).weight
    for dtype in (torch.int32, torch.uint8, torch.bool):
        assert torch.equal(ClosedFormSoftmax(2).fit(x, y.to(dtype)).weight, wanted)


def test_fit_forgets_and_finalize_may_be_called_between_batches():
    x, y = gaussian()
    model = ClosedFormSoftmax(3).fit(x[:100] + 5, y[:100]).fit(x, y)
    near(model.weight, ClosedFormSoftmax(3).fit(x, y).weight)
    model = ClosedFormSoftmax(3).partial_fit(x[:100], y[:100]).finalize()
    model.partial_fit(x[100:], y[100:])
    with pytest.raises(ValueError, match="partial_fit and then finalize"):
        model.predict(x)
    near(model.finalize().weight, ClosedFormSoftmax(3).fit(x, y).weight, atol=1e-12)


# bad input

X, Y = gaussian()
HOLES = X.clone()
HOLES[4], HOLES[9, 1] = torch.nan, torch.inf


@pytest.mark.parametrize(
    ("x", "y", "weight", "error", "message"),
    [
        (X[0], Y, None, ValueError, r"features must be \(rows, features\), got shape \(5,\)"),
        (X[:, :0], Y, None, ValueError, r"got shape \(200, 0\)"),
        (X.long(), Y, None, TypeError, "features must be a floating tensor, got torch.int64"),
        (X, Y[:9], None, ValueError, r"labels must have shape \(200,\).*got \(9,\)"),
        (X, Y.double(), None, TypeError, "labels must be a tensor of whole numbers.*float64"),
        (X, Y + 1, None, ValueError, "labels must be between 0 and 2, got 1 to 3"),
        (X, Y - 1, None, ValueError, "labels must be between 0 and 2, got -1 to 1"),
        (X, Y * 0, None, ValueError, "no row of class 1, 2"),
        (X, Y, -Y, ValueError, "sample_weight must be finite and not negative"),
        (X, Y, Y[:3], ValueError, r"sample_weight must have shape \(200,\)"),
        (X, Y, (Y != 2).long(), ValueError, "no row of class 2"),
        (X[:3], Y[:3], None, ValueError, "3 rows for 3 classes.*at least 4"),
        (X[:0], Y[:0], None, ValueError, "0 rows for 3 classes"),
        (HOLES, Y, None, ValueError, "2 of 200 rows.*first row 4"),
        (X, Y.to("meta"), None, ValueError, "labels are on meta, features on cpu"),
        (X * 1e200, Y, None, ValueError, "overflow"),
    ],
)
def test_bad_rows_are_refused_with_what_was_wrong(x, y, weight, error, message):
    with pytest.raises(error, match=message):
        ClosedFormSoftmax(3).fit(x, y, weight)
    if weight is None:
        with pytest.raises(error, match=message):
            closed_form_softmax(x, y, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 1}, ValueError, "num_classes must be at least 2, got 1"),
        ({"shrinkage": 1.5}, ValueError, "shrinkage must be between 0 and 1, got 1.5"),
        ({"shrinkage": float("nan")}, ValueError, "shrinkage must be between 0 and 1"),
        ({"prior": [0.5, 0.5]}, ValueError, "3 positive probabilities.*2 numbers with sum 1"),
        ({"prior": [0.5, 0.5, 0.0]}, ValueError, "3 positive probabilities"),
        ({"prior": [0.5, 0.5, 0.5]}, ValueError, "sum 1.5"),
        ({"shrinkage": None}, TypeError, "shrinkage"),
        ({"prior": 0.5}, TypeError, "prior"),
        ({"prior": {0: 0.2, 1: 0.3, 2: 0.5}}, TypeError, "prior"),
        ({"dtype": torch.float16}, ValueError, "dtype must be torch.float32 or torch.float64"),
    ],
)
def test_bad_settings_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ClosedFormSoftmax(**({"num_classes": 3} | options))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_singular_covariance_names_its_columns_and_the_way_out(dtype):
    x, y = gaussian(rows=5000)
    constant = torch.cat((x, torch.full((5000, 1), 0.1), y[:, None] * 0.7 + 1e3), dim=1)
    dependent = torch.cat((x, x[:, :1] - 3 * x[:, 2:3]), dim=1)
    for data in (constant, constant.float()):
        with pytest.raises(ValueError, match=r"columns 5, 6 are constant.*give shrinkage"):
            ClosedFormSoftmax(3, dtype=dtype).fit(data, y)
    with pytest.raises(ValueError, match=r"column 5 is a linear combination.*give shrinkage"):
        ClosedFormSoftmax(3, dtype=dtype).fit(dependent, y)
    rounded = torch.cat((x, x.softmax(1).sum(1, keepdim=True)), dim=1)  # 1, or next to it
    assert rounded[:, 5].std() > 0
    with pytest.raises(ValueError, match="column 5 is constant"):
        ClosedFormSoftmax(3, dtype=dtype).fit(rounded, y)
    for data in (constant, dependent):
        assert ClosedFormSoftmax(3, 0.01, dtype=dtype).fit(data, y).weight.isfinite().all()


def test_fewer_rows_than_features_are_refused_without_shrinkage():
    x, y = gaussian(rows=20, features=50)
    with pytest.raises(ValueError, match=r"fewer rows than features.*give shrinkage"):
        ClosedFormSoftmax(3).fit(x, y)


@pytest.mark.parametrize(
    ("features", "seed", "powers"),
    [(6, 52, 2), (6, 80, 0), (20, 189, 6), (20, 265, 4), (38, 298, 4), (64, 343, 2), (64, 363, 4)],
)
def test_rows_are_too_few_for_their_classes_whatever_rounding_says(features, seed, powers):
    g = torch.Generator().manual_seed(seed)  # rounding leaves a share of every feature unexplained
    units = torch.logspace(0, -powers, features, dtype=torch.float64)
    mix = units[:, None] * torch.randn(features, features, generator=g, dtype=torch.float64)
    x = torch.randn(features + 2, features, generator=g, dtype=torch.float64) @ mix
    y = torch.arange(len(x)) % 3  # features + 2 rows about 3 means: a rank of features − 1
    for dtype in (torch.float64, torch.float32):
        with pytest.raises(ValueError, match=r"fewer rows than features.*give shrinkage"):
            ClosedFormSoftmax(3, dtype=dtype).fit(x, y)
    more = torch.cat((x, torch.randn(400, features, generator=g, dtype=torch.float64) @ mix))
    assert ClosedFormSoftmax(3).fit(more, torch.arange(len(more)) % 3).weight.isfinite().all()


def test_products_in_float32_do_not_mind_how_far_the_mean_of_double_features_is():
    x, y = gaussian()
    wanted = ClosedFormSoftmax(3).fit(x, y).predict_proba(x)
    for far in (0.0, 1e3, 1e7, 1e9):
        found = ClosedFormSoftmax(3, dtype=torch.float32).fit(x + far, y).predict_proba(x + far)
        near(found, wanted, rtol=0, atol=1e-4)


def test_classes_of_one_point_each_have_no_covariance_to_shrink():
    x, y = gaussian(rows=3)
    with pytest.raises(ValueError, match="constant within every class"):
        ClosedFormSoftmax(3, 0.5).fit(x.repeat(2, 1), y.repeat(2))


def test_a_refused_batch_leaves_what_was_gathered():
    x, y = gaussian()
    model = ClosedFormSoftmax(3).partial_fit(x, y)
    for bad in (x * torch.nan, x[:, :2], x * 1e200):
        with pytest.raises(ValueError, match=r"NaN|columns|overflow"):
            model.partial_fit(bad, y)
    near(model.finalize().weight, ClosedFormSoftmax(3).fit(x, y).weight)


def test_rows_too_large_for_their_squares_are_found_when_they_come_one_by_one():
    x, y = gaussian(rows=20)
    model = ClosedFormSoftmax(3)
    for row, label in zip(x * 1e160, y, strict=True):
        model.partial_fit(row[None], label[None])
    with pytest.raises(ValueError, match="overflow when they are squared"):
        model.finalize()


def test_a_refused_fit_leaves_no_old_layer_to_predict_with():
    x, y = gaussian()
    model = ClosedFormSoftmax(3).fit(x, y)
    assert model.solved
    for bad in (x * torch.nan, x[:, [0, 0]]):
        with pytest.raises(ValueError, match=r"NaN|singular"):
            model.fit(bad, y)
        with pytest.raises(ValueError, match="call fit"):
            model.predict(x)


def test_steps_out_of_order_say_what_to_call():
    x, y = gaussian()
    model = ClosedFormSoftmax(3)
    for early in (model.to_linear, lambda: model.predict(x)):
        with pytest.raises(ValueError, match="call fit, or partial_fit and then finalize"):
            early()
    with pytest.raises(ValueError, match="no row was given"):
        model.finalize()
    with pytest.raises(ValueError, match="no row was given"):
        model.partial_fit(x[:0], y[:0]).finalize()
    with pytest.raises(ValueError, match="needs the rows a second time"):
        ClosedFormSoftmax(3, "ledoit_wolf").partial_fit(x, y).finalize()
    with pytest.raises(ValueError, match="cannot merge 2 classes into 3"):
        model.merge(ClosedFormSoftmax(2))
    with pytest.raises(ValueError, match="cannot merge rows of 2 features into rows of 5"):
        model.partial_fit(x, y).merge(ClosedFormSoftmax(3).partial_fit(x[:, :2], y))
    with pytest.raises(ValueError, match="2 columns, those before had 5"):
        model.finalize().predict(x[:, :2])
