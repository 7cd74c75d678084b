"""Where only [CLS] is read, the last layer need not compute the rest. Exact.

The states of a layer meet each other in its attention alone: there the first token's query looks
at the keys and values of all tokens, and everything after (output projection, norms, feed-forward)
acts on every token by itself. A head that reads the first token gets the same numbers when the
last layer computes keys and values for all tokens and the rest for the first only. That saves five
sixths of the last layer: a fifth of a 4-layer encoder, a fourteenth of a 12-layer one.
"""

from typing import Any

from torch import Tensor, nn

__all__ = ["FirstTokenOnly"]

# Encoders whose last block is attention(self → output) → intermediate → output …
BERT_LIKE = frozenset(
    {"bert", "roberta", "xlm-roberta", "electra", "ernie", "roformer", "camembert"}
)
# … and those among them whose attention has no positions of its own.
PLAIN_ATTENTION = BERT_LIKE - {"roformer"}


class FirstTokenOnly:
    """Shortens the last layer of a BERT-like encoder to its first token while `active`.

    Args:
        encoder: any encoder; one of another build is left as it is (`applies` is False).
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.active = False
        config = getattr(encoder, "config", None)
        kind = getattr(config, "model_type", None)
        self.applies = kind in BERT_LIKE and not getattr(config, "is_decoder", False)
        self.last: Any = None
        if self.applies:
            layers: Any = encoder.encoder.layer  # type: ignore[union-attr]
            self.last = layers[-1]
            attention = self.last.attention
            attention.output.register_forward_pre_hook(self.shorten)
            if kind in PLAIN_ATTENTION:
                self.attention = attention.self
                self.whole = attention.self.forward
                attention.self.forward = self.attend

    @property
    def checkpointed(self) -> bool:
        """Whether the last layer is computed again in the backward pass."""
        return bool(getattr(self.last, "gradient_checkpointing", False))

    def shorten(self, module: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The inputs of the last attention's output layer, first token only."""
        return tuple(s[:, :1] for s in states) if self.active else None

    def attend(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Any]:
        """The last attention: of the first token while active, of all tokens otherwise."""
        unusual = attention_mask is not None and attention_mask.dim() != 4
        if not self.active or unusual:  # `shorten` then drops what was computed for the others
            whole: tuple[Tensor, Any] = self.whole(hidden_states, attention_mask, **options)
            return whole
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from transformers.models.bert.modeling_bert import eager_attention_forward

        layer: Any = self.attention
        options.pop("past_key_values", None)
        heads = (-1, layer.attention_head_size)
        query = (
            layer.query(hidden_states[:, :1]).unflatten(-1, heads).transpose(1, 2)
        )  # (B, H, 1, d)
        key = layer.key(hidden_states).unflatten(-1, heads).transpose(1, 2)  # (B, H, L, d)
        value = layer.value(hidden_states).unflatten(-1, heads).transpose(1, 2)  # (B, H, L, d)
        attention_of = ALL_ATTENTION_FUNCTIONS.get_interface(
            layer.config._attn_implementation, eager_attention_forward
        )
        states, _ = attention_of(
            layer,
            query,
            key,
            value,
            None if attention_mask is None else attention_mask[..., :1, :],
            dropout=layer.dropout.p if layer.training else 0.0,
            scaling=layer.scaling,
            **options,
        )
        return states.flatten(2), None  # (B, 1, D)
