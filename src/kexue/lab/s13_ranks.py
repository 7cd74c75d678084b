"""Does another mean put humans first? The columns do, the mean does not (S13).

SuperGLUE with 12 rows and GLUE with 3, under the arithmetic, geometric and harmonic mean:

    a  the same tasks for every row: is Human first under GM or HM?
    b  the diagnostic column counted for the models only (as in the paper's GLUE table)
    c  the diagnostic columns counted for every row (as in its SuperGLUE table)

The claim stands if Human is never first in (a), first under GM and HM in (b), and first under all
three in (c). Control: every column of SuperGLUE shuffled over the models, which makes the names
meaningless; Human should then be first about once in twelve.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kexue.analysis.leaderboard import Leaderboard, built_in
from kexue.analysis.leaderboard.ranks import ranks
from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.probability.means import MEANS, power_mean
from kexue.report.rank_flow import rank_flow, rank_spread

__all__ = ["EXPERIMENT", "HumanRanks", "control", "human_ranks", "over_what_is_there", "verdict"]

SHUFFLES = 2000
NAMES = {"arithmetic": ("AM", "AM"), "geometric": ("GM", "GM"), "harmonic": ("HM", "HM")}
NAMES_ZH = {
    "Human on SuperGLUE, AM / GM / HM": "人类在 SuperGLUE 的名次，AM / GM / HM",
    "Human on GLUE, same columns": "人类在 GLUE 的名次，各行同列",
    "Human on GLUE, AX for models only": "人类在 GLUE 的名次，仅模型计入 AX",
    "Human on SuperGLUE with AX, 4 rows": "人类在 SuperGLUE 的名次，各行计入 AX，4 行",
    "Human by Borda": "人类按 Borda 的名次",
    "Human without MultiRC": "去掉 MultiRC 后人类的名次",
    "Human's rank over resampled tasks, 95 %": "重抽任务后人类的名次，95%",
    "Kendall AM–GM / AM–HM": "Kendall AM–GM / AM–HM",
    "rule of the published averages": "公布平均分的算法",
    "control: shuffled columns, Human first": "对照：打乱各列后人类居首",
}


@dataclass(frozen=True)
class HumanRanks:
    """Human's rank under the three means, by which columns count."""

    superglue: tuple[int, ...]
    glue: tuple[int, ...]
    glue_mixed: tuple[int, ...]
    superglue_diagnostics: tuple[int, ...]


def human_of(board: Leaderboard) -> tuple[int, ...]:
    """Human's ranks under the three means."""
    human = board.models.index("Human")
    return tuple(int(board.rank(mean)[human]) for mean in MEANS)


def over_what_is_there(board: Leaderboard) -> Mapping[str, tuple[int, ...]]:
    """Ranks under the three means if every row counts all scores it has: what never to do."""
    rows = board.table.scores()
    found = [
        ranks(np.array([float(power_mean(row[~np.isnan(row)], mean)) for row in rows]))
        for mean in MEANS
    ]
    return {
        model: tuple(int(one[m]) for one in found) for m, model in enumerate(board.table.models)
    }


def human_ranks() -> HumanRanks:
    """All four cases."""
    superglue, glue, diagnostics = (
        Leaderboard.read(built_in(name)) for name in ("superglue", "glue", "superglue-diagnostics")
    )
    mixed = over_what_is_there(glue)["Human"]
    return HumanRanks(human_of(superglue), human_of(glue), mixed, human_of(diagnostics))


def verdict(found: HumanRanks) -> Verdict:
    """Holds if the mean never makes Human first and the columns do; partly if one half is true."""
    mean_does_not = 1 not in (*found.superglue, *found.glue)
    columns_do = found.glue_mixed[1:] == (1, 1) and set(found.superglue_diagnostics) == {1}
    if mean_does_not and columns_do:
        return Verdict.HOLDS
    return Verdict.PARTLY if mean_does_not or columns_do else Verdict.FAILS


def control(board: Leaderboard, seed: int, shuffles: int = SHUFFLES) -> float:
    """Share of shuffles in which Human is first under the arithmetic mean."""
    random = np.random.default_rng(seed)
    mixed = np.stack([random.permuted(board.scores, axis=0) for _ in range(shuffles)])
    found = ranks(power_mean(mixed, "arithmetic", board.weights))  # (shuffles, M)
    return float((found[:, board.models.index("Human")] == 1).mean())


def measure(seed: int, data: Path | None) -> Finding:
    """Rank the built-in tables; no other data are needed."""
    del data
    board, found = Leaderboard.read(built_in("superglue")), human_ranks()
    human = board.models.index("Human")
    boots = {mean: board.bootstrap(mean=mean) for mean in MEANS}
    low, median, high = boots["arithmetic"].rank_interval()[human]
    without = [int(board.leave_one_out(mean)["MultiRC"][human]) for mean in MEANS]
    taus = [board.agreement("arithmetic", mean).kendall for mean in ("geometric", "harmonic")]
    audit, by_chance = board.audit(), control(board, seed)
    numbers: dict[str, Number] = {
        "Human on SuperGLUE, AM / GM / HM": _slashes(found.superglue),
        "Human on GLUE, same columns": _slashes(found.glue),
        "Human on GLUE, AX for models only": _slashes(found.glue_mixed),
        "Human on SuperGLUE with AX, 4 rows": _slashes(found.superglue_diagnostics),
        "Human by Borda": int(board.rank("borda")[human]),
        "Human without MultiRC": _slashes(without),
        "Human's rank over resampled tasks, 95 %": f"{low} to {high}, median {median}",
        "Kendall AM–GM / AM–HM": f"{taus[0]:.3f} / {taus[1]:.3f}",
        "rule of the published averages": (
            audit.common[0].words()[0] if audit.consistent else "none for all rows"
        ),
        "control: shuffled columns, Human first": f"{100 * by_chance:.1f} % (1/12: 8.3 %)",
    }
    return Finding(numbers, _picture(board), verdict(found), *_comment(found), NAMES_ZH)


def _picture(board: Leaderboard) -> str:
    ways = [*MEANS, "borda"]
    without = board.leave_one_out()
    chosen = [task for task in ("MultiRC", "COPA", "WSC") if task in without]
    stages = [NAMES["arithmetic"], NAMES["geometric"], NAMES["harmonic"], ("Borda", "Borda")]
    stages += [(f"AM −{task}", f"AM −{task}") for task in chosen]
    order = np.argsort(board.rank(), kind="stable").tolist()
    boots = [board.bootstrap(mean=mean).rank_interval() for mean in MEANS]
    return rank_flow(
        stages,
        board.models,
        [board.rank(way).tolist() for way in ways] + [without[task].tolist() for task in chosen],
        title=("SuperGLUE: rank under every mean", "SuperGLUE：各种平均下的名次"),
        under=("and without one of the tasks", "以及去掉一个任务之后"),
        width=860,
    ) + rank_spread(
        [board.models[m] for m in order],
        [(NAMES[mean], boot[order].tolist()) for mean, boot in zip(MEANS, boots, strict=True)],
        title=("Likely ranks", "可能的名次"),
        under=(
            "95 % of all resamples of the 8 tasks; dot: median",
            "8 个任务全部重抽结果的 95%；圆点：中位数",
        ),
        width=860,
    )


def _comment(found: HumanRanks) -> tuple[str, str]:
    same, mixed = _slashes(found.superglue), _slashes(found.glue_mixed)
    return (
        f"On the same tasks for every row Human is number {same} under AM, GM and HM. Counting the "
        f"diagnostic column of GLUE for the models only makes that {mixed}. The diagnostic scores "
        "of the models are from memory of the public board.",
        f"各行用同样的任务时，人类按 AM、GM、HM 的名次是 {same}；"
        f"在 GLUE 上只给模型计入诊断列，名次就变成 {mixed}。模型的诊断列分数凭记忆取自公开榜单。",
    )


def _slashes(values: "tuple[int, ...] | list[int]") -> str:
    return " / ".join(map(str, values))


EXPERIMENT = Experiment(
    id="S13-ranks",
    system="S13",
    title_en="Which mean makes humans first?",
    title_zh="哪种平均让人类排第一？",
    claim_en=(
        "On the same columns for every row no mean puts humans first on GLUE or SuperGLUE; columns "
        "that differ between rows, or diagnostic columns, do."
    ),
    claim_zh=(
        "各行用同样的列时，无论哪种平均，人类在 GLUE 与 SuperGLUE 上都不是第一；"
        "让各行的列不一致，或计入诊断列，人类才成了第一。"
    ),
    published="Human 8 / 8 / 10 on SuperGLUE under AM / GM / HM; the paper's table has Human first",
    published_zh="人类在 SuperGLUE 上按 AM / GM / HM 排第 8 / 8 / 10；论文的表中人类排第一",
    measure=measure,
)
