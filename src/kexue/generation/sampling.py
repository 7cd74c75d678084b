r"""The next token, and the next, drawn from a language model with a cache.

    p_i = softmax(logits / temperature)_i                                                      (1)
    top k: keep the k most probable tokens                                                     (2)
    top p: keep the fewest tokens, most probable first, whose p sums to at least top_p         (3)

and draw from what is left, normalised. Ties go to the lower id; `temperature=0` takes the most
probable token. The draws follow from the generator alone.

Axes: B batch, V vocabulary.
Source: nucleus sampling, arXiv 1904.09751.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["next_token", "sample"]


def next_token(
    logits: Float[Tensor, "B V"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " B"]:
    """One token per row.

    Args:
        logits: scores of the tokens, any dtype.
        temperature: below 1 sharper, above 1 flatter; 0 is the most probable token.
        top_k: see (2); None: all.
        top_p: see (3), in (0, 1]; None: all.
        generator: where the randomness comes from.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 3.0, 2.0]])
        >>> next_token(logits, temperature=0.0), next_token(logits, top_k=1)
        (tensor([1]), tensor([1]))
    """
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature == 0:
        return scores.argmax(dim=-1)
    ordered, ids = (scores / temperature).sort(dim=-1, descending=True, stable=True)  # (B, V)
    p = ordered.softmax(dim=-1)  # (1)
    if top_k is not None:
        p[:, top_k:] = 0  # (2)
    if top_p is not None:
        before = p.cumsum(dim=-1) - p  # what the more probable tokens sum to
        p = p.where(before < top_p, 0.0)  # (3)
    drawn = torch.multinomial(p, 1, generator=generator)  # (B, 1)
    return ids.gather(1, drawn).squeeze(1)


@torch.no_grad()
def sample(
    model: Any,
    prompt: Int[Tensor, "B L"],
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    end: int | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "B n"]:
    """The tokens that follow a prompt.

    Args:
        model: has `new_cache()`, and `model(ids, cache=cache)` gives logits (B, L, V).
        prompt: at least one token per row, all rows equally long.
        length: most tokens to draw.
        temperature: see `next_token`.
        top_k: see `next_token`.
        top_p: see `next_token`.
        end: id that ends a row; it is repeated behind its first place. All rows ended: stop.
        generator: where the randomness comes from.

    Returns:
        The drawn tokens without the prompt.

    Raises:
        ValueError: an empty prompt, or an option out of range.
    """
    if prompt.shape[1] == 0:
        raise ValueError("the prompt must hold at least one token, it is empty")
    choose = partial(
        next_token, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
    )
    cache, given, drawn = model.new_cache(), prompt, []
    ended = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    for _ in range(length):
        token = choose(model(given, cache=cache)[:, -1])  # (B,)
        if end is not None:
            token = token.where(~ended, end)
            ended |= token == end
        drawn.append(token)
        if end is not None and bool(ended.all()):
            break
        given = token.unsqueeze(1)
    return torch.stack(drawn, dim=1) if drawn else prompt[:, :0]
