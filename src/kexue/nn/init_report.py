r"""浅谈Transformer的初始化、参数化与标准化 — what an initialisation of a model did (S04)

For every parameter its role and deviation s; for a matrix with fan-in m and fan-out n also

    m s^2 forwards,    n s^2 backwards                                                         (1)

the factors on second moments, so that a rule that favours one direction shows.

Source: article 8620. See also: `kexue.nn.init_rules`, which makes it.
"""

from dataclasses import dataclass, field

__all__ = ["InitReport", "Setting"]


@dataclass(frozen=True)
class Setting:
    """One parameter that was set: its deviation, and the gains of second moments if a matrix."""

    name: str
    shape: tuple[int, ...]
    role: str
    std: float | None = None
    forward: float | None = None
    backward: float | None = None


@dataclass
class InitReport:
    """What `apply_init` did. Printed, it is a table.

    Args:
        rule: its name.
        settings: one entry per parameter that was set.
        kept: names of parameters that stayed as they were.
    """

    rule: str
    settings: list[Setting] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Setting:
        """The setting of a parameter."""
        return next(one for one in self.settings if one.name == name)

    def __str__(self) -> str:
        title = f"rule {self.rule}"
        wide = max(len(name) for name in (title, *(one.name for one in self.settings)))
        lines = [f"{title:<{wide}}  {'role':<9}{'std':>9}{'forward':>9}{'backward':>9}"]
        for one in self.settings:
            numbers = [f"{x:>9.4g}" for x in (one.std, one.forward, one.backward) if x is not None]
            lines.append(f"{one.name:<{wide}}  {one.role:<9}{''.join(numbers)}".rstrip())
        return "\n".join([*lines, *(f"{name:<{wide}}  kept" for name in self.kept)])
