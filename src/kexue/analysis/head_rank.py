r"""突破瓶颈，打造更强大的Transformer — which heads press against their key size (S25)

What the attention heads of a model use of the rank that their key size gives them.

For the attention weights P of one head and text, with the singular values σ of its centred
logarithm (`nn.head_rank`) and p_i = σ_i / sum σ:

    effective rank    exp(−sum p_i log p_i)                                                     (1)
    size for 99 %     least r with  sum_{i≤r} σ_i² ≥ 0.99 sum σ_i²                              (2)

A head whose (1) is near the key size for text after text has no room left: there a larger key size
or talking heads can pay. Rank is measured on log P; P itself has nearly full rank at any key size.

Padding is left out. A causal head has no finite logarithm above the diagonal, so the block of rows
n//2 … n − 1 and keys 0 … n//2 is measured, which all see each other; its rank is at most that of
the whole. Weights of 0 elsewhere (underflow, a sliding window) count as the least positive number.

Symbols: P attention, σ singular values.   Axes: B texts, H heads, n tokens of a text.
Cost: one forward pass, B H singular value decompositions per layer.
Source: article 7325, arXiv 2002.07028; (1) Roy and Vetterli, 2007. The report is ours.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.nn.head_rank import centred_log_attention

__all__ = ["HeadRank", "effective_rank", "head_rank_report"]

SHARE = 0.99


@dataclass(frozen=True)
class HeadRank:
    """One head, averaged over the texts of the batch.

    Attributes:
        layer: name of the module, or number of the layer in a Hugging Face model.
        head: number of the head.
        effective: (1), mean over texts.
        size_for_99: (2), mean over texts.
        full: the largest rank that texts of this length allow, mean over texts.
        texts: texts that were long enough to be measured.
    """

    layer: str
    head: int
    effective: float
    size_for_99: float
    full: float
    texts: int


def effective_rank(sigma: Float[Tensor, "*batch s"]) -> Float[Tensor, "*batch"]:
    """(1) of singular values; 0 where all are 0.

    Example:
        >>> effective_rank(torch.tensor([[2.0, 2.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
        tensor([2., 1., 0.])
    """
    total = sigma.sum(dim=-1, keepdim=True)
    p = sigma / total.where(total > 0, 1.0)
    entropy: Tensor = torch.special.entr(p).sum(dim=-1)
    return entropy.exp() * (total.squeeze(-1) > 0)  # (1)


def head_rank_report(model: nn.Module, batch: Mapping[str, Tensor]) -> list[HeadRank]:
    """The ranks of every attention head of a model on a batch.

    Args:
        model: a Hugging Face model that gives attentions, or any module that holds layers with
            `attention_weights` (`WideKeyAttention`, `TalkingHeadsAttention`). It is run in
            evaluation mode without gradients and left as it was.
        batch: keyword arguments of the model; its `attention_mask`, where there is one, says what
            is padding.

    Raises:
        ValueError: no layer gives attention weights, or no text has three tokens.

    Example:
        >>> from kexue.nn.wide_key import WideKeyAttention
        >>> layer = WideKeyAttention(16, 4, key_size=2)
        >>> report = head_rank_report(layer, {"x": torch.randn(2, 12, 16)})
        >>> len(report), all(head.effective <= 2 for head in report)
        (4, True)
    """
    mask = batch.get("attention_mask")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if hasattr(model, "config"):
                found = _attentions(model, batch)
            else:
                found = _own_attentions(model, batch)
    finally:
        model.train(training)
    if not found:
        raise ValueError(
            "no attention weights found: give a Hugging Face model with attentions, or a module "
            "that holds WideKeyAttention or TalkingHeadsAttention"
        )
    return [head for name, maps in found for head in _measured(name, maps, mask)]


def _attentions(model: Any, batch: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Of a Hugging Face model, with the implementation that writes them out."""
    before = getattr(model.config, "_attn_implementation", None)
    if before not in (None, "eager"):
        model.set_attn_implementation("eager")
    try:
        output = model(**batch, output_attentions=True, return_dict=True)
    finally:
        if before not in (None, "eager"):
            model.set_attn_implementation(before)
    maps = getattr(output, "attentions", None) or getattr(output, "encoder_attentions", None) or ()
    return [(str(number), one) for number, one in enumerate(maps) if one is not None]


def _own_attentions(model: nn.Module, batch: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Of every layer that has `attention_weights`, from what the layer itself is given."""
    found: list[tuple[str, Tensor]] = []
    with _hooks(model, lambda name, maps: found.append((name, maps))):
        model(**batch)
    return found


@contextmanager
def _hooks(model: nn.Module, keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Callable[[Any, Any, Any], None]:
        def record(layer: Any, args: Any, kwargs: Any) -> None:
            keep(name, layer.attention_weights(*args, **kwargs))

        return record

    handles = [
        layer.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, layer in model.named_modules()
        if callable(getattr(layer, "attention_weights", None))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _measured(name: str, maps: Float[Tensor, "B H n m"], mask: Tensor | None) -> list[HeadRank]:
    """The heads of one layer."""
    square = maps.shape[2] == maps.shape[3]
    mask = None if mask is None or mask.shape != (maps.shape[0], maps.shape[3]) else mask.bool()
    effective, short, full = [], [], []
    for number, text in enumerate(maps):
        kept = slice(None) if mask is None else mask[number]
        P = _all_visible(text[:, kept][..., kept] if square else text[..., kept])
        if P.shape[1] < 1 or P.shape[2] < 2:
            continue
        tiny = torch.finfo(P.dtype).tiny
        sigma = torch.linalg.svdvals(centred_log_attention(P.clamp(min=tiny)))  # (H, s)
        energy = sigma.square().cumsum(dim=-1)
        cut = (energy < SHARE * energy[:, -1:]).sum(dim=-1) + (energy[:, -1] > 0)  # (2)
        effective.append(effective_rank(sigma))
        short.append(cut.double())
        full.append(min(P.shape[1], P.shape[2] - 1))
    if not full:
        raise ValueError("no text has enough tokens: give texts of three tokens or more")
    texts = len(full)
    ranks, sizes = (torch.stack(one).mean(dim=0) for one in (effective, short))
    return [
        HeadRank(name, head, float(ranks[head]), float(sizes[head]), sum(full) / texts, texts)
        for head in range(maps.shape[1])
    ]


def _all_visible(P: Float[Tensor, "H n m"]) -> Float[Tensor, "H rows keys"]:
    """The map, or of a causal one the block whose rows see all of its keys."""
    n, m = P.shape[1:]
    above = torch.ones(n, m, dtype=torch.bool, device=P.device).triu(1)
    if n != m or n == 1 or bool((P[:, above] != 0).any()):
        return P
    middle = n // 2
    return P[:, middle:, : middle + 1]
