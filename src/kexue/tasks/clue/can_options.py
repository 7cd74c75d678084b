"""The settings of CAN for a task, and how they are written on a command line (S11)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args

from torch import Tensor

from kexue.probability.can import Uncertainty
from kexue.probability.can_estimator import CAN, NoConfident
from kexue.training.recipes import parse_option

__all__ = ["CANOptions", "parse_can_options"]


@dataclass(frozen=True, slots=True)
class CANOptions:
    """The settings of CAN; see `kexue.probability.can_estimator.CAN`.

    Args:
        k: how many probabilities the uncertainty looks at; None: the article's 3, or 2 where
            there are two classes.
        tau: rows with a smaller uncertainty are trusted; article: 0.9.
        alpha: power; article: 1.
        steps: rounds of normalisation; article: 1.
        uncertainty: "topk" (article), "any_topk" (the paper's code) or "paper".
        no_confident: where no row is trusted: "unchanged", or "identity" as the paper's code.
        pseudo_count: added to the count of every class before the prior is taken.

    Raises:
        ValueError: out of range.
    """

    k: int | None = None
    tau: float = 0.9
    alpha: float = 1.0
    steps: int = 1
    uncertainty: Uncertainty = "topk"
    no_confident: NoConfident = "unchanged"
    pseudo_count: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tau < float("inf"):
            raise ValueError(f"tau must be at least 0 and finite, got {self.tau}")
        if not 0 <= self.pseudo_count < float("inf"):
            raise ValueError(f"pseudo_count must be at least 0 and finite, got {self.pseudo_count}")
        self.estimator()  # which knows the limits of the others

    def for_classes(self, classes: int) -> "CANOptions":
        """With the k that is meant where there are so many classes."""
        return replace(self, k=min(3 if self.k is None else self.k, classes))

    def estimator(self, prior: Tensor | None = None) -> CAN:
        """A CAN with these settings."""
        given = asdict(self) | {"k": 3 if self.k is None else self.k}
        del given["pseudo_count"]
        return CAN(**given, prior=prior)


NUMBERS: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("k", "steps"), ((int,), "a whole number")),
    **dict.fromkeys(("tau", "alpha", "pseudo_count"), ((int, float), "a number")),
}
CHOICES = {"uncertainty": get_args(Uncertainty), "no_confident": get_args(NoConfident)}


def parse_can_options(texts: Sequence[str]) -> CANOptions:
    """Settings as they are written on a command line.

    Args:
        texts: `name=value` each, names and defaults those of `CANOptions`.

    Raises:
        ValueError: not of that form, an unknown name, a value of another kind or out of range.

    Example:
        >>> parse_can_options(["tau=0.8", "uncertainty=any_topk"]).tau
        0.8
    """
    chosen: dict[str, Any] = {}
    for text in texts:
        if "=" not in text:
            raise ValueError(f"--can-option needs name=value, got {text!r}")
        name, value = parse_option(text)
        if name in NUMBERS:
            kinds, wanted = NUMBERS[name]
            if type(value) not in kinds:
                raise ValueError(f"{name} must be {wanted}, got {value!r}")
            chosen[name] = value if kinds == (int,) else float(text.partition("=")[2])
        elif name in CHOICES:
            if value not in CHOICES[name]:
                raise ValueError(f"{name} must be {' or '.join(CHOICES[name])}, got {value!r}")
            chosen[name] = value
        else:
            known = ", ".join(field.name for field in fields(CANOptions))
            raise ValueError(f"no option of CAN is called {name!r}; known: {known}")
    return CANOptions(**chosen)
