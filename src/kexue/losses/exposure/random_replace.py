r"""Seq2Seq中Exposure Bias现象的浅析与对策 — random replacement against exposure bias (S31)

Teacher forcing trains p(y_t | gold prefix); decoding conditions on its own prefix, errors and all.
Here the decoder reads a prefix with a few wrong tokens and still has to say the right next one:

    s_b ~ Bernoulli(p_sequence),    m_bt ~ Bernoulli(p_token)        one switch per row, then tokens
    x'_bt = r_bt  if s_b m_bt and x_bt is a target token, else x_bt,    r_bt ~ pool of row b     (1)
    loss  = cross-entropy of y given x'                                    labels stay gold      (2)

Half of the rows stay clean; .15 of the input tokens are *selected*. A selected token may draw
itself, so fewer *change*: with c_t the share of x_t in the pool "target" of its row,

    E(changed) = p_s p_t sum_t (1 − c_t)                     p_s p_sequence, p_t p_token         (3)
    P(row unchanged) = 1 − p_s + p_s prod_t (1 − p_t + p_t c_t)                                  (4)

Pools: "target" (the article) the row's own labels, repeats count; "sequence" (the author's code)
all ids of the row, the source too; "vocab" every id alike; or a weight per id, such as a unigram.

Symbols: x decoder inputs, y labels, x' what is returned, s_b switch, m_bt mask, r_bt replacement.
Axes: B rows, L tokens, P tokens a row may draw from, V ids.   Cost: O(L log P), on the device.
Source: article 7259, github.com/bojone/exposure_bias; the rates are the article's, not tuned.
What we do differently: random numbers belong to places (`draws`), so padding does not change them;
positions come from the labels, so the prompt, [CLS] and padding are never touched.
See also: `scheduled_sampling`; FGM and the embedding gradient penalty, which the article found
stronger and dearer. With the pool "target" a prefix may hold a token that is due later: a random
hint that decoding will not give. The pool "vocab" gives none.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from kexue.losses.exposure.draws import KeyStream, numbers, row_keys, threshold
from kexue.losses.exposure.places import (
    LabelsOf,
    check_aligned,
    is_target_input,
    next_labels,
    unprotected,
)
from kexue.losses.exposure.pools import (
    TABLE_BITS,
    check_pools,
    drawn_from_rows,
    id_table,
    row_pool,
)

__all__ = ["Pool", "RandomReplace", "change_rates", "random_replace"]

Pool = Literal["target", "sequence", "vocab"]
SWITCH, SELECT, CHOICE = 0, 1, 2


def random_replace(
    decoder_input_ids: Int[Tensor, "B L"],
    labels: Int[Tensor, "B L"],
    mask: Shaped[Tensor, "B L"] | None = None,
    *,
    key: Int[Tensor, ""],
    p_sequence: float = 0.5,
    p_token: float = 0.3,
    pool: Literal["target", "sequence"] | Int[Tensor, " V"] = "target",
    protect: tuple[int, ...] = (),
    labels_of: LabelsOf = "next",
    ignore_index: int = -100,
    sequence: Int[Tensor, "B P"] | None = None,
    sequence_mask: Shaped[Tensor, "B P"] | None = None,
) -> Int[Tensor, "B L"]:
    """Decoder inputs with some target tokens replaced: (1).

    Args:
        decoder_input_ids: the gold inputs; not changed in place.
        labels: what is to be predicted, `ignore_index` where nothing is.
        mask: True or 1 where an input may be replaced; None for every target token.
        key: what all draws follow from, such as `torch.randint(2**62, ())`.
        p_sequence: share of rows in which tokens are replaced; 0.5 in the article.
        p_token: share of tokens replaced in such a row; 0.3 in the article.
        pool: "target", "sequence", or the table that `id_table` makes of weights.
        protect: ids that are neither replaced nor drawn (bos, eos, pad, chat markers).
        labels_of: "next" if labels[t] follows the input t (encoder-decoder, UniLM), "own" if it
            *is* the input t (causal models of Hugging Face, which shift inside).
        ignore_index: marks positions without a target.
        sequence: the ids the pool "sequence" draws from; None for the decoder inputs.
        sequence_mask: True where these are no padding; None if padding is protected.

    Raises:
        ValueError: no label is a target; a row may be changed but its pool is empty (both are
            looked for on a CPU only; a GPU leaves such rows as they are); unequal shapes.

    Example:
        >>> labels = torch.tensor([[7, 8, 9, 2]])
        >>> inputs = torch.tensor([[0, 7, 8, 9]])
        >>> key = torch.tensor(1)
        >>> random_replace(inputs, labels, key=key, p_sequence=1.0, p_token=1.0, protect=(0, 2))
        tensor([[0, 8, 8, 9]])
    """
    check_aligned(decoder_input_ids, labels, mask)
    if not labels.numel():
        return decoder_input_ids
    following = next_labels(labels, labels_of, ignore_index)  # (B, L)
    target = is_target_input(following, ignore_index)  # (B, L)
    free = target & unprotected(decoder_input_ids, protect)
    if mask is not None:
        free = free & mask.bool()
    keys = row_keys(key, len(labels), labels.device)  # (B,)
    index = target.cumsum(1)  # (B, L), which target token of its row
    switch = numbers(keys, torch.zeros_like(index[:, :1]), SWITCH) < threshold(p_sequence)  # (B, 1)
    selected = switch & (numbers(keys, index, SELECT) < threshold(p_token))  # (B, L)
    if isinstance(pool, Tensor):
        draw = numbers(keys, index, CHOICE, TABLE_BITS)
        drawn = torch.searchsorted(pool, draw, right=True)  # (B, L)
    else:
        ids, usable = row_pool(
            pool, decoder_input_ids, following, protect, ignore_index, sequence, sequence_mask
        )
        some = usable.any(1)  # (B,)
        check_pools(free, some)
        drawn = drawn_from_rows(ids, usable, numbers(keys, index, CHOICE))  # (B, L)
        free = free & some[:, None]
    return torch.where(free & selected, drawn.to(decoder_input_ids.dtype), decoder_input_ids)  # (1)


def change_rates(
    decoder_input_ids: Int[Tensor, "B L"],
    labels: Int[Tensor, "B L"],
    mask: Shaped[Tensor, "B L"] | None = None,
    *,
    p_sequence: float = 0.5,
    p_token: float = 0.3,
    protect: tuple[int, ...] = (),
    labels_of: LabelsOf = "next",
    ignore_index: int = -100,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """What the rates come to with the pool "target": (3) and (4), per row, in float64.

    Returns:
        The expected number of changed inputs, and the probability that the row stays as it is.

    Raises:
        ValueError: unequal shapes.

    Example:
        >>> inputs, labels = torch.tensor([[0, 7, 8, 9]]), torch.tensor([[7, 8, 9, 2]])
        >>> changed, unchanged = change_rates(inputs, labels, p_sequence=1.0)
        >>> round(changed.item(), 4), round(unchanged.item(), 4)  # 3 · 0.3 · 3/4, (0.7 + 0.3/4)^3
        (0.675, 0.4655)
    """
    check_aligned(decoder_input_ids, labels, mask)
    following = next_labels(labels, labels_of, ignore_index)
    free = is_target_input(following, ignore_index) & unprotected(decoder_input_ids, protect)
    if mask is not None:
        free = free & mask.bool()
    usable = (following != ignore_index) & unprotected(following, protect)  # (B, L)
    equal = (decoder_input_ids[:, :, None] == following[:, None]) & usable[:, None]  # (B, L, P)
    size = usable.sum(1, keepdim=True).clamp(min=1)
    share = equal.sum(2).double() / size  # (B, L)
    changed = p_sequence * p_token * torch.where(free, 1 - share, 0.0).sum(1)  # (3)
    survives = torch.where(free, 1 - p_token + p_token * share, 1.0).prod(1)
    return changed, 1 - p_sequence + p_sequence * survives  # (4)


class RandomReplace(nn.Module):
    """Random replacement for a collator or a model: (1) in training mode, nothing in evaluation.

    Args:
        p_sequence: share of rows in which tokens are replaced; 0.5 in the article.
        p_token: share of tokens replaced in such a row; 0.3 in the article.
        pool: "target", "sequence", "vocab", or a weight per id, shape (V,).
        protect: ids that are neither replaced nor drawn; None among them is skipped, as
            tokenizers give it for tokens they lack.
        vocab_size: V, for the pool "vocab".
        generator: where the keys of the draws come from; None for torch's default one.
        seed: instead of a generator; then `state_dict` holds the place in the stream.
        rank: see `KeyStream`; every process draws its own numbers.
        ignore_index: marks positions without a target.

    Raises:
        ValueError: a rate outside [0, 1]; an unknown pool; weights that are negative, not finite
            or all protected; "vocab" without `vocab_size`; a seed and a generator.

    Example:
        >>> replace = RandomReplace(1.0, 1.0, pool="vocab", vocab_size=100, protect=(0, 1), seed=5)
        >>> inputs = torch.tensor([[0, 11, 12, 13]])
        >>> replace(inputs, torch.tensor([[11, 12, 13, 1]]))
        tensor([[ 0, 74,  7, 65]])
        >>> replace.eval()(inputs, inputs) is inputs
        True
    """

    def __init__(
        self,
        p_sequence: float = 0.5,
        p_token: float = 0.3,
        pool: Pool | Float[Tensor, " V"] = "target",
        protect: Iterable[int | None] = (),
        *,
        vocab_size: int | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        rank: int | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        for name, p in (("p_sequence", p_sequence), ("p_token", p_token)):
            if not 0 <= p <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {p}")
        self.p_sequence, self.p_token, self.ignore_index = p_sequence, p_token, ignore_index
        self.protect = tuple(int(token) for token in protect if token is not None)
        self.stream = KeyStream(seed, generator, rank)
        weights = pool if isinstance(pool, Tensor) else None
        self.pool = "unigram" if isinstance(pool, Tensor) else pool
        if self.pool not in ("target", "sequence", "vocab", "unigram"):
            raise ValueError(
                f'pool must be "target", "sequence", "vocab" or a weight per id, got {pool!r}'
            )
        if self.pool == "vocab":
            if vocab_size is None:
                raise ValueError('pool="vocab" needs vocab_size, the number of ids')
            weights = torch.ones(vocab_size)
        self.table: Tensor | None
        table = None if weights is None else id_table(weights, self.protect)
        self.register_buffer("table", table, persistent=False)

    def forward(
        self,
        decoder_input_ids: Int[Tensor, "B L"],
        labels: Int[Tensor, "B L"],
        mask: Shaped[Tensor, "B L"] | None = None,
        *,
        labels_of: LabelsOf = "next",
        sequence: Int[Tensor, "B P"] | None = None,
        sequence_mask: Shaped[Tensor, "B P"] | None = None,
    ) -> Int[Tensor, "B L"]:
        """The inputs to train on; the arguments are those of `random_replace`."""
        if not self.training:
            return decoder_input_ids
        if self.table is None:
            pool: Literal["target", "sequence"] | Tensor
            pool = "sequence" if self.pool == "sequence" else "target"
        else:
            pool = self.table = self.table.to(labels.device)
        return random_replace(
            decoder_input_ids,
            labels,
            mask,
            key=self.stream(labels.device),
            p_sequence=self.p_sequence,
            p_token=self.p_token,
            pool=pool,
            protect=self.protect,
            labels_of=labels_of,
            ignore_index=self.ignore_index,
            sequence=sequence,
            sequence_mask=sequence_mask,
        )

    def extra_repr(self) -> str:
        return f"p_sequence={self.p_sequence}, p_token={self.p_token}, pool={self.pool!r}"
