"""One experiment per system: a claim, a number, a picture and an honest verdict."""

from kexue.lab.experiment import Experiment, Finding, Verdict, discover
from kexue.lab.runner import Outcome, run_experiments

__all__ = ["Experiment", "Finding", "Outcome", "Verdict", "experiments", "run_experiments"]


def experiments() -> list[Experiment]:
    """Every experiment of the library, by id; imports them only when called.

    Example:
        >>> [one.id for one in experiments() if one.system == "S01"]
        ['S01-assignment', 'S01-windows']
    """
    return discover()
