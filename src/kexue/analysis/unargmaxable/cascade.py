r"""The cascade: cheap proofs for nearly all classes, exact ones for the rest.

    twins    classes with the same row: at most one of them wins          ledger.py
    probe    the whitened row as the point: one product of matrices       probes.py
    climb    gradient steps for all that are left, together               likelihood.py
    newton   Newton's method on cutting planes, class by class            likelihood.py
    lp       a linear program on cutting planes, class by class           linear_program.py

Whatever a stage finds counts only once `certificates.py` has checked it in float64 in the layer's
own coordinates; what no stage can prove is undecided. Where features are confined to a box, points
outside are moved in and tried again, and the program decides what is left.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from kexue.analysis.unargmaxable.ledger import BLOCK, Ledger
from kexue.analysis.unargmaxable.likelihood import climb, newton
from kexue.analysis.unargmaxable.linear_program import Decision, largest_ball
from kexue.analysis.unargmaxable.min_norm import shortest_mix
from kexue.analysis.unargmaxable.probes import reflected, whitened_probe

__all__ = ["AUTO", "STAGES"]


def probe(ledger: Ledger, todo: Int[Tensor, " m"]) -> Iterator[int]:
    """All classes at their whitened rows; yields how many have been looked at."""
    layer, white = ledger.layer, ledger.white
    for block in whitened_probe(white, todo):
        points = white.features(block.scale[:, None] * white.rows[block.index])
        apart = layer.weight[block.index] - layer.weight[block.rival]
        margin = (apart * points).sum(dim=1)
        margin += layer.bias[block.index] - layer.bias[block.rival]
        radius = margin / (layer.norms[block.index] + layer.norms.max())
        sure, check = block.wins, block.close
        if ledger.box is not None:
            sure = block.wins & ledger.box.holds(points)
            check = check | (block.wins & ~sure)
        ledger.won(block.index[sure], block.scale[sure], margin[sure], radius[sure])
        ledger.points(block.index[check], points[check])
        yield len(block.index)


def climbing(ledger: Ledger, todo: Int[Tensor, " m"]) -> Iterator[int]:
    """Gradient steps, block by block."""
    for part in todo.split(256):
        for found in climb(ledger.white, part):
            ledger.found(found)
        yield len(part)


def climbing_where_it_pays(ledger: Ledger, todo: Int[Tensor, " m"]) -> Iterator[int]:
    """Gradient steps cost some 100 C r, Newton's method 80 r³: it takes over where r is small."""
    count, width = ledger.white.rows.shape
    if 100 * count * (width + 5) < 80 * width**3:
        yield from climbing(ledger, todo)


def newton_each(ledger: Ledger, todo: Int[Tensor, " m"]) -> Iterator[int]:
    """Newton's method, class by class."""
    for index in todo.tolist():
        found = newton(ledger.white, index)
        if found is not None:
            ledger.found(found)
        yield 1


def last_resort(ledger: Ledger, todo: Int[Tensor, " m"]) -> Iterator[int]:
    """A point or a mix by a linear program: whitened, so well scaled, unless a box confines z."""
    for index in todo.tolist():
        if ledger.box is not None or not whitened_ball(ledger, index):
            largest(ledger, index)  # a huge shift g leaves no digits for v
        yield 1


def balls(ledger: Ledger, todo: Int[Tensor, " m"]) -> Iterator[int]:
    """The largest ball in which each class wins, in the layer's own coordinates."""
    for index in todo.tolist():
        if not largest(ledger, index) and ledger.box is None:
            whitened_ball(ledger, index)  # features of very different sizes
        yield 1


def largest(ledger: Ledger, index: int) -> bool:
    """The largest ball of one class; whether that is a proof."""
    decision = largest_ball(ledger.layer.weight, ledger.layer.bias, index, ledger.box)
    return decision is not None and keep(ledger, index, decision, decision.point)


def whitened_ball(ledger: Ledger, index: int) -> bool:
    """The same in whitened coordinates, where the ball is another but its sign the same."""
    white = ledger.white
    decision = largest_ball(white.rows, white.offsets, index)
    if decision is None:
        return False
    return keep(ledger, index, decision, white.features(decision.point[None])[0])


def reflections(ledger: Ledger, todo: Int[Tensor, " m"]) -> Iterator[int]:
    """The paper's approximation; proves winning only."""
    for part in todo.split(max(1, BLOCK // ledger.layer.classes)):
        ledger.points(part, reflected(ledger.layer, part))
        yield len(part)


def shortest(ledger: Ledger, todo: Int[Tensor, " m"]) -> Iterator[int]:
    """The article's way: the mix nearest to the row, by Frank and Wolfe."""
    for index in todo.tolist():
        point, weights = shortest_mix(ledger.white, index)
        number = torch.tensor([index], device=todo.device)
        if not ledger.points(number, ledger.white.features(point[None])):
            among = weights.nonzero()[:, 0]
            ledger.mix(index, among, weights[among])
        yield 1


def keep(ledger: Ledger, index: int, decision: Decision, point: Tensor) -> bool:
    """The point of a program if the class wins there, else its mix; whether either is a proof."""
    number = torch.tensor([index], device=point.device)
    if decision.radius > 0 and ledger.points(number, point[None]):
        return True
    return ledger.mix(index, decision.index, decision.weights)


Steps = Callable[[Ledger, Int[Tensor, " m"]], Iterator[int]]
AUTO: dict[str, Steps] = {
    "probe": probe,
    "climb": climbing_where_it_pays,
    "newton": newton_each,
    "lp": last_resort,
}
STAGES: dict[str, dict[str, Steps]] = {
    "auto": AUTO,
    "probe": {"probe": probe},
    "climb": {"climb": climbing},
    "newton": {"newton": newton_each},
    "lp": {"lp": balls},
    "reflect": {"reflect": reflections},
    "min_norm": {"min_norm": shortest},
}
"""The stages of a method, by name."""
