"""One random attention pattern, fitted by heads of growing key size (S25).

A stochastic matrix P of 64 rows, each uniform on the simplex. For every key size r, Q and K of r
columns minimise the mean over rows of

    KL(P_i ‖ softmax(Q Kᵀ)_i)

by L-BFGS from random numbers. Beside it stands the truncated singular value decomposition of the
centred logits log P, a bound from above on what the best Q and K reach. Theory: zero exactly from
r = rank(log P, centred) on, which is 63 for almost every P of 64 rows.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.nn.head_rank import centred_log_attention, low_rank_attention, required_key_size
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "divergence", "fitted", "judge", "random_attention"]

ROWS, SIZES, STEPS = 64, (2, 4, 8, 16, 24, 32, 48, 62, 63, 64), 400
ZERO = 1e-10
"""Nats; rounding leaves about 1e-16."""
Table = Mapping[int, float]


def random_attention(rows: int = ROWS, seed: int = 0) -> Tensor:
    """A stochastic matrix whose rows are uniform on the simplex, (rows, rows)."""
    source = torch.Generator().manual_seed(25_000 + seed)
    P = torch.empty(rows, rows, dtype=torch.float64).exponential_(generator=source)
    return P / P.sum(dim=-1, keepdim=True)


def divergence(P: Tensor, other: Tensor) -> float:
    """Mean over rows of KL(P ‖ other), in nats."""
    return float((P * (P / other).log()).sum(dim=-1).mean())


def fitted(P: Tensor, size: int, steps: int = STEPS, seed: int = 0) -> float:
    """The divergence that L-BFGS reaches from random Q and K of this size."""
    source = torch.Generator().manual_seed(25_500 + seed)
    Q, K = (
        torch.randn(len(P), size, dtype=P.dtype, generator=source).mul_(0.3).requires_grad_()
        for _ in range(2)
    )
    search = torch.optim.LBFGS(
        [Q, K],
        max_iter=steps,
        max_eval=2 * steps,
        tolerance_grad=1e-13,
        tolerance_change=0.0,
        history_size=30,
        line_search_fn="strong_wolfe",
    )
    log_P = P.log()

    def distance() -> Tensor:
        search.zero_grad()
        loss = (P * (log_P - (Q @ K.T).log_softmax(dim=-1))).sum(dim=-1).mean()
        loss.backward()
        return loss

    search.step(distance)
    with torch.no_grad():
        return divergence(P, (Q @ K.T).softmax(dim=-1))


def judge(fits: Table, bounds: Table, required: int) -> tuple[Verdict, list[bool]]:
    """Three statements: it falls with every step, beats the bound, and is zero from `required` on.

    Args:
        fits: key size → divergence of the fit.
        bounds: key size → divergence of the truncation.
        required: the key size from which theory says zero.
    """
    best = {size: min(fits[size], bounds[size]) for size in sorted(fits)}
    below = [size for size in best if size < required]
    kept = [
        all(best[wide] < best[small] for small, wide in pairwise(below)),
        all(fits[size] <= bounds[size] for size in below),
        all((value <= ZERO) == (size >= required) for size, value in best.items()),
    ]
    if all(kept):
        return Verdict.HOLDS, kept
    return Verdict.PARTLY if kept[0] or kept[2] else Verdict.FAILS, kept


def measure(seed: int, data: Path | None) -> Finding:
    """All key sizes on one pattern; the data are not needed."""
    del data
    P = random_attention(seed=seed)
    required = int(required_key_size(P))
    sigma = torch.linalg.svdvals(centred_log_attention(P))
    plain = torch.linalg.svdvals(P)
    fits = {size: fitted(P, size, seed=seed) for size in SIZES}
    bounds = {size: divergence(P, low_rank_attention(P, size)) for size in SIZES}
    uniform = divergence(P, torch.full_like(P, 1 / ROWS))
    verdict, kept = judge(fits, bounds, required)
    numbers: dict[str, Number] = {
        "required key size": required,
        "uniform attention": f"{uniform:.4f}",
    }
    names_zh = {"required key size": "所需的 key size", "uniform attention": "均匀注意力"}
    for size in SIZES:
        key = f"key size {size}: fit, truncation"
        numbers[key] = f"{_few(fits[size])}, {_few(bounds[size])}"
        names_zh[key] = f"key size {size}：拟合，截断"
    words = [("yes", "是") if one else ("no", "否") for one in kept]
    return Finding(
        numbers,
        _picture(fits, bounds, sigma, plain),
        verdict,
        "Mean KL per row in nats. The better of fit and truncation falls with every step of the "
        f"key size: {words[0][0]}; below {required} the fit beats the truncation: {words[1][0]}; "
        f"zero (below {ZERO:g}) is reached at {required} and above, nowhere else: {words[2][0]}. "
        "Where zero is possible, descent from random numbers comes near it and stops short.",
        f"数值为各行 KL 的均值（nat）。key size 每加一档，拟合与截断中较好者都下降：{words[0][1]}；"
        f"key size 小于 {required} 时拟合优于截断：{words[1][1]}；"
        f"当且仅当不小于 {required} 时能到零（低于 {ZERO:g}）：{words[2][1]}。"
        "在可以为零之处，从随机数出发的下降能接近零，但差一点。",
        names_zh,
    )


def _few(value: float) -> str:
    return "0" if abs(value) <= ZERO else f"{value:.4f}" if value >= 1e-4 else f"{value:.1e}"


def _picture(fits: Table, bounds: Table, sigma: Tensor, plain: Tensor) -> str:
    lines = [
        Series(label, list(table), list(table.values()), dots=True)
        for label, table in (
            (("truncated decomposition", "截断分解"), bounds),
            (("fitted Q and K", "拟合 Q 与 K"), fits),
        )
    ]
    order = list(range(1, len(sigma) + 1))
    spectra = [
        Series(label, order, (values / values[0]).tolist())
        for label, values in (
            (("log P, rows centred", "log P，每行中心化"), sigma),
            (("P itself", "P 本身"), plain),
        )
    ]
    return line_chart(
        lines,
        title=("What a head of a given key size misses", "给定 key size 的头差多少"),
        x_label=("key size", "key size"),
        y_label=("mean KL per row, nats", "每行 KL 的均值（nat）"),
    ) + line_chart(
        spectra,
        title=("Singular values of the pattern", "注意力矩阵的奇异值"),
        x_label=("number of the singular value", "奇异值序号"),
        y_label=("share of the largest", "与最大者之比"),
    )


EXPERIMENT = Experiment(
    id="S25-bottleneck",
    system="S25",
    title_en="A random pattern needs keys as wide as it is long",
    title_zh="随机的注意力矩阵需要与长度相当的 key size",
    claim_en=(
        "The divergence between a random pattern over 64 keys and the best softmax(Q Kᵀ) falls "
        "with the key size and is zero from 63 on, not before."
    ),
    claim_zh=(
        "对 64 个键上的随机注意力矩阵，最佳的 softmax(Q Kᵀ) 与它的散度随 key size 下降，"
        "到 63 才为零，此前不为零。"
    ),
    published="key size n is enough for every pattern, less is not (2002.07028)",
    published_zh="key size 达到 n 足以表示任何注意力矩阵，小于 n 则不行（2002.07028）",
    measure=measure,
)
