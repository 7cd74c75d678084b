"""The learning rate of an optimizer that chooses its own: a number that nobody may scale.

`AdaFactor(lr=None)` computes its step from the count of steps. A learning-rate scheduler would
multiply or replace `group["lr"]`, to no effect or to a wrong one. So the group holds an `OwnStep`:
it counts as a float (not a number), and arithmetic with it says what to do instead.
"""

from typing import Any, NoReturn

__all__ = ["OwnStep", "refuse_scheduler"]


class OwnStep(float):
    """What `group["lr"]` is under lr=None; saved as None.

    Example:
        >>> OwnStep(), 0.5 * OwnStep()
        Traceback (most recent call last):
        ...
        ValueError: lr=None and a learning-rate scheduler exclude each other: ...
    """

    def __new__(cls) -> "OwnStep":
        return super().__new__(cls, "nan")

    def __repr__(self) -> str:
        return "OwnStep()"

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return OwnStep, ()

    def _refuse(self, *_: Any) -> NoReturn:
        refuse_scheduler()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __neg__ = _refuse


def refuse_scheduler(found: object = None) -> NoReturn:
    """Raises the error about lr=None beside a scheduler.

    Args:
        found: what stands in `group["lr"]` instead, if something does.

    Raises:
        ValueError: always.
    """
    there = "" if found is None else f" (group['lr'] was set to {found})"
    raise ValueError(
        f"lr=None and a learning-rate scheduler exclude each other{there}: with lr=None the "
        "optimizer computes its own step size. Give a number, such as lr=1e-3, and keep the "
        "scheduler, or leave the scheduler out; Hugging Face's Trainer always makes one"
    )
