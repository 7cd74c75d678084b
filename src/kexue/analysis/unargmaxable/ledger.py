"""Where verdicts are written, and only after the proof has been checked."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kexue.analysis.unargmaxable.certificates import (
    RESIDUAL,
    check_mixes,
    check_points,
    probability_bound,
)
from kexue.analysis.unargmaxable.head import Box, OutputLayer
from kexue.analysis.unargmaxable.likelihood import Found, tilted
from kexue.analysis.unargmaxable.probes import same_rows
from kexue.analysis.unargmaxable.report import CAN, CANNOT, OPEN, ArgmaxReport, Stage
from kexue.analysis.unargmaxable.whitening import whiten

__all__ = ["Ledger"]

BLOCK = 1 << 24
"""Numbers of a block of logits that is checked at once."""


class Ledger:
    """The report of a layer as it fills up. Its methods know classes by their distinct rows.

    Attributes:
        layer: the distinct rows, centred; differences of logits are those of the whole layer.
        white: the same in whitened coordinates.
        report: of the whole layer.
        box, tol: as `check_argmaxable`.
    """

    def __init__(self, layer: OutputLayer, index: np.ndarray, box: Box | None, tol: float) -> None:
        best = same_rows(layer).cpu().numpy()
        kept = np.unique(best)
        chosen = torch.as_tensor(kept, device=layer.weight.device)
        distinct = OutputLayer(layer.weight[chosen], layer.bias[chosen], layer.has_bias)
        self.layer = distinct.centred()
        white = whiten(self.layer)
        self.report = ArgmaxReport(layer, index, kept, white, box)
        self.white, self.box, self.tol = white, box, tol
        self.lead = np.full(len(kept), math.inf)
        """By how much the bias of a row is above that of its next twin."""
        self._twins(best)

    def open(self) -> Int[Tensor, " m"]:
        """Classes that are not decided."""
        number = self.report.number
        left = [number[k] for k in self.report.undecided.tolist()]
        return torch.tensor(left, dtype=torch.int64, device=self.layer.weight.device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage and counts what it decides."""
        report, self.name = self.report, name
        before, began = report.verdict.copy(), time.perf_counter()
        yield
        took = time.perf_counter() - began
        fresh = before != report.verdict
        report.seconds[fresh] = took / max(int((before == OPEN).sum()), 1)
        own = report.method == name  # those of a former run, too
        can, cannot = (int((own & (report.verdict == v)).sum()) for v in (CAN, CANNOT))
        report.stages.append(Stage(name, can, cannot, took))

    def won(
        self,
        index: Int[Tensor, " n"],
        scale: Float[Tensor, " n"],
        margin: Float[Tensor, " n"],
        radius: Float[Tensor, " n"],
    ) -> None:
        """Classes that are proven to win at `scale` times their whitened row."""
        for k, t, m, r in zip(*(x.tolist() for x in (index, scale, margin, radius)), strict=True):
            self._can(k, m, r)
            self.report.proofs.scale[k] = t

    def points(self, index: Int[Tensor, " n"], points: Float[Tensor, "n d"]) -> bool:
        """Keeps the points at which their classes win; True if all do."""
        whole = True
        for here in torch.arange(len(index)).split(max(1, BLOCK // self.layer.classes)):
            some, at = index[here], points[here]
            at = at if self.box is None else self.box.moved_in(at)
            found = check_points(self.layer, some, at)
            whole &= bool(found.proven.all())
            for n in found.proven.nonzero()[:, 0].tolist():
                k = int(some[n])
                self._can(k, float(found.margin[n]), float(found.radius[n]))
                self.report.proofs.point[k] = at[n].clone()
        return whole

    def found(self, found: Found) -> None:
        """Keeps what a search brought, if it is a proof."""
        if found.wins:
            index = torch.tensor([found.index], device=found.point.device)
            self.points(index, self.white.features(found.point[None]))
        elif self._mixed(found.index, tilted(self.white, found)):
            self.report.proofs.tilt[found.index] = found

    def mix(self, index: int, among: Int[Tensor, " s"], weights: Float[Tensor, " s"]) -> bool:
        """Keeps a mix of a few classes, if it is a proof."""
        whole = torch.zeros_like(self.layer.bias).index_put((among,), weights)
        proven = self._mixed(index, whole)
        if proven:
            self.report.proofs.mix[index] = (among, weights)
        return proven

    def _mixed(self, index: int, mix: Float[Tensor, " c"]) -> bool:
        number = torch.tensor([index], device=mix.device)
        found = check_mixes(self.layer, number, mix[None], self.tol)
        proven = bool(found.proven[0]) and self._cancels(index, mix)
        if not proven and self.box is not None:
            found = check_mixes(self.layer, number, mix[None], self.tol, self.box)
            proven = bool(found.proven[0])
        if not proven:
            return False
        place = self.report.place[int(self.report.kept[index])]
        margin, radius = min(0.0, -float(found.gap[0])), min(0.0, float(found.radius[0]))
        self._settle(place, CANNOT, margin, radius)
        self.report.bound[place] = float(found.bound[0])
        self.report.spread[place] = float(found.entropy[0].exp())
        return True

    def _cancels(self, index: int, mix: Float[Tensor, " c"]) -> bool:
        """Whether Σ α (w_i − w_k) is next to nothing in whitened coordinates, too.

        Where some features are a million times larger than others, a rest that is small against
        those may be all that there is of the others.
        """
        rest = (mix @ self.layer.weight - self.layer.weight[index]) @ self.white.map
        return bool(rest.norm() <= RESIDUAL * (mix @ self.white.distances(index)))

    def _can(self, number: int, margin: float, radius: float) -> None:
        place = self.report.place[int(self.report.kept[number])]
        self._settle(place, CAN, min(margin, float(self.lead[number])), radius)

    def _settle(self, place: int, verdict: int, margin: float, radius: float) -> None:
        report = self.report
        report.verdict[place], report.method[place] = verdict, self.name
        report.margin[place], report.radius[place] = margin, radius

    def _twins(self, best: np.ndarray) -> None:
        """Classes whose row is there twice: the one with the largest bias stays, if it is alone."""
        bias = self.report.layer.bias.cpu().numpy()
        with self.stage("twins"):
            for k in np.flatnonzero(best != np.arange(len(best))).tolist():
                one = int(best[k])
                number, behind = self.report.number[one], float(bias[one] - bias[k])
                self.lead[number] = min(self.lead[number], behind)
                self._tied(k, one, behind)
                if behind == 0:
                    self._tied(one, k, behind)
            if len(self.lead) == 1 and self.lead[0] > 0 and int(best[0]) in self.report.place:
                origin = torch.zeros_like(self.layer.weight)
                self.points(torch.zeros_like(origin[:, 0]).long(), origin)  # the largest bias wins

    def _tied(self, index: int, twin: int, behind: float) -> None:
        place = self.report.place.get(index)
        if place is None:
            return
        self._settle(place, CANNOT, -behind, 0.0)
        gap = torch.tensor(behind, dtype=torch.float64)
        self.report.bound[place] = float(probability_bound(gap, torch.zeros_like(gap)))
        self.report.spread[place], self.report.twin[place] = 1.0, twin
