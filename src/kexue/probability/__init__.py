"""Numbers and distributions; no `nn.Module` but the closed-form layer.

Names are imported when they are first asked for, so that the means of a score table do not wait
for torch, nor the closed form for scikit-learn.
"""

from importlib import import_module
from typing import Any

HOMES = {
    "CAN": "can_estimator",
    "MEANS": "means",
    "ClassStatistics": "class_statistics",
    "ClosedFormLogisticRegression": "logistic_regression",
    "ClosedFormSoftmax": "softmax_layer",
    "can_correct": "can",
    "can_multilabel": "can_estimator",
    "closed_form_logistic": "logistic",
    "closed_form_softmax": "logistic",
    "entropy_normalize": "entropy",
    "entropy_normalized_softmax": "entropy",
    "power_mean": "means",
    "power_of": "means",
    "topk_uncertainty": "can",
}
__all__ = [
    "CAN",
    "MEANS",
    "ClassStatistics",
    "ClosedFormLogisticRegression",
    "ClosedFormSoftmax",
    "can_correct",
    "can_multilabel",
    "closed_form_logistic",
    "closed_form_softmax",
    "entropy_normalize",
    "entropy_normalized_softmax",
    "power_mean",
    "power_of",
    "topk_uncertainty",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
