r"""Scheduled sampling in two parallel passes — the decoder reads its own predictions (S31)

In update i every target token among the inputs stays gold with probability eps_i and otherwise
becomes what the model itself says at that place. With x the gold inputs:

    z    = f(x)                                              pass 1, teacher forcing             (1)
    x'_t = x_t  with probability eps_i,  else a word from z_{t−1}                                (2)
    loss = cross-entropy of y given f(x')                    pass 2, labels stay gold            (3)

eps_i falls with the updates: `decay` has the three schedules.

The word of (2): "argmax"; "sample" from softmax(z / temperature); or no word but a mean embedding
sum_v w_v E_v, w = softmax(z / temperature) for "softmax", with Gumbel noise on z for "gumbel",
over the `top_k` best ids. Only the last two let a gradient through pass 1, if asked to.

A predicted word at t comes from the gold prefix up to t − 1, not from predicted ones: that is the
price of two passes instead of L. Causal: x'_t depends on no target from t on.

Symbols: z logits, x decoder inputs, y labels, eps gold_rate, i updates.
Axes: B rows, L tokens, V ids, K kept ids, D width.   Cost: a second forward pass; (2) is O(L V).
Sources: arXiv 1506.03099; in two passes arXiv 1906.07651; article 7259.
What we do differently: (2) never draws at the first input, the prompt, padding or protected ids;
draws follow the place of a token (`draws`), not the width of its batch.
"""

from collections.abc import Callable, Iterable
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from kexue.losses.exposure.draws import BITS, KeyStream, numbers, row_keys, threshold
from kexue.losses.exposure.places import (
    LabelsOf,
    check_aligned,
    is_target_input,
    next_labels,
    unprotected,
)

__all__ = [
    "Mix",
    "ParallelScheduledSampling",
    "sampled_ids",
]

Mix = Literal["argmax", "sample", "softmax", "gumbel"]
GOLD, WORD = 0, 1


def sampled_ids(
    logits: Float[Tensor, "B L V"], draw: Int[Tensor, "B L"], temperature: float = 1.0
) -> Int[Tensor, "B L"]:
    """One id per place from softmax(logits / temperature), by bisection of its cumulative sum.

    Args:
        logits: −inf where an id must not come.
        draw: whole numbers, uniform on 0 … 2^31 − 1.
        temperature: below 1 is nearer to argmax.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    total = (logits.to(wide) / temperature).softmax(-1).cumsum(-1)  # (B, L, V)
    end = total[..., -1:]
    level = (draw.to(wide) / 2**BITS)[..., None] * end  # (B, L, 1)
    level = torch.minimum(level, end.nextafter(torch.zeros_like(end)))  # below the end for sure
    return torch.searchsorted(total, level, right=True).squeeze(-1)


class ParallelScheduledSampling(nn.Module):
    """Mixes gold inputs with the model's own predictions for a second pass: (2).

        logits = model(inputs)                         # under torch.no_grad() as a rule
        loss = loss_of(model(sampling(inputs, labels, logits)), labels)
        ...
        optimizer.step(); sampling.step()

    Args:
        schedule: gold rate as a function of the number of updates: `LinearDecay`,
            `ExponentialDecay`, `InverseSigmoidDecay`, any function, or a constant.
        mix: "argmax" or "sample" give ids, "softmax" or "gumbel" embeddings.
        temperature: divides the logits, for all but "argmax".
        top_k: how many ids a mean embedding mixes; None for all. Not for ids.
        through_first_pass: lets gradients of "softmax" and "gumbel" flow into the first pass.
        protect: ids that stay as they are; None among them is skipped.
        generator: where the keys of the draws come from; None for torch's default one.
        seed: instead of a generator; then `state_dict` holds the place in the stream.
        rank: see `KeyStream`; every process draws its own numbers.
        ignore_index: marks positions without a target.

    Raises:
        ValueError: an unknown mix; a temperature or `top_k` that is not positive; `top_k` or
            `through_first_pass` with ids; a gold rate outside [0, 1].

    Example:
        >>> sampling = ParallelScheduledSampling(0.0)
        >>> inputs, labels = torch.tensor([[0, 7, 8]]), torch.tensor([[7, 8, 9]])
        >>> logits = torch.nn.functional.one_hot(torch.tensor([[5, 6, 4]]), 10).float()
        >>> sampling(inputs, labels, logits)
        tensor([[0, 5, 6]])
    """

    def __init__(
        self,
        schedule: Callable[[int], float] | float,
        mix: Mix = "argmax",
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        through_first_pass: bool = False,
        protect: Iterable[int | None] = (),
        generator: torch.Generator | None = None,
        seed: int | None = None,
        rank: int | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        if mix not in get_args(Mix):
            known = ", ".join(map(repr, get_args(Mix)))
            raise ValueError(f"mix must be one of {known}, got {mix!r}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if mix in ("argmax", "sample") and (top_k is not None or through_first_pass):
            raise ValueError(
                f"mix={mix!r} gives ids: top_k and through_first_pass are for mean embeddings, "
                'mix="softmax" or "gumbel"'
            )
        self.schedule, self.mix, self.temperature, self.top_k = schedule, mix, temperature, top_k
        self.through_first_pass, self.ignore_index = through_first_pass, ignore_index
        self.protect = tuple(int(token) for token in protect if token is not None)
        self.stream = KeyStream(seed, generator, rank)
        self.updates = 0

    @property
    def gold_rate(self) -> float:
        """eps_i, the probability that a token stays gold now."""
        given = self.schedule
        rate = float(given(self.updates) if callable(given) else given)
        if not 0 <= rate <= 1:
            raise ValueError(
                f"the gold rate must be between 0 and 1, the schedule gave {rate} at update "
                f"{self.updates}"
            )
        return rate

    def step(self) -> None:
        """One update of the model is done; call it once per optimizer step."""
        self.updates += 1

    def forward(
        self,
        decoder_input_ids: Int[Tensor, "B L"],
        labels: Int[Tensor, "B L"],
        logits: Float[Tensor, "B L V"],
        mask: Shaped[Tensor, "B L"] | None = None,
        *,
        labels_of: LabelsOf = "next",
        embedding: Callable[[Tensor], Tensor] | None = None,
    ) -> Int[Tensor, "B L"] | Float[Tensor, "B L D"]:
        """Inputs of the second pass: ids, or embeddings for "softmax" and "gumbel".

        Args:
            decoder_input_ids: the gold inputs, which the first pass read.
            labels: what is to be predicted, `ignore_index` where nothing is.
            logits: outputs of the first pass.
            mask: True or 1 where an input may be exchanged; None for every target token.
            labels_of: "next" if labels[t] follows the input t, "own" if it is the input t.
            embedding: the decoder's table of input embeddings, for "softmax" and "gumbel".

        Raises:
            ValueError: unequal shapes, no target, or no embedding where one is needed.
        """
        check_aligned(decoder_input_ids, labels, mask)
        if logits.shape[:2] != labels.shape:
            raise ValueError(
                f"logits {tuple(logits.shape)} need the shape (B, L, V) with (B, L) = "
                f"{tuple(labels.shape)}"
            )
        soft = self.mix in ("softmax", "gumbel")
        if soft and embedding is None:
            raise ValueError(f"mix={self.mix!r} mixes embeddings: give embedding=the input table")
        if not self.training:
            return embedding(decoder_input_ids) if soft and embedding else decoder_input_ids
        following = next_labels(labels, labels_of, self.ignore_index)
        target = is_target_input(following, self.ignore_index)  # (B, L)
        free = target & unprotected(decoder_input_ids, self.protect)
        if mask is not None:
            free = free & mask.bool()
        keys = row_keys(self.stream(labels.device), len(labels), labels.device)  # (B,)
        index = target.cumsum(1)  # (B, L)
        own = free & (numbers(keys, index, GOLD) >= threshold(self.gold_rate))  # (B, L)
        logits = logits if self.through_first_pass else logits.detach()
        if soft and embedding is not None:
            return self._mean_embeddings(decoder_input_ids, logits, own, keys, index, embedding)
        if self.mix == "argmax":
            words = logits.argmax(-1)  # (B, L)
        else:
            draw = numbers(keys, index.roll(-1, 1), WORD)  # of the place the word goes to
            words = sampled_ids(logits, draw, self.temperature)
        words = words.roll(1, 1).to(decoder_input_ids.dtype)  # a word of t − 1 goes to t
        return torch.where(own, words, decoder_input_ids)  # (2)

    def _mean_embeddings(
        self,
        inputs: Tensor,
        logits: Tensor,
        own: Bool[Tensor, "B L"],
        keys: Tensor,
        index: Tensor,
        embedding: Callable[[Tensor], Tensor],
    ) -> Tensor:
        gold = embedding(inputs)  # (B, L, D)
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        vocabulary = torch.arange(scores.shape[-1], device=scores.device)
        ids = vocabulary.expand_as(scores)
        if self.top_k is not None:
            scores, ids = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1)  # (B, L, K)
        if self.mix == "gumbel":
            place = numbers(keys, index.roll(-1, 1), WORD)[..., None] * len(vocabulary) + ids
            bits = numbers(keys, place.flatten(1), WORD + 1).view_as(ids)
            scores = scores - ((bits + 0.5) / 2**BITS).double().log().neg().log().to(scores.dtype)
        weights = (scores / self.temperature).softmax(-1).to(gold.dtype)  # (B, L, K)
        if self.top_k is None:
            mean = weights @ embedding(vocabulary)  # (B, L, D)
        else:
            mean = torch.einsum("blk,blkd->bld", weights, embedding(ids))
        return torch.where(own[..., None], mean.roll(1, 1), gold)  # (2)

    def get_extra_state(self) -> Tensor:
        """The number of updates, so that a resumed run goes on with its schedule."""
        return torch.tensor(self.updates)

    def set_extra_state(self, state: Tensor) -> None:
        self.updates = int(state)

    def extra_repr(self) -> str:
        return f"schedule={self.schedule}, mix={self.mix!r}"
