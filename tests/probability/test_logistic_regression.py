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
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from kexue.probability.logistic_regression import ClosedFormLogisticRegression
from kexue.probability.softmax_layer import ClosedFormSoftmax

SINGULAR = {
    "check_sample_weights_shape": "a feature of its data is constant",
    "check_sample_weights_not_overwritten": "a feature of its data is constant",
    "check_sample_weight_equivalence_on_dense_data": "features of its data are collinear",
}


def refuses(estimator):
    """The checks whose data leave the covariance singular: refused, as documented."""
    if estimator.shrinkage == 0:
        return SINGULAR
    if estimator.shrinkage == "ledoit_wolf":  # residuals of equal length: its l is 0
        return {name: SINGULAR[name] for name in ("check_sample_weights_shape",)}
    return {}


@parametrize_with_checks(
    [ClosedFormLogisticRegression(shrinkage=one) for one in (0.0, 0.1, "oas", "ledoit_wolf")],
    expected_failed_checks=refuses,
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
    np.testing.assert_array_equal(ours.coef_, layer.weight.numpy())
    np.testing.assert_array_equal(ours.intercept_, layer.bias.numpy())


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
        (X[:, :1] * 0, Y, "column 0 is constant within every class; .*shrinkage"),
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


def test_the_tensors_need_no_scikit_learn_and_the_estimator_says_what_to_install():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import kexue.probability, kexue.probability.softmax_layer, kexue.probability.logistic\n"
        "try: import kexue.probability.logistic_regression\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'kexue[lab]'" in done.stdout
