"""Training on a CPU without waiting for random numbers.

Two replacements with the same distribution: dropout layers draw 16 bits an element
(`nn.dropout`), and so does the dropout of short attention, which is computed in the open instead
of by `scaled_dot_product_attention` (on a CPU its dropout draws one Bernoulli variable after the
other, and its fused backward in bf16 is slower than the plain one at these lengths). Nothing else
changes: parameters, names and saved files are the same, and without gradients torch's own attention
is used.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn

from kexue.nn.dropout import BitDropout, bit_dropout

__all__ = ["prepare_for_cpu"]

NAME = "kexue_cpu"
LARGEST = 2**24  # cells of a table of scores up to which it is cheaper than the fused kernel


def prepare_for_cpu(encoder: Any) -> None:
    """Replaces the dropout of a Hugging Face encoder, in place."""
    # Each kernel that oneDNN keeps holds about a megabyte; its own limit is 1024.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, BitDropout(child.p).train(child.training))
    if getattr(encoder.config, "_attn_implementation", None) == "sdpa":
        register()
        encoder.set_attn_implementation(NAME)


def register() -> None:
    """Makes `short_attention` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, short_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def short_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """softmax(scaling · q kᵀ) v with cheap dropout; long or special cases go to torch's own.

    Args:
        module: the attention layer.
        query: (B, H, Q, d).
        key, value: (B, H, L, d).
        attention_mask: boolean, True = visible, broadcast to (B, H, Q, L).
        dropout: rate; 0 outside training.
        scaling: factor of the scores; default 1 / sqrt(d).
        options: what transformers passes to every attention function.

    Returns:
        (B, Q, H, d) and None, as transformers expects.
    """
    special = (
        any(options.get(k) for k in ("is_causal", "softcap")) or query.shape[1] != key.shape[1]
    )
    special = special or options.get("position_bias") is not None
    cells = query.shape[:3].numel() * key.shape[2]
    if special or not torch.is_grad_enabled() or cells > LARGEST or query.is_cuda:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **options
        )
        return output
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = ((query * scale) @ key.transpose(2, 3)).float()  # (B, H, Q, L)
    blind = None
    if attention_mask is not None:
        # an added −inf, because filling by a mask is not vectorised, forward or backward
        hidden = torch.zeros(attention_mask.shape).masked_fill_(~attention_mask, -torch.inf)
        scores = scores + hidden
        blind = ~attention_mask.any(-1, keepdim=True)
    if blind is not None and blind.any():  # a row that sees nothing attends to nothing
        weights = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    else:
        weights = scores.softmax(-1)  # in float32: torch's bf16 softmax is slower
    weights = bit_dropout(weights, dropout)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None
