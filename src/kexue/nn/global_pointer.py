r"""GlobalPointer：用统一的方式处理嵌套和非嵌套NER — span scores, nested or not (S17, S01)

Score every span of a sentence at once, one L × L table per type: nested entities cost no more.

For token m as start and n as end, and type h:

    [q_h,m ; k_h,m] = W_h x_m + b_h                                                            (1)
    s[h, m, n] = <R_m q_h,m , R_n k_h,n> / sqrt(d)                                             (2)
    s[h, m, n] = −inf   where m or n is padding, or n < m (upper triangle)                     (3)

R is the rotary embedding (`rotary.py`): without it the model joins the start of one entity with
the end of another. A span is predicted where s > 0; train with `losses.multilabel`.

`SpanPointer` is the same with one type and no bias, for reading comprehension: the answer is one
cell, so its loss is a softmax over all visible cells of the table,

    loss = logsumexp_{m<=n} s[m, n] − s[target]                                                (4)

and its decoder takes the best cell off row 0 and column 0, where [CLS] says "no answer here".

Symbols: hidden x, query q, key k, head_size d.   Axes: B batch, H types, L tokens, D hidden size.
Cost: B H L² scores, one copy; masking is done in place on the fresh product.
Source: arXiv 2208.03054; articles 8373, 8739. The article writes no 1/sqrt(d); its code has it.
We write −inf where the author writes −1e12, which overflows float16 and makes losses look huge, and
start from the CLUE recipe's truncated normal of sd 0.02 where his NER script has LeCun's.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.nn.rotary import apply_rotary

__all__ = ["GlobalPointer", "SpanPointer", "best_span", "span_cross_entropy", "span_scores"]


def span_scores(
    query: Float[Tensor, "B H L d"],
    key: Float[Tensor, "B H L d"],
    mask: Bool[Tensor, "B L"] | None = None,
    *,
    rope: bool = True,
    upper_triangular: bool = True,
    positions: Num[Tensor, " L"] | None = None,
) -> Float[Tensor, "B H L L"]:
    """Score of every (start, end) pair: (2) and (3).

    Args:
        query: one vector per start.
        key: one vector per end.
        mask: True = visible; a pair needs both its tokens visible. None: all are.
        rope: turn queries and keys by their positions.
        upper_triangular: forbid ends before starts.
        positions: for the rotary embedding; default 0, 1, …, L − 1.

    Returns:
        The scores, −inf where forbidden.

    Raises:
        ValueError: odd d with rope.
        TypeError: the mask is not boolean.

    Example:
        >>> import torch
        >>> q = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
        >>> span_scores(q, q, rope=False)
        tensor([[[[0.7071, 0.0000],
                  [  -inf, 0.7071]]]])
    """
    _check_mask(mask)
    length, head_size = query.shape[-2:]
    if rope:
        query, key = apply_rotary(query, positions), apply_rotary(key, positions)
    scores = (query / math.sqrt(head_size)) @ key.transpose(-1, -2)  # (B, H, L, L)  # (2)
    visible: Tensor | None = None
    if upper_triangular:
        visible = torch.ones(length, length, dtype=torch.bool, device=query.device).triu()  # (L, L)
    if mask is not None:
        both = (mask[:, :, None] & mask[:, None, :]).unsqueeze(1)  # (B, 1, L, L)
        visible = both if visible is None else both & visible
    if visible is None:
        return scores
    return scores.masked_fill_(~visible, -torch.inf)  # (3), no second copy: the product is ours


class GlobalPointer(nn.Module):
    """Span scores for every type, the head of nested and flat entity recognition.

    The projection holds, type after type, the rows of W_h for q and then those for k, so
    `projection.weight.unflatten(0, (num_types, 2, head_size))` are the kernels of (1).

    Args:
        hidden_size: D of the encoder.
        num_types: H, one table of scores each.
        head_size: d; 64 in all of the author's scripts.
        rope: on for spans; off for links between spans, which have no order.
        upper_triangular: on where the end never precedes the start; off for relation links.
        bias: b_h of (1), zero at the start; CLUENER's recipe has none.

    Raises:
        ValueError: a size is not positive, or head_size is odd with rope.

    Example:
        >>> import torch
        >>> head = GlobalPointer(hidden_size=32, num_types=10)
        >>> mask = torch.tensor([[True, True, True, False]])
        >>> scores = head(torch.randn(1, 4, 32), mask)
        >>> scores.shape, int(scores.isfinite().sum())
        (torch.Size([1, 10, 4, 4]), 60)
    """

    def __init__(
        self,
        hidden_size: int,
        num_types: int,
        head_size: int = 64,
        rope: bool = True,
        upper_triangular: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        for name, size in (
            ("hidden_size", hidden_size),
            ("num_types", num_types),
            ("head_size", head_size),
        ):
            if size <= 0:
                raise ValueError(f"{name} must be positive, got {size}")
        if rope and head_size % 2:
            raise ValueError(f"head_size must be even with rope (it turns pairs), got {head_size}")
        self.hidden_size, self.num_types, self.head_size = hidden_size, num_types, head_size
        self.rope, self.upper_triangular = rope, upper_triangular
        self.projection = nn.Linear(hidden_size, num_types * 2 * head_size, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kernel: truncated normal of sd 0.02, the CLUE recipe; bias: zero."""
        nn.init.trunc_normal_(self.projection.weight, std=0.02, a=-0.04, b=0.04)
        if self.projection.bias is not None:
            nn.init.zeros_(self.projection.bias)

    def forward(
        self, hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B H L L"]:
        projected = self.projection(hidden)  # (B, L, H·2·d)  # (1)
        projected = projected.unflatten(-1, (self.num_types, 2, self.head_size))  # (B, L, H, 2, d)
        query, key = projected.permute(3, 0, 2, 1, 4).unbind(0)  # (B, H, L, d) each
        return span_scores(query, key, mask, rope=self.rope, upper_triangular=self.upper_triangular)

    def extra_repr(self) -> str:
        return f"num_types={self.num_types}, head_size={self.head_size}, rope={self.rope}"


class SpanPointer(nn.Module):
    """One table of span scores, for reading comprehension (cmrc2018).

    Args:
        hidden_size: D of the encoder.
        head_size: d; 64, the head size of BERT base.

    Example:
        >>> import torch
        >>> pointer = SpanPointer(hidden_size=32)
        >>> scores = pointer(torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.bool))
        >>> loss = span_cross_entropy(scores, torch.tensor([[1, 3], [0, 0]]))
        >>> start, end, logit = best_span(scores)
        >>> bool((start >= 1).all() and (end >= start).all())
        True
    """

    def __init__(self, hidden_size: int, head_size: int = 64) -> None:
        super().__init__()
        self.table = GlobalPointer(hidden_size, 1, head_size, bias=False)

    def forward(
        self, hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L L"]:
        """Scores, −inf unless start <= end and both are visible.

        Args:
            hidden: encoder output.
            mask: True for [CLS] and the context; False for question, separators and padding.
        """
        scores: Tensor = self.table(hidden, mask)  # (B, 1, L, L)
        return scores.squeeze(1)


def span_cross_entropy(
    scores: Float[Tensor, "B L L"],
    target: Int[Tensor, "B 2"],
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Float[Tensor, "*reduced"]:
    """Cross-entropy of the right cell among all cells of the table: (4), in float32 or better.

    Args:
        scores: −inf where a cell is forbidden.
        target: start and end token of each answer, both inclusive; (0, 0), [CLS], where the window
            does not hold the whole answer.
        reduction: "mean" or "sum" over the batch, or "none" for one value per row.

    Raises:
        ValueError: a target lies outside the table or on a forbidden cell; the row is named.

    Example:
        >>> import torch
        >>> hidden = -torch.inf
        >>> table = torch.tensor([[[1, 2, -1], [hidden, 0.5, 0], [hidden, hidden, -2]]])
        >>> round(span_cross_entropy(table, torch.tensor([[0, 1]])).item(), 6)
        0.584697
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    length = scores.shape[-1]
    target = target.long()
    cells = scores.flatten(1)  # (B, L·L)
    if not torch.compiler.is_compiling():
        _check_target(cells, target, length)
    answer = target[:, 0] * length + target[:, 1]  # (B,)
    cells = cells.to(torch.promote_types(cells.dtype, torch.float32))
    return F.cross_entropy(cells, answer, reduction=reduction)  # (4)


def best_span(
    scores: Float[Tensor, "B L L"],
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The best cell off row 0 and column 0, those of [CLS].

    Among several windows of one question, the answer is the window with the largest logit.

    Returns:
        Start and end token (inclusive) and the raw logit of each row; (0, 0, −inf), which means
        "no answer", where no context cell is visible. The first of equal cells wins.

    Example:
        >>> import torch
        >>> hidden = -torch.inf
        >>> best_span(torch.tensor([[[9, 9, 9], [hidden, 0.5, 0.25], [hidden, hidden, -2]]]))
        (tensor([1]), tensor([1]), tensor([0.5000]))
    """
    batch, length, _ = scores.shape
    if length < 2:
        nowhere = torch.zeros(batch, dtype=torch.long, device=scores.device)
        return nowhere, nowhere.clone(), scores.new_full((batch,), -torch.inf)
    logit, cell = scores[:, 1:, 1:].flatten(1).max(dim=1)  # (B,) each
    found = ~logit.isneginf()
    start = torch.where(found, cell // (length - 1) + 1, 0)
    end = torch.where(found, cell % (length - 1) + 1, 0)
    return start, end, logit


def _check_mask(mask: Tensor | None) -> None:
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(
            f"mask must be bool with True = visible, got {mask.dtype}: pass attention_mask.bool()"
        )


def _check_target(cells: Tensor, target: Tensor, length: int) -> None:
    outside = ((target < 0) | (target >= length)).any(dim=1)  # (B,)
    cell = (target[:, 0] * length + target[:, 1]).masked_fill(outside, 0)
    masked = cells.gather(1, cell[:, None]).squeeze(1).isneginf()
    if (outside | masked).any():
        row = int((outside | masked).nonzero()[0])
        start, end = target[row].tolist()
        why = f"lies outside the table of {length} tokens" if outside[row] else "is a masked cell"
        raise ValueError(
            f"row {row}: target ({start}, {end}) {why}; "
            "use (0, 0), [CLS], where a window does not hold the whole answer"
        )
