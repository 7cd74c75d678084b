r"""逻辑回归与“全连接+Softmax”层的解析解 — Closed-form logistic regression (S02)

A linear classifier written down from class means and one covariance instead of being trained.

If class k has probability p_k and its rows are Gaussian with mean m_k and a covariance Sigma that
all classes share, the quadratic terms cancel and the posterior is a softmax layer:

    Sigma = (1/N) sum_k sum_{i in k} (x_i − m_k)ᵀ(x_i − m_k)                                  (1)
    w_k = m_k Sigma^-1                                                                        (2)
    b_k = ln p_k − ½ m_k Sigma^-1 m_kᵀ                                                        (3)
    p(k|x) = softmax_k(x w_kᵀ + b_k)                                                          (4)

Two classes need one row, p(1|x) = sigmoid(x wᵀ + b):

    w = (m_1 − m_0) Sigma^-1                                                                  (5)
    b = ln(p_1/p_0) + ½ (m_0 Sigma^-1 m_0ᵀ − m_1 Sigma^-1 m_1ᵀ) = ln(p_1/p_0) − ½ w (m_0 + m_1)ᵀ

A row and a number common to all classes leave (4) as it is, so around the overall mean m,

    w'_k = (m_k − m) Sigma^-1,     b'_k = ln p_k − ½ w'_k (m_k − m)ᵀ,
    logits (x − m) w'_kᵀ + b'_k                                                               (6)

gives the same probabilities without subtracting large numbers; `ClosedFormSoftmax` evaluates (6).

This is linear discriminant analysis with the maximum likelihood covariance. Ours: shrinkage,
weights, other priors, streaming. The author's code whitens with N − 1 and subtracts a part that is
divided by N; here it is (1), as in the article, and nothing is whitened.

Symbols: means m, counts N p.   Axes: N rows, D features, K classes.
Cost: N·D² + D³/3 + 2·K·D² operations, one read of the rows, D² + K·D numbers.
Sources: article 8578; Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, ch. 4.
See also: `ClosedFormSoftmax` of kexue.probability.softmax_layer, batch by batch;
`ClosedFormLogisticRegression` of kexue.probability.logistic_regression, for scikit-learn.
"""

import torch
from torch import Tensor

from kexue.probability.class_statistics import class_statistics
from kexue.probability.labelled_rows import (
    Prior,
    check_rows,
    check_settings,
    log_prior,
    refuse_few,
    refuse_non_finite,
    refuse_overflow,
)
from kexue.probability.shrunk_covariance import Shrinkage, shrink, times_inverse

__all__ = ["closed_form_logistic", "closed_form_softmax"]


def closed_form_softmax(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    shrinkage: Shrinkage = 0.0,
    prior: Prior = None,
) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K) of the softmax layer, differentiable in the features.

    Args:
        features: N rows of D numbers.
        labels: N classes, 0 … K − 1.
        num_classes: K, at least 2.
        shrinkage: l of (1 − l) Sigma + l (tr Sigma / D) I, or how to choose it: "ledoit_wolf" or
            "oas". 0 as in the article.
        prior: p; None takes the shares of the classes in the labels.

    Returns:
        Both in the dtype of the features, float32 at least; computed in float64.

    Raises:
        TypeError: features are not floating, or labels not whole numbers.
        ValueError: a wrong shape, a number that is not finite, a label out of range, a class
            without rows, fewer than K + 1 rows or a singular covariance.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [4.0], [5.0]])
        >>> weight, bias = closed_form_softmax(x, torch.tensor([0, 0, 1, 1]), 2)
        >>> (x @ weight.T + bias).softmax(dim=1).argmax(dim=1)
        tensor([0, 0, 1, 1])
    """
    check_settings(num_classes, shrinkage, prior)
    m, covariance, ln_p = _model(features, labels, num_classes, shrinkage, prior)
    w = times_inverse(m, covariance, means=m)  # (2)
    b = ln_p - (w * m).sum(dim=1) / 2  # (3)
    dtype = torch.promote_types(features.dtype, torch.float32)
    return w.to(dtype), b.to(dtype)


def closed_form_logistic(
    features: Tensor, labels: Tensor, *, shrinkage: Shrinkage = 0.0, prior: Prior = None
) -> tuple[Tensor, Tensor]:
    """Weight (D) and bias of the logistic regression of class 1 against class 0.

    Arguments and errors are those of `closed_form_softmax` with two classes.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [4.0], [5.0]])
        >>> w, b = closed_form_logistic(x, torch.tensor([0, 0, 1, 1]))
        >>> (x @ w + b).sigmoid().round()
        tensor([0., 0., 1., 1.])
    """
    check_settings(2, shrinkage, prior)
    m, covariance, ln_p = _model(features, labels, 2, shrinkage, prior)
    w = times_inverse((m[1] - m[0])[None], covariance, means=m)[0]  # (5)
    b = ln_p[1] - ln_p[0] - w @ (m[0] + m[1]) / 2  # (5)
    dtype = torch.promote_types(features.dtype, torch.float32)
    return w.to(dtype), b.to(dtype)


def _model(
    features: Tensor, labels: Tensor, num_classes: int, shrinkage: Shrinkage, prior: Prior
) -> tuple[Tensor, Tensor, Tensor]:
    """Means, shrunk covariance and ln p of rows at hand."""
    check_rows(features, labels, None, num_classes)
    refuse_few(len(features), num_classes)
    refuse_non_finite(features)
    counts, means, scatter = class_statistics(features, labels.long(), num_classes)
    refuse_overflow(scatter)
    ln_p = log_prior(prior, counts)
    covariance, fourth = scatter / counts.sum(), None  # (1)
    if shrinkage == "ledoit_wolf":
        fourth = (features.double() - means[labels.long()]).square().sum(dim=1).square().sum()
    return means, shrink(covariance, shrinkage, counts.sum(), fourth), ln_p
