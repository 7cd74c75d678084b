"""The scikit-learn estimator: its contract, its company and its bad input."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_iris,
    load_wine,
    make_classification,
)
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from kexue.probability.logistic_regression import ClosedFormLogisticRegression
from kexue.probability.softmax_layer import ClosedFormSoftmax


@parametrize_with_checks(
    [ClosedFormLogisticRegression(shrinkage=one) for one in (0.0, 0.1, "oas", "ledoit_wolf")]
)
@pytest.mark.filterwarnings("ignore")
def test_it_is_an_estimator_by_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("load", [load_iris, load_wine, load_breast_cancer])
def test_coefficients_and_probabilities_are_those_of_linear_discriminant_analysis(load):
    x, y = load(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    ours = ClosedFormLogisticRegression().fit(x, y)
    peer = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    np.testing.assert_allclose(ours.coef_, peer.coef_, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.intercept_, peer.intercept_, rtol=1e-9)
    np.testing.assert_allclose(ours.predict_proba(x), peer.predict_proba(x), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(ours.decision_function(x).shape, peer.decision_function(x).shape)
    np.testing.assert_array_equal(ours.predict(x), peer.predict(x))
    np.testing.assert_allclose(ours.predict_log_proba(x), np.log(ours.predict_proba(x)), atol=1e-12)
    if len(ours.coef_) == 1:
        np.testing.assert_allclose(
            x @ ours.coef_[0] + ours.intercept_, ours.decision_function(x), atol=1e-9
        )


def test_it_is_the_softmax_layer_on_tensors():
    x, y = load_wine(return_X_y=True)
    prior = [0.2, 0.3, 0.5]
    ours = ClosedFormLogisticRegression(shrinkage=0.1, prior=np.array(prior)).fit(x, y)
    layer = ClosedFormSoftmax(3, 0.1, prior).fit(torch.from_numpy(x), torch.from_numpy(y))
    linear = layer.to_linear(torch.float64)
    np.testing.assert_array_equal(ours.coef_, linear.weight.detach().numpy())
    np.testing.assert_array_equal(ours.intercept_, linear.bias.detach().numpy())
    np.testing.assert_array_equal(ours.predict_proba(x), layer.predict_proba(torch.from_numpy(x)))
    np.testing.assert_allclose(ours.coef_ - ours.coef_[0], layer.weight - layer.weight[0])


# a singular covariance


def redundant(x, how):
    """The same features and one more, which tells nothing new."""
    more = {
        "constant": np.full(len(x), 0.1),
        "rounded": (x / x.sum(axis=1, keepdims=True)).sum(axis=1),  # 1, or next to it
        "zero": np.zeros(len(x)),
        "twice": x[:, 0],
        "sum": x @ [1.0, -2.0, 3.0, 0.5] + 7,
        "huge": 1e9 * x[:, 1],
        "tiny": 1e-9 * x[:, 2] + 1e-7,
        "one-hot": (x[:, 0] > 5.8) - 0.5,
    }
    if how == "one-hot":  # two columns whose sum is constant, against one of them
        return np.column_stack((x, more[how])), np.column_stack((x, more[how], -more[how] + 3))
    return x, np.column_stack((x, more[how]))


@pytest.mark.parametrize(
    "how", ["constant", "rounded", "zero", "twice", "sum", "huge", "tiny", "one-hot"]
)
def test_a_constant_or_collinear_column_changes_no_probability(how):
    x, y = load_iris(return_X_y=True)
    plain, more = redundant(x, how)
    wanted = ClosedFormLogisticRegression().fit(plain[::2], y[::2])
    found = ClosedFormLogisticRegression().fit(more[::2], y[::2])
    assert found.singular_
    assert not wanted.singular_
    unseen = found.predict_proba(more[1::2]), wanted.predict_proba(plain[1::2])
    np.testing.assert_allclose(*unseen, rtol=1e-6, atol=1e-9)
    batches = ClosedFormLogisticRegression()
    for start in range(0, 150, 14):
        rows = slice(start, start + 14, 2)
        batches.partial_fit(more[rows], y[rows], classes=[0, 1, 2])
    assert batches.singular_
    np.testing.assert_allclose(batches.predict_proba(more[1::2]), unseen[1], rtol=1e-6, atol=1e-9)
    if how in ("constant", "rounded", "zero"):
        np.testing.assert_array_equal(batches.coef_[:, -1], 0)


def test_a_nearly_collinear_column_keeps_its_say_beside_a_collinear_one():
    x, y = load_iris(return_X_y=True)
    noise = np.random.default_rng(0).standard_normal(len(x))
    nearly = np.column_stack((x, x[:, 0] + 1e-3 * (noise + y)))
    wanted = ClosedFormLogisticRegression().fit(nearly, y)
    both = np.column_stack((nearly, x[:, 1] - x[:, 2]))
    found = ClosedFormLogisticRegression().fit(both, y)
    assert found.singular_
    assert not wanted.singular_
    np.testing.assert_allclose(found.predict_proba(both), wanted.predict_proba(nearly), rtol=1e-6)


def test_a_column_in_which_only_the_classes_differ_decides_with_certainty():
    x, y = load_iris(return_X_y=True)
    split = (y == 2) * 1e-3 + 5.0  # tells the last class from the others, which it leaves alone
    model = ClosedFormLogisticRegression().fit(np.column_stack((x, split)), y)
    p = model.predict_proba(np.column_stack((x, split)))
    np.testing.assert_array_equal(p[:, 2], y == 2)
    two = y < 2
    plain = ClosedFormLogisticRegression().fit(x, y).decision_function(x)[two]
    odds = model.decision_function(np.column_stack((x, split)))[two]
    np.testing.assert_allclose(odds[:, 1] - odds[:, 0], plain[:, 1] - plain[:, 0], rtol=1e-6)


def test_a_column_that_tells_the_classes_apart_is_not_ignored_as_by_a_pseudo_inverse():
    y = load_iris().target
    noise = np.random.default_rng(0).standard_normal((len(y), 2))
    x = np.column_stack((noise, y == 1, y == 2))
    peer = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    assert peer.score(x, y) < 0.5
    assert ClosedFormLogisticRegression().fit(x, y).score(x, y) == 1


def test_columns_that_never_vary_leave_the_shares_of_the_classes():
    y = np.array([0] * 6 + [1] * 3 + [2])
    model = ClosedFormLogisticRegression().fit(np.full((10, 2), 1e6), y)
    np.testing.assert_allclose(model.predict_proba([[-3.0, 7e9]]), [[0.6, 0.3, 0.1]])
    np.testing.assert_array_equal(model.coef_, 0)


def test_fewer_rows_than_features_are_what_ever_less_shrinkage_tends_to():
    x, y = make_classification(40, 60, n_informative=20, n_classes=3, class_sep=2.0, random_state=0)
    model = ClosedFormLogisticRegression().fit(x[:25], y[:25])
    assert model.singular_
    means = np.stack([x[:25][y[:25] == k].mean(axis=0) for k in range(3)])
    residuals = x[:25] - means[y[:25]]
    spread = residuals.std(axis=0)
    correlations = residuals.T @ residuals / 25 / np.outer(spread, spread)
    for least in (1e-6, 1e-8):
        weight = np.linalg.solve(correlations + least * np.eye(60), (means / spread).T).T / spread
        logits = x @ weight.T - (weight * means).sum(axis=1) / 2
        np.testing.assert_array_equal(model.predict(x), logits.argmax(axis=1))
    assert (model.predict(x[:25]) == y[:25]).all()
    units = np.logspace(-6, 6, 60)
    np.testing.assert_array_equal(
        ClosedFormLogisticRegression().fit(x[:25] * units, y[:25]).predict(x * units),
        model.predict(x),
    )


def test_pixels_that_never_change_are_no_reason_to_stop():
    x, y = load_digits(return_X_y=True)
    model = ClosedFormLogisticRegression().fit(x[:1000], y[:1000])
    assert model.singular_
    assert model.score(x[1000:], y[1000:]) > 0.9
    kept = x[:1000].std(axis=0) > 0
    fewer = ClosedFormLogisticRegression().fit(x[:1000, kept], y[:1000])
    assert not fewer.singular_
    wanted = fewer.predict_proba(x[1000:, kept])
    np.testing.assert_allclose(model.predict_proba(x[1000:]), wanted, rtol=1e-9)


def test_classes_may_be_words():
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"], dtype=object)[y]
    model = ClosedFormLogisticRegression().fit(x, names)
    assert model.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    numbers = ClosedFormLogisticRegression().fit(x, y)
    np.testing.assert_array_equal(model.predict_proba(x), numbers.predict_proba(x))
    assert (model.predict(x) == names).mean() == pytest.approx(0.98)
    assert model.score(x, names) == pytest.approx(0.98)


def test_it_stands_in_pipelines_searches_and_calibration():
    x, y = load_breast_cancer(return_X_y=True)
    steps = make_pipeline(StandardScaler(), ClosedFormLogisticRegression())
    name = "closedformlogisticregression__shrinkage"
    grid = {name: [0.0, 0.1, 0.5, "oas", "ledoit_wolf"]}
    search = GridSearchCV(steps, grid, scoring="neg_log_loss", cv=5).fit(x, y)
    assert search.best_params_[name] != 0.0
    assert search.best_estimator_.score(x, y) > 0.95
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    calibrated = CalibratedClassifierCV(steps, method="temperature", cv=5)
    plain = cross_val_score(steps, x, y, scoring="neg_log_loss")
    cooled = cross_val_score(calibrated, x, y, scoring="neg_log_loss")
    assert cooled.mean() > plain.mean()  # far from Gaussian: over-confident as it is


def test_cloning_and_pickling_keep_what_they_should():
    x, y = load_iris(return_X_y=True)
    model = ClosedFormLogisticRegression(shrinkage="oas", prior="uniform").fit(x, y)
    twin = clone(model)
    assert twin.get_params() == {"shrinkage": "oas", "prior": "uniform"}
    with pytest.raises(NotFittedError):
        twin.predict(x)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    half = ClosedFormLogisticRegression().partial_fit(x[::2], y[::2], classes=[0, 1, 2])
    resumed = pickle.loads(pickle.dumps(half)).partial_fit(x[1::2], y[1::2])
    whole = ClosedFormLogisticRegression().fit(x, y)
    np.testing.assert_allclose(resumed.coef_, whole.coef_, rtol=1e-10)


def test_batches_give_the_fit_of_all_rows_and_may_lack_classes():
    x, y = load_wine(return_X_y=True)  # sorted by class
    model = ClosedFormLogisticRegression(shrinkage="oas")
    for start in range(0, len(x), 25):
        model.partial_fit(x[start : start + 25], y[start : start + 25], classes=[0, 1, 2])
        if start == 0:
            with pytest.raises(ValueError, match="no row of class 1, 2"):
                model.predict(x)
    whole = ClosedFormLogisticRegression(shrinkage="oas").fit(x, y)
    np.testing.assert_allclose(model.coef_, whole.coef_, rtol=1e-9)
    np.testing.assert_allclose(model.intercept_, whole.intercept_, rtol=1e-9)


@pytest.mark.parametrize("shrinkage", [0.0, "oas", "ledoit_wolf"])
def test_weights_repeat_rows_and_zero_leaves_them_out(shrinkage):
    x, y = load_iris(return_X_y=True)
    times = np.arange(len(x)) % 3
    repeated = ClosedFormLogisticRegression(shrinkage=shrinkage)
    repeated.fit(np.repeat(x, times, axis=0), np.repeat(y, times))
    weighted = ClosedFormLogisticRegression(shrinkage=shrinkage).fit(x, y, sample_weight=times)
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-10)
    np.testing.assert_allclose(weighted.intercept_, repeated.intercept_, rtol=1e-10)


def test_a_class_whose_rows_all_weigh_nothing_is_no_class():
    x, y = load_iris(return_X_y=True)
    model = ClosedFormLogisticRegression().fit(x, y, sample_weight=(y != 1).astype(float))
    assert model.classes_.tolist() == [0, 2]
    np.testing.assert_allclose(
        model.coef_, ClosedFormLogisticRegression().fit(x[y != 1], y[y != 1]).coef_, rtol=1e-12
    )


def test_arrays_torch_cannot_take_are_copied_and_left_alone():
    x, y = load_iris(return_X_y=True)
    wanted = ClosedFormLogisticRegression().fit(x, y).coef_
    still = x.copy()
    still.flags.writeable = False
    for one in (still, np.asfortranarray(x), x[:, ::-1].copy()[:, ::-1], x.tolist()):
        np.testing.assert_allclose(ClosedFormLogisticRegression().fit(one, y).coef_, wanted)
    low = ClosedFormLogisticRegression().fit(x.astype(np.float32), y)
    np.testing.assert_allclose(low.coef_, wanted, rtol=1e-4)
    assert low.predict_proba(x.astype(np.float32)).dtype == np.float64


X, Y = load_iris(return_X_y=True)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.where(X > 7, np.nan, X), Y, "NaN"),
        (X, 0 * Y, r"at least 2 classes are needed, got 1 class: \[0\]"),
        (X * 1e200, Y, "overflow when they are squared"),
        (X, Y + 0.5, "Unknown label type: continuous"),
        (X[0], Y, "Expected 2D array"),
        (X, Y[:9], "inconsistent numbers of samples"),
        (X[[0, 50, 100]], Y[[0, 50, 100]], "3 rows for 3 classes.*at least 4"),
        (np.full((4, 1), "a"), Y[:4], "could not convert string to float"),
    ],
)
def test_bad_data_are_refused_with_one_message(x, y, message):
    with pytest.raises(ValueError, match=message):
        ClosedFormLogisticRegression().fit(x, y)


def test_misused_batches_and_settings_are_refused():
    model = ClosedFormLogisticRegression()
    with pytest.raises(ValueError, match="classes must be given in the first call"):
        model.partial_fit(X, Y)
    with pytest.raises(ValueError, match="unknown class 2"):
        model.partial_fit(X, Y, classes=[0, 1])
    model = ClosedFormLogisticRegression().partial_fit(X, Y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match=r"classes were \[0, 1, 2\]"):
        model.partial_fit(X, Y, classes=[0, 1])
    with pytest.raises(AttributeError, match="partial_fit"):
        ClosedFormLogisticRegression(shrinkage="ledoit_wolf").partial_fit(X, Y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="shrinkage must be between 0 and 1, got 2"):
        ClosedFormLogisticRegression(shrinkage=2.0).fit(X, Y)
    with pytest.raises((ValueError, TypeCheckError), match="shrinkage"):  # the hook may be first
        ClosedFormLogisticRegression(shrinkage="auto").fit(X, Y)
    with pytest.raises(ValueError, match="3 positive probabilities"):
        ClosedFormLogisticRegression(prior=[0.5, 0.5]).fit(X, Y)
    for settings in ({"shrinkage": None}, {"prior": {0: 0.5, 1: 0.5}}, {"prior": 0.5}):
        with pytest.raises(TypeError, match=next(iter(settings))):
            ClosedFormLogisticRegression(**settings).fit(X, Y)


def test_after_a_refused_fit_there_is_nothing_to_predict_with():
    for model in (ClosedFormLogisticRegression(), ClosedFormLogisticRegression().fit(X, Y)):
        with pytest.raises(ValueError, match="overflow"):
            model.fit(X * 1e200, Y)
        with pytest.raises(NotFittedError):
            model.predict(X)
        with pytest.raises(ValueError, match="classes must be given"):
            model.partial_fit(X, Y)
    with pytest.raises(ValueError, match="overflow"):
        model.partial_fit(X * 1e200, Y, classes=[0, 1, 2])
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_the_tensors_need_no_scikit_learn_and_the_estimator_says_what_to_install():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import kexue.probability, kexue.probability.softmax_layer, kexue.probability.logistic\n"
        "try: import kexue.probability.logistic_regression\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'kexue[lab]'" in done.stdout
