r"""突破瓶颈，打造更强大的Transformer — a layer of talking heads (S25)

    O = talking_heads(X W_q, C W_k, C W_v, P_l(X), P_w(X)),      Y = [O_1, …, O_Hv] W_o          (1)
    P(x) = P                     one matrix for all tokens                                      (2)
    P(x) = P + reshape(x W)      `dynamic`: one per query, W from 0                              (3)

Sizes Hk, H, Hv are free: mixing may expand or contract the number of heads. `mix` leaves out one of
the two projections.

How P starts. "identity" has ones on the diagonal, so that the layer is multi-head attention at
first and a trained one can be continued; columns beyond the diagonal (more heads out than in) are
drawn like "normal", lest new heads be copies of each other for ever. "normal" draws every number
from N(0, 1/inputs), which keeps the variance of the logits.

Symbols: P_l `logit_mixing`, P_w `weight_mixing`.   Axes: as `sized_heads.py`.
Cost: as `talking_heads.py`; 2 H² parameters more than multi-head attention, dynamic 2 D H² more.
Source: article 7325; arXiv 2003.02436, whose dynamic projections also read the key's token, which
would need a matrix per pair of tokens; CaiT, arXiv 2103.17239, mixes with equal sizes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.nn.logit_mixing import logit_mixed_attention
from kexue.nn.sized_heads import Projected, SizedHeadsAttention
from kexue.nn.talking_heads import softmax_heads, talking_heads

__all__ = ["HeadMixing", "TalkingHeadsAttention"]


class HeadMixing(nn.Module):
    """P of (2) or (3): how heads that come in are mixed into heads that go out.

    Args:
        inputs: heads that come in.
        outputs: heads that go out.
        d_model: D where P depends on the token; None for one P.
        init: how P starts.

    Example:
        >>> HeadMixing(2, 2)(torch.randn(1, 5, 8))
        Parameter containing:
        tensor([[1., 0.],
                [0., 1.]], requires_grad=True)
    """

    def __init__(
        self, inputs: int, outputs: int, d_model: int | None = None, init: str = "identity"
    ) -> None:
        super().__init__()
        if init not in ("identity", "normal"):
            raise ValueError(f"init must be identity or normal, got {init!r}")
        self.init = init
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.by_token = None
        if d_model is not None:
            self.by_token = nn.Linear(d_model, inputs * outputs, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start named by `init`; the part that reads tokens at 0."""
        inputs, outputs = self.weight.shape
        nn.init.normal_(self.weight, std=inputs**-0.5)
        if self.init == "identity":
            with torch.no_grad():
                self.weight[:, : min(inputs, outputs)] = torch.eye(inputs, min(inputs, outputs))
        if self.by_token is not None:
            nn.init.zeros_(self.by_token.weight)

    def forward(
        self, x: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "inputs outputs"] | Float[Tensor, "B L inputs outputs"]:
        if self.by_token is None:
            return self.weight  # (2)
        change: Tensor = self.by_token(x).unflatten(-1, self.weight.shape)
        return self.weight + change  # (3)

    def extra_repr(self) -> str:
        inputs, outputs = self.weight.shape
        return f"{inputs}, {outputs}, init={self.init!r}"


class TalkingHeadsAttention(SizedHeadsAttention):
    """Multi-head attention whose heads mix logits and weights: (1).

    Args:
        d_model: D, size of the input and output.
        num_heads: H, softmax heads.
        logit_heads: Hk, heads of queries and keys; default H.
        value_heads: Hv, heads of values; default H.
        key_size: of queries and keys; default D / Hk.
        dynamic: mixing depends on the query's token: (3).
        init: how the mixing starts, "identity" or "normal".
        mix: "logits" leaves the weights alone, "weights" the logits; "both" as in the paper. With
            "logits" and off the CPU, fused kernels do the work (`logit_mixed_attention`).
        value_size: default D / Hv.
        bias: of the projections.
        causal: row i sees keys up to itself.
        rope: turn queries and keys by their positions; needs an even key_size.
        rope_base: of the rotary embedding, 10000 in its paper.
        dropout: of the softmax weights in training, before they are mixed.
        block: rows computed together; default by the size of the maps.

    Weights start Glorot uniform as in `torch.nn.MultiheadAttention`, biases at 0.

    Raises:
        ValueError: sizes that do not divide, are not positive, an odd key_size with rope, heads
            that nothing mixes and that differ in number, or an unknown mix or init.

    Example:
        >>> layer = TalkingHeadsAttention(d_model=32, num_heads=4, causal=True)
        >>> x = torch.randn(2, 10, 32)
        >>> cache = layer.new_cache()
        >>> with torch.no_grad():
        ...     parts = [layer(x[:, :7], cache=cache), layer(x[:, 7:], cache=cache)]
        >>> torch.allclose(torch.cat(parts, dim=1), layer(x), atol=1e-6)
        True
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        logit_heads: int | None = None,
        value_heads: int | None = None,
        key_size: int | None = None,
        dynamic: bool = False,
        init: str = "identity",
        *,
        mix: str = "both",
        value_size: int | None = None,
        bias: bool = True,
        causal: bool = False,
        rope: bool = False,
        rope_base: float = 10000.0,
        dropout: float = 0.0,
        block: int | None = None,
    ) -> None:
        if num_heads < 1:
            raise ValueError(f"num_heads must be positive, got {num_heads}")
        if mix not in ("both", "logits", "weights"):
            raise ValueError(f"mix must be both, logits or weights, got {mix!r}")
        logit_heads = num_heads if logit_heads is None else logit_heads
        value_heads = num_heads if value_heads is None else value_heads
        for name, heads, mixed_by in (
            ("logit_heads", logit_heads, "logits"),
            ("value_heads", value_heads, "weights"),
        ):
            if heads != num_heads and mix not in ("both", mixed_by):
                raise ValueError(
                    f"{name} must be num_heads={num_heads} with mix={mix!r}, got {heads}; mix "
                    f"them with mix='both' or mix={mixed_by!r}"
                )
        super().__init__(
            d_model,
            logit_heads,
            value_heads,
            key_size,
            value_size,
            bias=bias,
            causal=causal,
            rope=rope,
            rope_base=rope_base,
            dropout=dropout,
        )
        self.num_heads, self.block = num_heads, block
        reads = d_model if dynamic else None
        self.logit_mixing = self.weight_mixing = None
        if mix != "weights":
            self.logit_mixing = HeadMixing(logit_heads, num_heads, reads, init)
        if mix != "logits":
            self.weight_mixing = HeadMixing(num_heads, value_heads, reads, init)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections Glorot uniform, biases 0, mixing as `init` says."""
        super().reset_parameters()
        for mixing in (self.logit_mixing, self.weight_mixing):
            if mixing is not None:
                mixing.reset_parameters()

    def attend(self, given: Projected) -> Float[Tensor, "B Hv L e"]:
        by_logits = None if self.logit_mixing is None else self.logit_mixing(given.x)
        by_weights = None if self.weight_mixing is None else self.weight_mixing(given.x)
        dropout = self.dropout if self.training else 0.0
        if by_weights is None and by_logits is not None and given.q.device.type != "cpu":
            return logit_mixed_attention(
                given.q,
                given.k,
                given.v,
                by_logits,
                given.visible,
                causal=self.causal,
                offset=given.offset,
                position_bias=given.position_bias,
                dropout=dropout,
            )
        return talking_heads(
            given.q,
            given.k,
            given.v,
            by_logits,
            by_weights,
            given.visible,
            causal=self.causal,
            offset=given.offset,
            position_bias=given.position_bias,
            dropout=dropout,
            block=self.block,
        )  # (1)

    def maps(self, given: Projected) -> Float[Tensor, "B H L K"]:
        return softmax_heads(
            given.q,
            given.k,
            None if self.logit_mixing is None else self.logit_mixing(given.x),
            given.visible,
            causal=self.causal,
            offset=given.offset,
            position_bias=given.position_bias,
        )

    def extra_repr(self) -> str:
        return (
            f"logit_heads={self.key_heads}, num_heads={self.num_heads}, "
            f"value_heads={self.value_heads}, key_size={self.key_size}, "
            f"value_size={self.value_size}, causal={self.causal}, rope={self.rope}"
        )
