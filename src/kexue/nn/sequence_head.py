r"""bert4keras在手，baseline我有：CLUE基准代码 — heads for classes and for multiple choice (S01)

Turn the hidden states of a sequence into one vector, and the vector into scores.

    "first"   v = x_1, the hidden state of the first visible token, [CLS]                      (1)
    "avg"     v = mean of x_l over the visible tokens                                          (2)
    "max"     v = maximum of x_l over the visible tokens, feature by feature                   (3)
    classes   scores = W v + b                                                                 (4)
    choices   score = <w, v> per row; the rows of one question side by side, softmax over them  (5)

The author's recipe takes the last hidden state as it is: no pooler, no tanh, no dropout before the
head; kernels from a truncated normal of sd 0.02. (5) has no bias, because the softmax cancels it.
A row without visible token pools to zeros.

Symbols: hidden x, pooled v.   Axes: B or R rows, L tokens, D hidden size, C classes.
Cost: one pass over the hidden states ("first" reads one token only); sums in float32 or better.
Source: bojone/CLUE-bert4keras, article 8739. See also: BertForSequenceClassification, with pooler.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["ChoiceHead", "Pooling", "SequenceHead", "pool"]

Pooling = Literal["first", "avg", "max"]


def pool(
    hidden: Float[Tensor, "B L D"],
    mask: Bool[Tensor, "B L"] | None = None,
    pooling: Pooling = "first",
) -> Float[Tensor, "B D"]:
    """One vector per sequence: (1), (2) or (3).

    Args:
        hidden: encoder output.
        mask: True = visible; None: all are. Padding may hold anything, NaN too, on either side.
        pooling: "first" is the author's choice for every CLUE task.

    Returns:
        The vectors, in the dtype of `hidden`; zeros for a row without visible token.

    Raises:
        ValueError: unknown pooling, or no tokens at all.
        TypeError: the mask is not boolean.

    Example:
        >>> import torch
        >>> hidden = torch.tensor([[[1.0, 4.0], [3.0, 2.0], [9.0, 9.0]]])
        >>> mask = torch.tensor([[True, True, False]])
        >>> pool(hidden, mask, "avg"), pool(hidden, mask, "max")
        (tensor([[2., 3.]]), tensor([[3., 4.]]))
    """
    _check_pooling(pooling)
    if hidden.shape[1] == 0:
        raise ValueError(f"hidden has no tokens to pool, its shape is {tuple(hidden.shape)}")
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    elif mask.dtype != torch.bool:
        raise TypeError(
            f"mask must be bool with True = visible, got {mask.dtype}: pass attention_mask.bool()"
        )
    if pooling == "first":
        first = mask.to(torch.uint8).argmax(dim=1)  # (B,) the first True, also with left padding
        rows = torch.arange(len(hidden), device=hidden.device)
        pooled = hidden[rows, first]  # (1)
    elif pooling == "avg":
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.masked_fill(~mask[:, :, None], 0).sum(dim=1, dtype=wide)  # (B, D)
        pooled = (total / mask.sum(dim=1, keepdim=True).clamp(min=1)).to(hidden.dtype)  # (2)
    else:
        pooled = hidden.masked_fill(~mask[:, :, None], -torch.inf).amax(dim=1)  # (3)
    return pooled.masked_fill(~mask.any(dim=1, keepdim=True), 0)  # (B, D)


class SequenceHead(nn.Module):
    """Scores of C classes for each sequence: (4) on the pooled hidden states.

    Args:
        hidden_size: D of the encoder.
        num_classes: C.
        pooling: see `pool`.

    Example:
        >>> import torch
        >>> head = SequenceHead(hidden_size=16, num_classes=3, pooling="avg")
        >>> head(torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)).shape
        torch.Size([2, 3])
    """

    def __init__(self, hidden_size: int, num_classes: int, pooling: Pooling = "first") -> None:
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("num_classes", num_classes)):
            if size <= 0:
                raise ValueError(f"{name} must be positive, got {size}")
        _check_pooling(pooling)
        self.pooling = pooling
        self.classifier = nn.Linear(hidden_size, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kernel: truncated normal of sd 0.02, cut at two sd; bias: zero."""
        nn.init.trunc_normal_(self.classifier.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B C"]:
        scores: Tensor = self.classifier(pool(hidden, mask, self.pooling))  # (B, C)  # (4)
        return scores

    def extra_repr(self) -> str:
        return f"pooling={self.pooling!r}"


class ChoiceHead(nn.Module):
    """One score per row, the rows of a question side by side (c3, chid): (5).

    Row r is choice r mod n of question r div n; train with `F.cross_entropy(scores, answer)`.

    Args:
        hidden_size: D of the encoder.
        pooling: see `pool`.

    Example:
        >>> import torch
        >>> head = ChoiceHead(hidden_size=16)
        >>> rows = torch.randn(8, 5, 16)  # 2 questions of 4 choices
        >>> head(rows, torch.ones(8, 5, dtype=torch.bool), num_choices=4).shape
        torch.Size([2, 4])
    """

    def __init__(self, hidden_size: int, pooling: Pooling = "first") -> None:
        super().__init__()
        if hidden_size <= 0:
            raise ValueError(f"hidden_size must be positive, got {hidden_size}")
        _check_pooling(pooling)
        self.pooling = pooling
        self.scorer = nn.Linear(hidden_size, 1, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kernel: truncated normal of sd 0.02, cut at two sd."""
        nn.init.trunc_normal_(self.scorer.weight, std=0.02, a=-0.04, b=0.04)

    def forward(
        self,
        hidden: Float[Tensor, "R L D"],
        mask: Bool[Tensor, "R L"] | None,
        num_choices: int,
    ) -> Float[Tensor, "Q n"]:
        """Scores of the choices of each question.

        Raises:
            ValueError: the rows do not divide into questions of `num_choices`.
        """
        if num_choices <= 0 or len(hidden) % num_choices:
            raise ValueError(
                f"{len(hidden)} rows do not divide into questions of {num_choices} choices: "
                "pad every question to the same number"
            )
        scores: Tensor = self.scorer(pool(hidden, mask, self.pooling))  # (R, 1)  # (5)
        return scores.view(-1, num_choices)  # (R / n, n)

    def extra_repr(self) -> str:
        return f"pooling={self.pooling!r}"


def _check_pooling(pooling: str) -> None:
    if pooling not in ("first", "avg", "max"):
        raise ValueError(f'pooling must be "first", "avg" or "max", got {pooling!r}')
