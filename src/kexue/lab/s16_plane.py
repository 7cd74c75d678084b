"""Two gradients in a plane, and what one constraint at a time misses (S16, article 8907).

The step u of a primary task and its auxiliaries is the projection of g_0 on {⟨u, g_i⟩ ≥ 0}. The
article finds it by an iteration:

    τ = argmin_i ⟨g_i, u⟩;   λ_τ = relu(−⟨u − λ_τ g_τ, g_τ⟩) / ‖g_τ‖²;   u = g_0 + Σ λ_i g_i

Once no constraint is broken it selects one that is just met, for ever, and a λ that has grown too
large never shrinks. How often that matters is counted here on Gaussian gradients.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.optim.multitask.gram import min_norm_weights, primary_auxiliary_weights
from kexue.report.charts import Bar, bar_chart
from kexue.report.drawing import FAINT, GRID, INK, SOFT, Label, colour, heading, rule, svg, text
from kexue.report.markup import Html, tag

__all__ = ["EXPERIMENT", "directions", "errors", "picture", "published_iteration", "verdict"]

Array = NDArray[np.float64]
DRAWS, DIMENSION, AUXILIARIES = 2000, 5, (2, 3, 5)
PLANE = np.array([[3.0, 1.0], [-1.0, 0.5]])
STALL = np.array([[-2.0, -1.0], [1.0, 0.0], [1.0, 1.0]])


def published_iteration(K: Array, steps: int = 2000) -> Array:
    """The weights (1, λ) of the article's iteration, for matrices (…, n+1, n+1), primary first."""
    w = np.zeros(K.shape[:-1])
    w[..., 0] = 1
    square = np.diagonal(K, axis1=-2, axis2=-1)
    for _ in range(steps):
        inner = np.einsum("...ij,...j->...i", K, w)  # ⟨g_i, u⟩
        worst = 1 + inner[..., 1:].argmin(-1)[..., None]
        old = np.take_along_axis(w, worst, -1)
        new = np.take_along_axis(w - inner / square, worst, -1).clip(0)
        if (np.abs(new - old) <= 1e-12 * (1 + np.abs(old))).all():
            break
        np.put_along_axis(w, worst, new, -1)
    return w


def errors(auxiliaries: int, draws: int, seed: int = 0) -> dict[str, float]:
    """Percent of Gaussian draws in which the iteration ends wrong, or the solver here does.

    Wrong: u differs from the other's by more than 1e-6 of ‖g_0‖. The primary rises: ⟨u, g_0⟩ < 0;
    an auxiliary rises: ⟨u, g_i⟩ < 0, both beyond 1e-6 of the lengths.
    """
    random = np.random.default_rng((seed, auxiliaries))
    G = random.standard_normal((draws, auxiliaries + 1, DIMENSION))
    K = G @ G.transpose(0, 2, 1)
    published = published_iteration(K)
    exact = np.stack([primary_auxiliary_weights(torch.from_numpy(one)).numpy() for one in K])
    u, v = (np.einsum("bi,bid->bd", w, G) for w in (published, exact))
    length = np.linalg.norm(G, axis=-1)

    def share(bad: Any) -> float:
        return 100 * float(np.mean(bad))

    def inner(step: Array) -> Array:
        products: Array = np.einsum("bid,bd->bi", G, step)
        products /= length * length[:, :1]
        return products

    complementary = np.abs(exact[:, 1:] * length[:, 1:] / length[:, :1] * inner(v)[:, 1:]).max(-1)
    unfit = (inner(v)[:, 1:] < -1e-9).any(-1) | (complementary > 1e-9)
    return {
        "wrong": share(np.linalg.norm(u - v, axis=-1) > 1e-6 * length[:, 0]),
        "primary rises": share(inner(u)[:, 0] < -1e-6),
        "auxiliary rises": share((inner(u)[:, 1:] < -1e-6).any(-1)),
        "ours wrong": share(unfit | (inner(v)[:, 0] < -1e-9)),
    }


def directions(G: Array) -> dict[str, Array]:
    """The step u of each method for a primary and one auxiliary gradient."""
    K = torch.from_numpy(G @ G.T)
    first, second = (primary_auxiliary_weights(K, primary=i).numpy() @ G for i in (0, 1))
    return {
        "sum": G.sum(0),
        "PCGrad": first + second,
        "min-norm": min_norm_weights(K).numpy() @ G,
        "veto": first,
        "protect": primary_auxiliary_weights(K, mode="protect_primary").numpy() @ G,
    }


def verdict(found: dict[int, dict[str, float]]) -> Verdict:
    """The iteration holds if at most 1 % end wrong; partly if then at least no task rises."""
    if any(one["ours wrong"] > 0 for one in found.values()):
        return Verdict.OPEN  # nothing exact to compare with
    if max(one["wrong"] for one in found.values()) <= 1:
        return Verdict.HOLDS
    rising = max(max(one["primary rises"], one["auxiliary rises"]) for one in found.values())
    return Verdict.PARTLY if rising == 0 else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Draw gradients, solve both ways; the data are not needed."""
    del data
    found = {n: errors(n, DRAWS, seed) for n in AUXILIARIES}
    K = STALL @ STALL.T
    stalled = published_iteration(K) @ STALL
    exact = primary_auxiliary_weights(torch.from_numpy(K)).numpy() @ STALL
    numbers: dict[str, Number] = {
        "example, iteration: u": f"({stalled[0]:g}, {stalled[1]:g})",
        "example, iteration: ⟨u, g₀⟩": round(float(stalled @ STALL[0]), 6),
        "example, exact: ‖u‖": round(float(np.linalg.norm(exact)), 6),
    }
    for n, one in found.items():
        numbers[f"{n} auxiliaries: wrong"] = f"{one['wrong']:.1f} %"
        numbers[f"{n} auxiliaries: primary or auxiliary rises"] = (
            f"{one['primary rises']:.1f} % / {one['auxiliary rises']:.1f} %"
        )
    numbers["exact solver: wrong"] = f"{max(one['ours wrong'] for one in found.values()):.1f} %"
    bars = [Bar((f"{n} auxiliaries", f"{n} 个辅助任务"), one["wrong"]) for n, one in found.items()]
    chart = bar_chart(
        bars,
        title=("Wrong answers of the iteration", "逐个修正迭代的错误率"),
        unit=(f"percent of {DRAWS:,} draws, dimension 5", f"占 {DRAWS:,} 次抽样的百分比，5 维"),
        top=100,
    )
    shares = ", ".join(f"{one['wrong']:.0f} %" for one in found.values())
    return Finding(
        numbers=numbers,
        figure=picture(PLANE) + chart,
        verdict=verdict(found),
        comment_en=(
            f"With 2, 3 and 5 auxiliaries in five dimensions the iteration ends wrong in {shares} "
            f"of {DRAWS:,} draws, after up to 2,000 steps; with one it is exact. The library "
            "solves the same problem by active sets, checked against the conditions of optimality."
        ),
        comment_zh=(
            f"5 维中有 2、3、5 个辅助任务时，{DRAWS:,} 次抽样里该迭代（至多 2000 步）结果错误的占"
            f" {shares}；只有一个辅助任务时它是精确的。本库用积极集法求解同一问题，"
            "并按最优性条件逐一核对。"
        ),
        names_zh={
            "example, iteration: u": "例子，迭代：u",
            "example, iteration: ⟨u, g₀⟩": "例子，迭代：⟨u, g₀⟩",
            "example, exact: ‖u‖": "例子，精确解：‖u‖",
            "exact solver: wrong": "精确解法：错误",
        }
        | {f"{n} auxiliaries: wrong": f"{n} 个辅助任务：错误" for n in AUXILIARIES}
        | {
            f"{n} auxiliaries: primary or auxiliary rises": f"{n} 个辅助任务：主任务 / 辅助任务上升"
            for n in AUXILIARIES
        },
    )


def picture(G: Array, width: int = 520, height: int = 400) -> Html:
    """Both gradients, the cone of steps that raise neither task, and the step of each method."""
    steps = directions(G)
    points = np.vstack([G, *steps.values(), np.zeros(2)])
    low, high = points.min(0) - np.array([1.0, 0.3]), points.max(0) + np.array([0.75, 0.3])
    unit = min((width - 8) / (high[0] - low[0]), (height - 70) / (high[1] - low[1]))

    def at(point: Array) -> tuple[float, float]:
        return 4 + unit * float(point[0] - low[0]), height - 6 - unit * float(point[1] - low[1])

    def arrow(tip: Array, name: Label, paint: str, thick: float) -> list[Html]:
        (x, y), (x0, y0) = at(tip), at(np.zeros(2))
        along = np.array([x - x0, y - y0]) / np.hypot(x - x0, y - y0)
        across = np.array([-along[1], along[0]])
        back = np.array([x, y]) - 9 * along
        head = [np.array([x, y]), back + 4 * across, back - 4 * across]
        corners = " ".join(f"{a:.1f},{b:.1f}" for a, b in head)
        right = along[0] > 0
        return [
            rule(x0, y0, float(back[0]), float(back[1]), paint, thick),
            tag("polygon", points=corners, fill=paint),
            *text(
                name,
                x + 5 if right else x - 5,
                y - 4,
                anchor="start" if right else "end",
                fill=paint,
                weight=600,
            ),
        ]

    title = ("One primary and one auxiliary gradient", "一个主任务与一个辅助任务的梯度")
    under = ("shaded: steps u that raise neither task", "阴影：两个任务都不会上升的 u")
    parts = [heading(title, under)]
    edges = [np.array([-g[1], g[0]]) for g in G]
    edges = [edge if (G @ edge).min() > -1e-12 else -edge for edge in edges]
    reach = (high[1] - 0.15) / max(float(edge[1]) / float(np.hypot(*edge)) for edge in edges)
    corners = [np.zeros(2), *(edge / np.hypot(*edge) * reach for edge in edges)]
    shape = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, corners))
    parts.append(tag("polygon", points=shape, fill=GRID))
    for start, end in (((low[0], 0.0), (high[0], 0.0)), ((0.0, low[1]), (0.0, high[1]))):
        parts.append(rule(*at(np.array(start)), *at(np.array(end)), FAINT))
    names: dict[str, Label] = {
        "sum": ("sum", "求和"),
        "PCGrad": "PCGrad",
        "min-norm": ("min-norm", "最小范数"),
        "veto": ("veto", "否决"),
        "protect": ("protect", "保护主任务"),
    }
    parts += arrow(G[0], ("g₀ primary", "g₀ 主任务"), INK, 2.5)
    parts += arrow(G[1], ("g₁ auxiliary", "g₁ 辅助"), SOFT, 2.5)
    for index, (name, tip) in enumerate(steps.items()):
        parts += arrow(tip, names[name], colour(index), 1.8)
    return svg(title, width, height, parts)


EXPERIMENT = Experiment(
    id="S16-plane",
    system="S16",
    title_en="One constraint at a time is not enough",
    title_zh="逐个修正约束并不够",
    claim_en=(
        "With several auxiliary tasks, correcting the primary gradient for the most violated one, "
        "again and again, ends at the best step."
    ),
    claim_zh="有多个辅助任务时，反复针对冲突最大的一个修正主任务梯度，最终得到最优的更新方向。",
    published="Stated as the algorithm for several auxiliaries, without numbers (article 8907).",
    published_zh="作为多个辅助任务的求解算法给出，没有数值（文章 8907）。",
    measure=measure,
)
