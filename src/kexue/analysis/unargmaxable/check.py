"""Which classes of a softmax layer can win: the call, and what it accepts."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kexue.analysis.unargmaxable.cascade import STAGES
from kexue.analysis.unargmaxable.head import OutputLayer, as_box, output_layer
from kexue.analysis.unargmaxable.ledger import Ledger
from kexue.analysis.unargmaxable.report import ArgmaxReport
from kexue.analysis.unargmaxable.resume import Saved

__all__ = ["check_argmaxable"]


def check_argmaxable(
    weight: Tensor | np.ndarray,
    bias: Tensor | np.ndarray | None = None,
    classes: Sequence[int] | Tensor | np.ndarray | None = None,
    *,
    box: float | tuple[object, object] | None = None,
    method: str = "auto",
    tol: float = 1e-9,
    device: str | None = None,
    resume: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> ArgmaxReport:
    """Decides for every class of a softmax layer whether some input makes it win, with proofs.

    Args:
        weight: W, one row per class, (C, d).
        bias: b, (C,).
        classes: which to decide; default all.
        box: confines the features: a number r for |z_j| ≤ r, or (lower, upper).
        method: "auto", the whole cascade. Or one stage alone: "probe", "climb", "newton", "lp"
            (which finds the largest ball), and from the sources "reflect" (the paper's
            approximation, which proves winning only) and "min_norm" (the article's Frank–Wolfe).
        tol: how far below 0 the δ of a mix may be, against Σ α |b_i − b_k|.
        device: where to compute; default: where `weight` is.
        resume: a file that keeps what is decided, written every minute; a run that finds it goes
            on from there.
        progress: is told (stage, classes done, classes in all).

    Raises:
        ValueError: a layer, box, method or class out of range; a file of another layer.
        TypeError: no numbers.

    Example:
        >>> square = torch.tensor([[1, 2], [2, 1], [1, 0], [0, 1], [1, 1]])
        >>> report = check_argmaxable(square)
        >>> report.unargmaxable.tolist(), round(float(report.bound[4]), 12)
        ([4], 0.2)
        >>> report.mix(4).weights.round(9).tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    if method not in STAGES:
        raise ValueError(f"method must be one of {', '.join(STAGES)}, got {method!r}")
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol must be a number of at least 0, got {tol}")
    layer = output_layer(weight, bias, device)
    ledger = Ledger(layer, _asked(classes, layer), as_box(box, layer), tol)
    saved = Saved(resume, ledger, method)
    for name, steps in STAGES[method].items():
        todo, done = ledger.open(), 0
        with ledger.stage(name):
            for count in steps(ledger, todo) if len(todo) else ():
                done += count
                if progress is not None:
                    progress(name, done, len(todo))
                saved.now_and_then()
    saved.write()
    return ledger.report


def _asked(classes: Sequence[int] | Tensor | np.ndarray | None, layer: OutputLayer) -> np.ndarray:
    """The classes to decide, in order, each once."""
    if classes is None:
        return np.arange(layer.classes)
    given = np.asarray(torch.as_tensor(classes).cpu())
    if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
        raise TypeError(
            f"classes must be a sequence of whole numbers, got {given.dtype} of shape {given.shape}"
        )
    if len(given) and not 0 <= given.min() <= given.max() < layer.classes:
        wrong = given[(given < 0) | (given >= layer.classes)][0]
        raise ValueError(f"classes must be in 0 … {layer.classes - 1}, got {wrong}")
    return np.unique(given).astype(np.int64)
