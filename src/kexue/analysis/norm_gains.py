"""模型优化漫谈：BERT的初始标准差为什么是0.02？ — the gains of the norms, and the extra Dense (S06).

Logits h·E^T of a normalised state h with gain γ and tied embeddings E of std σ start with

    std = σ · sqrt(d) · rms(γ)                                                                  (1)

which for BERT's 0.0176 is 0.49: too flat to predict with. Training raises it where that is cheap,
in γ of the last norm before E. The extra Dense + LayerNorm of BERT's MLM head takes this growth
upon itself, so that the encoder's last layer keeps the scale of its peers.

The gain is measured, not read: a norm that is fed a pattern x of mean 0 and mean square 1 and then
−x gives γ·x + β and −γ·x + β, whether it stores γ or, as Gemma does, γ − 1.

Cost: two vectors through every norm.   Source: article 8747.
"""

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.analysis.transformer_blocks import is_norm

__all__ = ["GainReport", "NormGain", "gain_of", "ln_gain_report", "tied_logit_std"]


@dataclass(frozen=True)
class NormGain:
    """The gain of one norm: root mean square, smallest and largest element, rms of its bias."""

    name: str
    rms: float
    low: float
    high: float
    bias: float


@dataclass(frozen=True)
class GainReport:
    """The gains of all norms, in the order in which the model holds them.

    Args:
        norms: one entry per norm with a gain.
        logit_std: (1) with the last norm, for a model with output embeddings; else None.
    """

    norms: tuple[NormGain, ...]
    logit_std: float | None

    @property
    def largest(self) -> NormGain:
        """The norm with the largest gain."""
        return max(self.norms, key=lambda one: one.rms)

    @property
    def last_is_largest(self) -> bool:
        """Whether the last norm, before the output embeddings, has taken up the growth."""
        return self.norms[-1] is self.largest

    def __str__(self) -> str:
        return "\n".join(
            f"{one.name}: rms {one.rms:.4f} [{one.low:.3f}, {one.high:.3f}]" for one in self.norms
        )


def ln_gain_report(model: nn.Module) -> GainReport:
    """The gains of all norms of a model: LayerNorm, RMSNorm and their kin.

    Raises:
        ValueError: there is no norm with a gain.

    Example:
        >>> layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        >>> [round(one.rms, 9) for one in ln_gain_report(nn.TransformerEncoder(layer, 1)).norms]
        [1.0, 1.0]
    """
    found, last = [], None
    for name, module in model.named_modules():
        if is_norm(name, module) and _width(module):
            gain, bias = gain_of(module)
            bounds = float(gain.min()), float(gain.max())
            found.append(NormGain(name, _rms(gain), *bounds, _rms(bias)))
            last = gain
    if last is None:
        raise ValueError(f"{type(model).__name__} has no norm with a gain")
    table = getattr(model, "get_output_embeddings", lambda: None)()
    std = None if table is None else tied_logit_std(table.weight, last)
    return GainReport(tuple(found), std)


def tied_logit_std(
    embedding: Float[Tensor, "V D"], gain: Float[Tensor, " D"] | None = None
) -> float:
    """The std of the logits of a normalised state: (1); exact in expectation where bias is 0.

    Args:
        embedding: rows of the output embedding.
        gain: of the norm before it; ones when None.

    Example:
        >>> round(tied_logit_std(torch.full((10, 64), 0.02)), 6)
        0.16
    """
    E = embedding.detach().to(torch.promote_types(embedding.dtype, torch.float32))
    g = torch.ones_like(E[0]) if gain is None else gain.detach().to(E.dtype)
    return math.sqrt(E.shape[1]) * _rms(E) * _rms(g)  # (1)


@torch.no_grad()
def gain_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """γ and β of a norm, in float64, by what it does to a pattern and to its negative."""
    x = _pattern(_width(norm)).to(next(norm.parameters()).device)
    wide = copy.deepcopy(norm).double()
    large = 1e6 * x[None]  # so that the norm's own epsilon does not count
    plus, minus = wide.forward(large)[0], wide.forward(-large)[0]
    return ((plus - minus) / (2 * x)).double(), ((plus + minus) / 2).double()


def _pattern(size: int) -> Tensor:
    """A vector without zeros, of mean 0 and mean square 1."""
    x = torch.ones(size, dtype=torch.float64)
    x[1::2] = -1
    if size % 2:
        x[-3:] = torch.tensor([math.sqrt(2), -math.sqrt(0.5), -math.sqrt(0.5)])
    return x


def _width(norm: nn.Module) -> int:
    weight = getattr(norm, "weight", None)
    size = weight.numel() if isinstance(weight, Tensor) and weight.dim() == 1 else 0
    return size if size > 1 else 0


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
