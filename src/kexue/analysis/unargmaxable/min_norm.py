r"""The article's way: the mix of the other rows that comes nearest to a row, by Frank and Wolfe.

    min over α of |Σ α_i v_i − v_k|,    i* = argmin_i v_i · s,  s = Σ α_i v_i − v_k             (1)

A minimum above 0 gives a direction, −s, in which the class wins where there is no bias. But the
steps converge slowly near a face, where a distance of 1e-4 proves nothing, and the article drops
the bias: for a minimum of 0 the sign of Σ α_i b_i − b_k decides. So this is a screen, whose results
count only as far as they prove themselves; the cascade does not use it.

Source: article 9046; steps: Frank and Wolfe 1956, with line search.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kexue.analysis.unargmaxable.whitening import Whitened

__all__ = ["shortest_mix"]


def shortest_mix(
    white: Whitened, index: int, steps: int = 2000, target: float = 1e-9
) -> tuple[Float[Tensor, " r"], Float[Tensor, " c"]]:
    """A point at which the class should win, and the mix, after (1).

    Args:
        white: the layer.
        index: k.
        steps: at most.
        target: a distance that ends the search.
    """
    away = white.rows - white.rows[index]
    allowed = (
        torch.ones_like(white.offsets)
        .bool()
        .index_fill(0, torch.tensor([index], device=away.device), False)
    )
    mix = allowed.double() / allowed.sum()
    short = mix @ away
    for _ in range(steps):
        ahead = torch.where(allowed, away @ short, torch.inf)
        best = int(ahead.argmin())
        gap = float(short @ short - ahead[best])
        if float(ahead[best]) > 0 or float(short.norm()) < target or gap <= 0:
            break
        change = away[best] - short
        size = min(1.0, gap / float(change @ change))
        mix = mix * (1 - size)
        mix[best] += size
        short = short + size * change  # (1)
    gaps = white.offsets - white.offsets[index]
    ahead = away @ short
    wins = allowed & (ahead > 0)
    needed = torch.where(wins, gaps / ahead.clamp_min(1e-300), 0.0).max()
    return -short * 2 * needed.clamp_min(0.5), mix
