"""Sampling at one perplexity: a logits processor for Hugging Face's `generate` (S08).

Every step gets the temperature at which the next token's distribution has the perplexity asked for,
by `kexue.probability.entropy`. In place of a fixed temperature with top-k or top-p.
"""

from typing import Any

import torch
from torch import Tensor

from kexue.probability.entropy import entropy_normalize

__all__ = ["EntropyLogitsProcessor"]


class EntropyLogitsProcessor:
    """Makes every next-token distribution have one perplexity; the order of the tokens stays.

    Give it to `generate(..., do_sample=True, logits_processor=[EntropyLogitsProcessor(8.0)])`. The
    warpers of `generate` act too: set top_k=0, top_p=1.0 and temperature=1.0, or they change the
    perplexity again (top_k is 50 unless set). Tokens that other processors have forbidden (−inf)
    stay forbidden. Where fewer tokens are left than the perplexity, they become equally likely.

    It needs nothing of transformers, hence no subclass: `generate` calls it like its own.

    Args:
        perplexity: of every step, at least 1. 1 is greedy search but for ties.
        max_gamma: the power is at most this; 1 only flattens. None: no limit.
        min_gamma: and at least this; 1 only sharpens, so that a step which is sure stays sure.

    Raises:
        ValueError: a perplexity below 1, or limits that are not 0 <= min_gamma <= max_gamma.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[4.0, 2.0, 1.0, -torch.inf]])
        >>> q = EntropyLogitsProcessor(2.0)(torch.tensor([[0]]), scores).softmax(-1)
        >>> round(float(torch.special.entr(q).sum().exp()), 4), float(q[0, 3])
        (2.0, 0.0)
    """

    supports_continuous_batching = True

    def __init__(
        self,
        perplexity: float,
        *,
        min_gamma: float | None = None,
        max_gamma: float | None = None,
    ) -> None:
        if not 1 <= perplexity < torch.inf:
            raise ValueError(f"perplexity must be at least 1, got {perplexity}")
        low, high = min_gamma or 0.0, torch.inf if max_gamma is None else max_gamma
        if not (0 <= low <= high and low < torch.inf):
            raise ValueError(f"need 0 <= min_gamma <= max_gamma, got {min_gamma} and {max_gamma}")
        self.perplexity, self.min_gamma, self.max_gamma = perplexity, low, high

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        """Log probabilities (B, V) that have the perplexity."""
        q, gamma = entropy_normalize(
            logits=scores, perplexity=self.perplexity, on_unreachable="clamp", return_gamma=True
        )
        bounded = gamma.clamp(self.min_gamma, self.max_gamma).unsqueeze(-1)
        sharp, hidden = bounded.isinf(), scores == -torch.inf
        x = (scores.to(q.dtype) - scores.amax(-1, keepdim=True)).masked_fill(hidden, 0)
        powered = (torch.where(sharp, 1, bounded) * x).masked_fill(hidden, -torch.inf)
        changed = torch.where(sharp, q.log(), powered.log_softmax(-1))  # unlikely is not forbidden
        return changed.masked_fill(hidden, -torch.inf).to(scores.dtype)
