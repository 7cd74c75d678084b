"""逻辑回归的解析解，scikit-learn 接口 — Closed-form logistic regression for scikit-learn (S02)

`ClosedFormLogisticRegression` is `ClosedFormSoftmax` of `kexue.probability.softmax_layer` as a
scikit-learn classifier: NumPy arrays in and out, classes of any type, pipelines, searches and
cross-validation. It takes the place of `sklearn.linear_model.LogisticRegression` without iterating.
The formulas are in `kexue.probability.logistic`.

`ClosedFormSoftmax` refuses a singular covariance. Here it has a defined result, since estimators
meet constant pixels and collinear columns within a search or a fold: what shrinkage that vanishes
tends to, (5) of `kexue.probability.shrunk_covariance`. A column that is constant or a linear
combination of others changes no probability; a direction in which the classes differ and nothing
else does decides alone, with certainty.

Cost: one read of the rows, then one Cholesky factorisation (of eigenvalues, if singular).
Source: article 8578.
See also: `sklearn.discriminant_analysis.LinearDiscriminantAnalysis(solver="lsqr")`, the same model
without weights, batches or shrinkage of residuals as they are.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "ClosedFormLogisticRegression needs scikit-learn (pip install 'kexue[lab]'); "
        "kexue.probability.softmax_layer.ClosedFormSoftmax does the same on tensors without it"
    ) from error

from kexue.probability.class_statistics import ClassStatistics
from kexue.probability.labelled_rows import Prior
from kexue.probability.shrunk_covariance import times_limit
from kexue.probability.softmax_layer import ClosedFormSoftmax

__all__ = ["ClosedFormLogisticRegression"]


class _Layer(ClosedFormSoftmax):
    """The softmax layer, also of a singular covariance."""

    singular = False

    def _times_inverse(self, rows: Tensor, covariance: Tensor, seen: ClassStatistics) -> Tensor:
        shares = seen.counts / seen.total
        between = shares @ (seen.means - shares @ seen.means).square()
        found, self.singular = times_limit(
            rows, covariance, means=seen.means, between=between, precision=self.dtype
        )
        return found


def _streams(model: "ClosedFormLogisticRegression") -> bool:
    if model.shrinkage == "ledoit_wolf":
        raise AttributeError(
            "shrinkage='ledoit_wolf' needs all rows at once: use fit, or 'oas' in batches"
        )
    return True


class ClosedFormLogisticRegression(ClassifierMixin, BaseEstimator):
    """Logistic regression of two or more classes without iterating.

    Args:
        shrinkage: how far the covariance within classes is pulled towards a multiple of the
            identity, 0 to 1; "ledoit_wolf" or "oas" choose it. 0 as in the article; rows hardly
            more than features, or fewer, want more.
        prior: probabilities in the order of `classes_`, or "uniform"; None takes their shares.

    Attributes:
        classes_: the classes, sorted.
        coef_: (classes, features), about the overall mean; one row for two classes, as in
            scikit-learn.
        intercept_: one number per row of `coef_`.
        singular_: whether the covariance had no inverse, as with constant or collinear features.
        n_features_in_: number of features.

    Example:
        >>> model = ClosedFormLogisticRegression().fit([[0.0], [1.0], [4.0], [5.0]], list("nnyy"))
        >>> model.predict([[0.5], [4.5]]).tolist()
        ['n', 'y']
        >>> model.predict_proba([[2.5]]).tolist()
        [[0.5, 0.5]]
    """

    _model: _Layer | None = None

    def __init__(self, *, shrinkage: Any = 0.0, prior: Any = None) -> None:
        self.shrinkage = shrinkage
        self.prior = prior

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "ClosedFormLogisticRegression":
        """Fit all rows at once.

        Args:
            X: (rows, features).
            y: (rows), classes of any type that sorts.
            sample_weight: (rows), not negative; 2 counts a row twice, 0 leaves it out.

        Raises:
            TypeError: shrinkage or prior of a wrong type.
            ValueError: fewer than two classes, not more rows than classes, NaN, or a setting out
                of range.
        """
        self._model = None
        X, codes, weight = self._rows(X, y, sample_weight, classes=None, reset=True)
        model = self._layer()
        model.fit(X, codes, weight)
        self._model = model
        return self

    @available_if(_streams)  # type: ignore[untyped-decorator]
    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> "ClosedFormLogisticRegression":
        """Take in a batch; the equations are solved when the result is first asked for.

        Args:
            X: (rows, features).
            y: (rows), classes.
            classes: all classes that will occur; needed in the first call.
            sample_weight: (rows), not negative.

        Raises:
            AttributeError: shrinkage is "ledoit_wolf", which needs all rows at once.
            ValueError: the first call has no `classes`, or a class is unknown.
        """
        first = not self.__sklearn_is_fitted__()
        if first and classes is None:
            raise ValueError("classes must be given in the first call of partial_fit")
        X, codes, weight = self._rows(X, y, sample_weight, classes=classes, reset=first)
        model = self._layer() if self._model is None else self._model
        model.partial_fit(X, codes, weight)
        self._model = model
        return self

    @property
    def coef_(self) -> np.ndarray:
        """The rows w' of (6), or the one row of (5) for two classes."""
        weight: np.ndarray = self._linear().weight.numpy()
        return weight[1:] - weight[:1] if len(weight) == 2 else weight

    @property
    def intercept_(self) -> np.ndarray:
        """What goes with `coef_`, or the one number of (5) for two classes."""
        bias: np.ndarray = self._linear().bias.numpy()
        return bias[1:] - bias[:1] if len(bias) == 2 else bias

    @property
    def singular_(self) -> bool:
        """Whether the result is the limit of shrinkage that vanishes."""
        return self._solved().singular

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits, (rows, classes); for two classes the log-odds of the second, (rows)."""
        logits = self._solved().decision_function(self._features(X)).numpy()
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities, (rows, classes)."""
        return self._solved().log_prob(self._features(X)).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, (rows, classes)."""
        return self._solved().predict_proba(self._features(X)).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of every row."""
        chosen = self._solved().predict(self._features(X)).numpy()
        names: np.ndarray = self.classes_[chosen]
        return names

    def __sklearn_is_fitted__(self) -> bool:
        return self._model is not None

    def _layer(self) -> _Layer:
        return _Layer(len(self.classes_), self.shrinkage, self._prior())

    def _solved(self) -> _Layer:
        check_is_fitted(self)
        model = cast(_Layer, self._model)
        if not model.solved:
            model.finalize()
        return model

    def _linear(self) -> nn.Linear:
        return self._solved().to_linear(torch.float64).requires_grad_(False)

    def _features(self, X: Any) -> Tensor:
        return _tensor(validate_data(self, X, dtype=(np.float64, np.float32), reset=False))

    def _rows(
        self, X: Any, y: Any, sample_weight: Any, *, classes: Any, reset: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Checked rows, the numbers of their classes and their weights; sets `classes_`."""
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), reset=reset)
        check_classification_targets(y)
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
            X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
        if reset:
            self.classes_ = np.unique(y if classes is None else classes)
            if len(self.classes_) < 2:
                raise ValueError(
                    f"at least 2 classes are needed, got {len(self.classes_)} class: "
                    f"{self.classes_.tolist()}"
                )
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(
                f"classes were {self.classes_.tolist()} in the first call of partial_fit, got "
                f"{np.unique(classes).tolist()}"
            )
        codes = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        if (strange := self.classes_[codes] != y).any():
            raise ValueError(
                f"unknown class {y[strange].tolist()[0]!r}, the classes are "
                f"{self.classes_.tolist()}"
            )
        return _tensor(X), torch.from_numpy(codes), None if weight is None else _tensor(weight)

    def _prior(self) -> Prior:
        prior: Prior = self.prior.tolist() if hasattr(self.prior, "tolist") else self.prior
        return prior


def _tensor(array: np.ndarray) -> Tensor:
    """Without a copy where torch can take it as it is: writable, and no negative strides."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
