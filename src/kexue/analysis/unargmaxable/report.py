"""What was decided about every class, and the proof of each decision on demand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from kexue.analysis.unargmaxable.head import Box, OutputLayer
from kexue.analysis.unargmaxable.likelihood import Found, tilted
from kexue.analysis.unargmaxable.whitening import Whitened

__all__ = ["CAN", "CANNOT", "OPEN", "ArgmaxReport", "Mix", "Stage"]

OPEN, CAN, CANNOT = -1, 1, 0
"""What `verdict` holds: undecided, can win, can never win."""


@dataclass(frozen=True)
class Stage:
    """One stage of the cascade.

    Attributes:
        name: of the method.
        can: classes shown to win somewhere.
        cannot: classes shown never to win.
        seconds: of wall time.
    """

    name: str
    can: int
    cannot: int
    seconds: float


@dataclass(frozen=True)
class Mix:
    """Σ weights · w[index] = w_k, and δ = Σ weights · b[index] − b_k ≥ 0: class k never wins.

    Attributes:
        index: classes, those of the largest weight first.
        weights: positive, of sum one.
    """

    index: np.ndarray
    weights: np.ndarray

    @property
    def entropy(self) -> float:
        """In nats."""
        return float(-(self.weights * np.log(self.weights)).sum())


@dataclass
class Proofs:
    """Where the proofs are; everything by the number of the class among the distinct rows.

    Attributes:
        scale: t of a whitened probe that wins.
        point: features at which the class wins.
        tilt: whitened point and temperature of a mix.
        mix: classes and weights of a mix.
    """

    scale: dict[int, float] = field(default_factory=dict)
    point: dict[int, Tensor] = field(default_factory=dict)
    tilt: dict[int, Found] = field(default_factory=dict)
    mix: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class ArgmaxReport:
    """Verdicts over classes of an output layer; arrays have one entry per class of `index`.

    Attributes:
        layer: the layer.
        index: the classes that were asked for.
        box: the verdicts hold for features in it; None: for all features.
        verdict: 1 can win, 0 never wins, −1 undecided.
        margin: l_k less the largest other logit at the point that was found; where a class never
            wins, what that is at most anywhere, −δ ≤ 0.
        radius: a ball of features this large around the point lies where the class wins; the
            largest such ball for the method "lp". Where a class never wins, at most this, ≤ 0.
        bound: no softmax gives more probability to a class that never wins; else 1. It is the
            supremum where the mix is that of all classes at temperature 1, as a rule for "auto".
        spread: e^H of the mix, the number of classes that it is spread over; else 0.
        method: the stage that decided.
        seconds: of that stage, over the classes that it looked at.
        twin: a class with the same row that wins in this one's place, or ties with it; −1: none.
        stages: of the cascade, in order.
    """

    def __init__(
        self,
        layer: OutputLayer,
        index: Int[np.ndarray, " n"],
        kept: Int[np.ndarray, " u"],
        white: Whitened,
        box: Box | None,
    ) -> None:
        count = len(index)
        self.layer, self.index, self.box = layer, index, box
        self.verdict = np.full(count, OPEN, np.int8)
        self.margin, self.radius = np.full(count, np.nan), np.full(count, np.nan)
        self.bound, self.spread = np.ones(count), np.zeros(count)
        self.seconds = np.zeros(count)
        self.method = np.full(count, "", "U12")
        self.twin = np.full(count, -1, np.int64)
        self.stages: list[Stage] = []
        self.kept, self.white, self.proofs = kept, white, Proofs()
        """The distinct rows, their whitened form, and the proofs."""
        self.place = {int(k): n for n, k in enumerate(index)}
        self.number = {int(k): n for n, k in enumerate(kept)}

    @property
    def argmaxable(self) -> Int[np.ndarray, " a"]:
        """Classes that can win."""
        chosen: np.ndarray = self.index[self.verdict == CAN]
        return chosen

    @property
    def unargmaxable(self) -> Int[np.ndarray, " b"]:
        """Classes that never win; see `twin` for those whose row is there twice."""
        chosen: np.ndarray = self.index[self.verdict == CANNOT]
        return chosen

    @property
    def undecided(self) -> Int[np.ndarray, " u"]:
        """Classes for which neither proof was found."""
        chosen: np.ndarray = self.index[self.verdict == OPEN]
        return chosen

    @property
    def empty(self) -> Int[np.ndarray, " e"]:
        """Classes whose row is all zeros: padding, as a rule."""
        zero = (self.layer.weight == 0).all(dim=1).cpu().numpy()
        chosen: np.ndarray = self.index[zero[self.index]]
        return chosen

    def point(self, index: int) -> Float[Tensor, " d"]:
        """Features at which class `index` wins.

        Raises:
            ValueError: the class was not asked for, or was not shown to win.
        """
        if self.verdict[self._place(index)] != CAN:
            raise ValueError(
                f"class {index} was not shown to win; its verdict: {self.words(index)}"
            )
        number, proofs = self.number[index], self.proofs
        if number in proofs.point:
            return proofs.point[number]
        return self.white.features(proofs.scale[number] * self.white.rows[number, None])[0]

    def mix(self, index: int) -> Mix:
        """The mix of other classes that forbids class `index` to win.

        Raises:
            ValueError: the class was not asked for, or was not shown never to win.
        """
        place = self._place(index)
        if self.verdict[place] != CANNOT:
            raise ValueError(
                f"class {index} was not shown never to win; its verdict: {self.words(index)}"
            )
        if self.twin[place] >= 0:
            return Mix(self.twin[[place]], np.ones(1))
        number, proofs = self.number[index], self.proofs
        if number in proofs.mix:
            among, weights = (part.cpu().numpy() for part in proofs.mix[number])
        else:
            weights = tilted(self.white, proofs.tilt[number]).cpu().numpy()
            among = np.flatnonzero(weights)
            weights = weights[among]
        order = np.argsort(-weights, kind="stable")
        return Mix(self.kept[among[order]], weights[order])

    def words(self, index: int) -> str:
        """ "can win", "never wins", "tied", "unreachable in the box" or "undecided"."""
        place = self._place(index)
        if self.verdict[place] == CANNOT:
            if self.twin[place] >= 0:
                return "tied" if self.margin[place] == 0 else "never wins"
            return "never wins" if self.box is None else "unreachable in the box"
        return "can win" if self.verdict[place] == CAN else "undecided"

    def rows(
        self,
        tokens: Sequence[str] | None = None,
        classes: Sequence[int] | None = None,
        nearest: int = 5,
    ) -> list[dict[str, Any]]:
        """One plain row per class: token, index, verdict, margin, bound, mix, method, seconds.

        Args:
            tokens: names of all classes.
            classes: which; default: all that can not win or are undecided.
            nearest: how many classes of the mix are named.
        """
        chosen = self.index[self.verdict != CAN] if classes is None else classes
        return [self._row(int(k), tokens, nearest) for k in chosen]

    def to_dataframe(self, tokens: Sequence[str] | None = None) -> Any:
        """All classes as a pandas.DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas") from error
        return pandas.DataFrame(
            {
                "token": [None if tokens is None else tokens[k] for k in self.index],
                "index": self.index,
                "verdict": [self.words(int(k)) for k in self.index],
                "margin": self.margin,
                "radius": self.radius,
                "bound": self.bound,
                "spread": self.spread,
                "method": self.method,
                "seconds": self.seconds,
            }
        )

    def _row(self, index: int, tokens: Sequence[str] | None, nearest: int) -> dict[str, Any]:
        place = self._place(index)
        row: dict[str, Any] = {
            "token": None if tokens is None else tokens[index],
            "index": index,
            "verdict": self.words(index),
            "margin": float(self.margin[place]),
            "radius": float(self.radius[place]),
            "bound": float(self.bound[place]),
            "spread": float(self.spread[place]),
            "method": str(self.method[place]),
            "seconds": float(self.seconds[place]),
            "nearest": [],
        }
        if self.verdict[place] == CANNOT:
            mix = self.mix(index)
            names = [None if tokens is None else tokens[k] for k in mix.index[:nearest]]
            row["nearest"] = [
                {"token": token, "index": int(k), "weight": float(a)}
                for token, k, a in zip(names, mix.index, mix.weights, strict=False)
            ]
        return row

    def _place(self, index: int) -> int:
        if index not in self.place:
            raise ValueError(f"class {index} was not asked for")
        return self.place[index]
