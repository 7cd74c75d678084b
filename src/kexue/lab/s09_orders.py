"""Which orders a shuffle can give, counted (S09).

The article's two stages shuffle chunks of lines apart, then send out one line of each chunk in
every round, chunks in random order. Given how many lines stand where, lines of one chunk are
exchangeable, so an order is decided by its row of chunk numbers ("labels"): the chance of an order
is that of its labels over ∏ n_k!. Counting labels is counting orders, and is exact.

    distance   ½ Σ over orders |P(order) − 1 / N!|                                              (1)
    reachable  ∏_k n_k! · ∏_r l_r!,  l_r chunks that still have lines in round r                (2)

The article's remedy for a short last chunk leaves it out of a round with the chance 1 − (its lines
left) / (lines left of each other chunk). Buckets: every line draws one of K, buckets are shuffled
and written one behind the other.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import permutations, product
from math import factorial, prod
from pathlib import Path

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.report.charts import Bar, bar_chart

__all__ = ["EXPERIMENT", "bucket_orders", "distance", "reachable", "two_stage_labels", "verdict"]

Chances = dict[tuple[int, ...], Fraction]
SIZES: tuple[tuple[int, ...], ...] = ((2, 2), (3, 1), (3, 3), (2, 2, 2), (4, 4), (4, 4, 1))
SHORT: tuple[tuple[int, ...], ...] = ((3, 1), (3, 2), (2, 2, 1), (4, 1), (3, 3, 1))
"""With a short last chunk, where the remedy is at work."""
PUBLISHED: dict[tuple[int, ...], Fraction] = {(2, 2): Fraction(1, 3), (3, 3): Fraction(3, 5)}
"""By the article's own count, (m!)^n (n!)^m orders of (mn)!."""


def two_stage_labels(sizes: Sequence[int], remedy: bool = False) -> Chances:
    """Chance of each row of labels.

    Args:
        sizes: lines of the chunks; all equal but the last, which may be shorter.
        remedy: leave a short last chunk out of rounds at random.
    """
    found: Chances = {}

    def go_on(row: tuple[int, ...], left: tuple[int, ...], chance: Fraction) -> None:
        if not any(left):
            found[row] = found.get(row, Fraction(0)) + chance
            return
        alive = [k for k, lines in enumerate(left) if lines]
        last = len(sizes) - 1
        stay = Fraction(1)
        if remedy and left[last] and len(alive) > 1:
            stay = Fraction(left[last], left[alive[0]])
        for members, share in ((alive, stay), ([k for k in alive if k != last], 1 - stay)):
            if not share:
                continue
            after = tuple(lines - (k in members) for k, lines in enumerate(left))
            each = chance * share / factorial(len(members))
            for way in permutations(members):
                go_on(row + way, after, each)

    go_on((), tuple(sizes), Fraction(1))
    return found


def distance(chances: Mapping[tuple[int, ...], Fraction], sizes: Sequence[int]) -> Fraction:
    """(1), total variation from uniform, from chances of labels."""
    rows = Fraction(factorial(sum(sizes)), prod(map(factorial, sizes)))
    near = sum((abs(one - 1 / rows) for one in chances.values()), Fraction(0))
    return (near + (rows - len(chances)) / rows) / 2


def reachable(chances: Mapping[tuple[int, ...], Fraction], sizes: Sequence[int]) -> int:
    """How many orders can come out."""
    return len(chances) * prod(map(factorial, sizes))


def bucket_orders(lines: int, buckets: int) -> Chances:
    """Chance of each order if every line draws a bucket and buckets are shuffled."""
    found: Chances = {}
    for draw in product(range(buckets), repeat=lines):
        parts = [[j for j in range(lines) if draw[j] == b] for b in range(buckets)]
        ways = prod(factorial(len(part)) for part in parts)
        each = Fraction(1, buckets**lines * ways)
        for way in product(*(permutations(part) for part in parts)):
            order = tuple(j for part in way for j in part)
            found[order] = found.get(order, Fraction(0)) + each
    return found


def verdict(
    plain: Mapping[tuple[int, ...], Fraction],
    remedied: Mapping[tuple[int, ...], Fraction],
    exact: Fraction,
) -> Verdict:
    """Whether the count is right, the remedy helps and does not cure, and buckets are exact."""
    counted = all(plain[sizes] == wanted for sizes, wanted in PUBLISHED.items())
    helps = all(0 < remedied[sizes] < plain[sizes] for sizes in SHORT)
    agree = [counted, helps, exact == 0]
    if all(agree):
        return Verdict.HOLDS
    return Verdict.PARTLY if any(agree) else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Count; nothing is random."""
    every = dict.fromkeys((*SIZES, *SHORT))
    plain = {sizes: two_stage_labels(sizes) for sizes in every}
    remedied = {sizes: two_stage_labels(sizes, remedy=True) for sizes in SHORT}
    far = {sizes: distance(chances, sizes) for sizes, chances in plain.items()}
    nearer = {sizes: distance(chances, sizes) for sizes, chances in remedied.items()}
    orders = bucket_orders(4, 2)
    exact = distance(orders, (1,) * 4)
    numbers: dict[str, Number] = {}
    names_zh: dict[str, str] = {}

    def add(sizes: tuple[int, ...], what: tuple[str, str], chances: Chances, tv: Fraction) -> None:
        name = f"chunks {'+'.join(map(str, sizes))}, {what[0]}"
        names_zh[name] = f"块 {'+'.join(map(str, sizes))}，{what[1]}"
        orders = f"{reachable(chances, sizes):,} / {factorial(sum(sizes)):,}"
        numbers[name] = f"{float(tv):.10f} ({orders})"

    for sizes in every:
        add(sizes, ("two stages", "两阶段"), plain[sizes], far[sizes])
        if sizes in remedied:
            add(sizes, ("with the remedy", "加补救"), remedied[sizes], nearer[sizes])
    name = "4 lines in 2 buckets"
    numbers[name] = f"{float(exact):.10f} ({len(orders)} / 24)"
    names_zh[name] = "4 行、2 个桶"
    bars = [
        Bar("+".join(map(str, sizes)), float(far[sizes]), chance=_level(nearer, sizes))
        for sizes in every
    ]
    picture = bar_chart(
        [*bars, Bar(("buckets", "桶"), float(exact))],
        title=("Distance from the uniform order", "与均匀次序的距离"),
        unit=(
            "total variation of the two stages, by lines of the chunks",
            "两阶段的全变差，按各块行数",
        ),
        chance_name=("with the remedy", "加补救"),
        top=1.0,
        digits=3,
    )
    return Finding(
        numbers,
        picture,
        verdict(far, nearer, exact),
        "All orders are counted, with fractions. The article's own count of reachable orders is "
        "right. Its remedy for a short last chunk removes a part of the distance where there is "
        "one; orders stay out of reach as soon as two chunks are long. Buckets reach all orders "
        "with equal chances.",
        "用分数对所有次序作精确计数。文中对可达次序的计数正确；对过短末块的补救消除了部分距离，"
        "但只要有两个长块，就仍有次序不可达。随机分桶以相同的概率达到所有次序。",
        names_zh,
    )


def _level(nearer: Mapping[tuple[int, ...], Fraction], sizes: tuple[int, ...]) -> float | None:
    return float(nearer[sizes]) if sizes in nearer else None


EXPERIMENT = Experiment(
    id="S09-orders",
    system="S09",
    title_en="Which orders a shuffle can give",
    title_zh="一种打乱方法能给出哪些次序",
    claim_en=(
        "Two stages, within chunks and across them, reach (m!)^n (n!)^m of (mn)! orders; leaving "
        "a short last chunk out at random helps and does not cure; random buckets are exact."
    ),
    claim_zh=(
        "块内、块间两阶段打乱只能达到 (mn)! 种次序中的 (m!)^n (n!)^m 种；随机跳过过短的末块"
        "有所改善，但不能根治；随机分桶是精确均匀的。"
    ),
    published="(m!)^n (n!)^m is no multiple of (mn)!: near-global only; a remedy by probabilities",
    published_zh="(m!)^n (n!)^m 不是 (mn)! 的倍数，因此只是近似全局；补救规则由文中方法推得",
    measure=measure,
)
