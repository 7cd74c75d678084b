"""An encoder and a head: the whole of every fine-tuning model here.

The head sees the last hidden states (R, L, D) and the mask (R, L), True = visible; no pooler, no
dropout in between (S01, section 2.2). Token types are left at their default 0, also for pairs.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from kexue.models.first_token import FirstTokenOnly
from kexue.nn import ChoiceHead, SequenceHead

__all__ = ["TextModel"]


class TextModel(nn.Module):
    """`head(encoder(tokens).last_hidden_state, mask, …)`.

    Args:
        encoder: any module that returns `last_hidden_state`.
        head: any module called with hidden states, mask and the head's own options.
        padded_right: promise that no row begins with padding, so that the mask need not be read
            from the device; on a CPU it is looked at instead.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, *, padded_right: bool = False) -> None:
        super().__init__()
        self.padded_right = padded_right
        self.encoder = encoder
        self.head = head
        self.first_token = FirstTokenOnly(encoder)

    def forward(
        self,
        input_ids: Int[Tensor, "R L"],
        attention_mask: Int[Tensor, "R L"],
        visible: Bool[Tensor, "R L"] | None = None,
        **options: object,
    ) -> Tensor:
        """The head's scores.

        Args:
            input_ids: token ids.
            attention_mask: 1 where the encoder may look, 0 for padding.
            visible: what the head may look at, if that is less (the passage, not the question).
            options: passed to the head.
        """
        self.first_token.active = self.reads_first_only(attention_mask)
        try:
            output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        finally:
            self.first_token.active = False
        states = output.last_hidden_state  # (R, L, D), or (R, 1, D) where only [CLS] is read
        mask = attention_mask.bool() if visible is None else visible
        scores: Tensor = self.head(states, mask[:, : states.shape[1]], **options)
        return scores

    def reads_first_only(self, attention_mask: Tensor) -> bool:
        """Whether the head reads nothing but the first token of the last layer.

        Not with padding on the left, where the first visible token is another one, and not with
        gradient checkpointing, which computes the layer again after the forward pass.
        """
        if not isinstance(self.head, SequenceHead | ChoiceHead) or self.head.pooling != "first":
            return False
        if self.training and self.first_token.checkpointed:
            return False
        if torch.compiler.is_compiling() or attention_mask.is_cuda:
            return self.padded_right
        return bool(attention_mask[:, 0].all())
