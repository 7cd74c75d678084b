"""Performer, VQ and the soft form between them against exact attention (S30).

Keys lie on the unit sphere, either around a few centres or all over it. Every method replaces the
n keys by a number of features or codes of the same size; its error is

    |O − O_exact| / |O_exact − mean of the values|

so 0 is exact attention and 1 is as bad as ignoring the queries.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.nn.code_search import kmeans_codebook, nearest_code
from kexue.nn.random_features import favor_features, orthogonal_gaussian
from kexue.nn.soft_vq import soft_vq_attention
from kexue.nn.vq_attention import vq_attention
from kexue.report.charts import Series, line_chart

__all__ = [
    "EXPERIMENT",
    "Sample",
    "favor_error",
    "sample",
    "soft_error",
    "verdict",
    "vq_error",
    "wins",
]

DIM, KEYS, QUERIES, CLUSTERS = 16, 1024, 256, 32
SPREAD = 0.1
"""Standard deviation of a key around its centre, per coordinate; then back to the sphere."""
LENGTH = 2.0
"""Of the queries: logits lie between −2 and 2, moderate norms where FAVOR+ has finite variance."""
SIZES = (8, 16, 32, 64, 128, 256)
SOFT = 0.1
"""Temperature of the soft curve."""
TEMPERATURES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0)
COLD = 1e-9
"""Temperature that stands for the limit 0: keys almost between two codes need it low."""
REPEATS = 10
Runs = list[list[float]]
"""Errors by size and repetition."""
NAMES_ZH = {
    "clustered keys, size 64: FAVOR+": "成簇的键，大小 64：FAVOR+",
    "clustered keys, size 64: VQ": "成簇的键，大小 64：VQ",
    "clustered keys, size 64: soft VQ": "成簇的键，大小 64：软 VQ",
    "uniform keys, size 64: FAVOR+": "均匀的键，大小 64：FAVOR+",
    "uniform keys, size 64: VQ": "均匀的键，大小 64：VQ",
    "uniform keys, size 64: soft VQ": "均匀的键，大小 64：软 VQ",
    "soft minus hard at T = 1e-9": "T = 1e-9 时软硬之差",
}


@dataclass(frozen=True)
class Sample:
    """Queries, keys and values of one head, and exact attention, in float64."""

    q: Tensor
    k: Tensor
    v: Tensor
    exact: Tensor

    def error(self, out: Tensor) -> float:
        """Relative to ignoring the queries."""
        return float((out - self.exact).norm() / (self.exact - self.v.mean(0)).norm())


def sample(clustered: bool, generator: torch.Generator) -> Sample:
    """Keys around `CLUSTERS` centres, or uniform on the sphere; values independent of the keys."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, DIM, generator=generator, dtype=torch.float64)

    k = normal(KEYS)
    if clustered:
        centres = torch.nn.functional.normalize(normal(CLUSTERS), dim=-1)
        which = torch.randint(CLUSTERS, (KEYS,), generator=generator)
        k = centres[which] + SPREAD * k
    k = torch.nn.functional.normalize(k, dim=-1)
    q = LENGTH * torch.nn.functional.normalize(normal(QUERIES), dim=-1)
    v = normal(KEYS)
    return Sample(q, k, v, (q @ k.T).softmax(-1) @ v)


def favor_error(one: Sample, size: int, generator: torch.Generator) -> float:
    """FAVOR+ with orthogonal features."""
    omega = orthogonal_gaussian(size, DIM, "chi", generator, dtype=torch.float64)
    phi_q = favor_features(one.q, omega, stabilizer="per_token")
    phi_k = favor_features(one.k, omega)
    kernel = phi_q @ phi_k.T
    return one.error(kernel @ one.v / kernel.sum(-1, keepdim=True))


def codebook(one: Sample, size: int, generator: torch.Generator) -> Tensor:
    """Codewords by k-means, (1, c, d)."""
    return kmeans_codebook(one.k[None], size, generator=generator)


def hard(one: Sample, codes: Tensor) -> Tensor:
    """Attention of the quantised keys; queries and keys are told apart by their mask."""
    z = nearest_code(one.k[None, None], codes)
    rows = torch.cat([one.k, one.q])
    pad = torch.zeros(len(one.q), dtype=torch.long)
    mask = torch.arange(len(rows)) < len(one.k)
    every = torch.cat([z[0, 0], pad])[None, None]
    values = torch.cat([one.v, torch.zeros(len(one.q), DIM, dtype=one.v.dtype)])
    out = vq_attention(
        rows[None, None],
        codes[0][every],
        every,
        codes,
        values[None, None],
        block=128,
        causal=False,
        key_mask=mask[None],
    )
    return out[0, 0, len(one.k) :]


def vq_error(one: Sample, codes: Tensor) -> float:
    """Transformer-VQ."""
    return one.error(hard(one, codes))


def soft(one: Sample, codes: Tensor, temperature: float) -> Tensor:
    """Soft VQ; queries and keys are told apart by their mask."""
    rows = torch.cat([one.k, one.q])[None, None]
    values = torch.cat([one.v, torch.zeros(len(one.q), DIM, dtype=one.v.dtype)])[None, None]
    mask = (torch.arange(rows.shape[2]) < len(one.k))[None]
    out = soft_vq_attention(rows, rows, values, codes, temperature, key_mask=mask)
    return out[0, 0, len(one.k) :]


def soft_error(one: Sample, codes: Tensor, temperature: float) -> float:
    """Soft VQ."""
    return one.error(soft(one, codes, temperature))


def wins(better: Runs, worse: Runs) -> bool:
    """Less error at every size, by more than three standard errors over the repetitions."""
    for ours, theirs in zip(better, worse, strict=True):
        apart = [b - a for a, b in zip(ours, theirs, strict=True)]
        if mean(apart) <= 3 * stdev(apart) / math.sqrt(len(apart)):
            return False
    return True


def verdict(clustered: Mapping[str, Runs], uniform: Mapping[str, Runs], gap: float) -> Verdict:
    """Holds if VQ wins on clusters, nobody elsewhere, and soft becomes hard.

    Fails if VQ does not win on clusters, holds partly if the rest is not so.
    On clustered keys only the sizes from one code per cluster on count.
    """
    many = slice(SIZES.index(CLUSTERS), None)
    if not wins(clustered["VQ"][many], clustered["FAVOR+"][many]):
        return Verdict.FAILS
    two = uniform["VQ"], uniform["FAVOR+"]
    somebody = wins(*two) or wins(*two[::-1])
    return Verdict.PARTLY if somebody or gap >= 1e-6 else Verdict.HOLDS


def measure(seed: int, data: Path | None) -> Finding:
    """Errors over size and over temperature, means over repetitions."""
    del data
    generator = torch.Generator().manual_seed(seed)
    runs: dict[str, dict[str, Runs]] = {
        kind: {m: [[] for _ in SIZES] for m in ("FAVOR+", "VQ", "soft")} for kind in "cu"
    }
    by_temperature = {kind: [0.0] * len(TEMPERATURES) for kind in "cu"}
    hard_level = dict.fromkeys("cu", 0.0)
    gap = 0.0
    for _ in range(REPEATS):
        for kind in "cu":
            one = sample(kind == "c", generator)
            for i, size in enumerate(SIZES):
                codes = codebook(one, size, generator)
                found = {
                    "FAVOR+": favor_error(one, size, generator),
                    "VQ": vq_error(one, codes),
                    "soft": soft_error(one, codes, SOFT),
                }
                for method, error in found.items():
                    runs[kind][method][i].append(error)
                if size == 64:
                    hard_level[kind] += found["VQ"] / REPEATS
                    for j, t in enumerate(TEMPERATURES):
                        by_temperature[kind][j] += soft_error(one, codes, t) / REPEATS
                    apart = soft(one, codes, COLD) - hard(one, codes)
                    gap = max(gap, float(apart.abs().max()))
    errors = {
        kind: {method: [mean(one) for one in sizes] for method, sizes in runs[kind].items()}
        for kind in "cu"
    }
    at = SIZES.index(64)
    numbers: dict[str, Number] = {}
    for kind, word in (("c", "clustered"), ("u", "uniform")):
        for method, name in (("FAVOR+", "FAVOR+"), ("VQ", "VQ"), ("soft", "soft VQ")):
            numbers[f"{word} keys, size 64: {name}"] = round(errors[kind][method][at], 3)
    numbers["soft minus hard at T = 1e-9"] = f"{gap:.0e}"
    also = wins(runs["u"]["VQ"], runs["u"]["FAVOR+"])
    judged = verdict(runs["c"], runs["u"], gap)
    figure = "".join(_sizes(errors[kind], kind) for kind in "cu")
    figure += _temperatures(by_temperature, hard_level)
    return Finding(numbers, figure, judged, *_comment(errors, also, gap), NAMES_ZH)


def _sizes(errors: Mapping[str, Sequence[float]], kind: str) -> str:
    title = {
        "c": (f"Keys around {CLUSTERS} centres", f"键聚在 {CLUSTERS} 个中心周围"),
        "u": ("Keys all over the sphere", "键均匀分布在球面上"),
    }[kind]
    names = {
        "FAVOR+": ("FAVOR+", "FAVOR+"),
        "VQ": ("VQ", "VQ"),
        "soft": (f"soft VQ, T = {SOFT:g}", f"软 VQ，T = {SOFT:g}"),
    }
    x = [math.log2(size) for size in SIZES]
    lines = [Series(name, x, errors[method], dots=True) for method, name in names.items()]
    return line_chart(
        lines,
        title=title,
        x_label=("log2 of features or codes", "特征数或码数的 log2"),
        y_label=("relative error of the output", "输出的相对误差"),
        reference=(("ignoring the queries", "无视查询"), 1.0),
    )


def _temperatures(soft: Mapping[str, Sequence[float]], hard: Mapping[str, float]) -> str:
    x = [math.log10(t) for t in TEMPERATURES]
    ends = [x[0], x[-1]]
    words = {"c": ("clustered", "成簇"), "u": ("uniform", "均匀")}
    lines = [
        Series((f"soft, {en}", f"软，{zh}"), x, soft[kind], dots=True)
        for kind, (en, zh) in words.items()
    ]
    lines += [
        Series((f"hard, {en}", f"硬，{zh}"), ends, [hard[kind]] * 2)
        for kind, (en, zh) in words.items()
    ]
    return line_chart(
        lines,
        title=("From soft to hard, 64 codes", "由软到硬，64 个码"),
        x_label=("log10 of the temperature", "温度的 log10"),
        y_label=("relative error of the output", "输出的相对误差"),
    )


def _comment(
    errors: Mapping[str, Mapping[str, Sequence[float]]], also: bool, gap: float
) -> tuple[str, str]:
    ratios = {
        kind: [a / b for a, b in zip(errors[kind]["FAVOR+"], errors[kind]["VQ"], strict=True)]
        for kind in "cu"
    }
    first = SIZES.index(CLUSTERS)
    low, high = min(ratios["c"][first:]), max(ratios["c"][first:])
    small, large = min(ratios["u"]), max(ratios["u"])
    best = errors["u"]["VQ"][-1]
    return (
        f"From one code per cluster on, FAVOR+ has {low:.1f} to {high:.1f} times the error of VQ "
        f"on clustered keys. On uniform keys it has {small:.1f} to {large:.1f} times the error of "
        f"VQ{', which is ahead there too' if also else ''}, and {SIZES[-1]} codes still leave "
        f"{best:.2f}. To win is to have less error at every size by three standard errors. At "
        f"T = 1e-9 soft and hard outputs differ by at most {gap:.0e}.",
        f"从每簇一个码起，成簇的键上 FAVOR+ 的误差是 VQ 的 {low:.1f} 到 {high:.1f} 倍。"
        f"均匀的键上是 {small:.1f} 到 {large:.1f} 倍{'，VQ 同样领先' if also else ''}，"
        f"但 {SIZES[-1]} 个码仍留下 {best:.2f} 的误差。每个大小上误差都低三个标准误才算胜出。"
        f"T = 1e-9 时软、硬输出至多相差 {gap:.0e}。",
    )


EXPERIMENT = Experiment(
    id="S30-soft-vq",
    system="S30",
    title_en="Random features, codes and soft codes against exact attention",
    title_zh="随机特征、码与软码：谁更接近精确注意力",
    claim_en=(
        "At equal size, quantised keys are closer to exact attention than random features where "
        "keys form clusters, and neither wins where they do not; soft quantisation becomes hard as "
        "the temperature goes to 0."
    ),
    claim_zh=(
        "大小相同时，键成簇则量化的键比随机特征更接近精确注意力，键不成簇则谁也不占优；"
        "温度趋于 0 时软量化变成硬量化。"
    ),
    published="softmax(−|k − w|²/2) is soft where VQ is one-hot; no numbers",
    published_zh="softmax(−|k − w|²/2) 是软的，VQ 是 one-hot；文中没有数字",
    measure=measure,
)
