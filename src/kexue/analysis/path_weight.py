r"""模型优化漫谈：BERT的初始标准差为什么是0.02？ — Why BERT starts from std 0.02 (S06): the path

How much of a Transformer's input survives to the output at initialisation, by formula.

A branch F of the stream x, independent of it, Var x = 1, Var F = s². After Norm(x + F):

    y = (x + F) / sqrt(1 + s²),    so x keeps the weight w = (1 + s²)^(−1/2)                    (1)
    weight of x_0:  prod_j w_j     weight of branch i:  prod_{j >= i} w_j                       (2)

Pre-norm, x + F(Norm x), leaves every weight at 1; there the variance grows to 1 + sum_i s_i². For
matrices of E[w²] = σ² and unit-variance inputs, z ~ N(0, 1):

    p = fan_in · σ²                                              one matrix                     (3)
    s_a² = p_value p_output          attention that copies each token ("identity": upper bound)
    s_a² = p_value p_output / n      that averages n independent tokens ("uniform")             (4)
    s_f² = d_ff σ_down² E[phi(√p_up z)²]                         feed-forward
    s_f² = d_ff σ_down² E[phi(√p_gate z)²] p_up                  gated feed-forward             (5)

(4) uniform is right in the first blocks only: mixing aligns the tokens, and s_a² moves back towards
the identity. BERT's truncated normal of 0.02 has the real std 0.0176, half of 1/sqrt(768): 47 % of
x_0 survive 12 blocks instead of 0.2 %. Identity weight is not gradient norm: branches carry
gradient too (`gradient_profile`).

Symbols: stream x, branch F, power p, second_moment E[phi(√p z)²].   Cost: microseconds.
Source: article 8747, which argues with (1) and s = 1; (3) to (5) are ours; arXiv 1810.04805,
2002.04745. See also: `initializer_range`, the inverse; `measured_path`, `analysis.scales`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.analysis.stack import Stack, activation_of, norm_of, stack_of, times_run
from kexue.analysis.transformer_blocks import branch_matrices, find_blocks
from kexue.nn.moments import activation_moments
from kexue.nn.truncated_normal import truncated_moments

__all__ = [
    "TRUNCATED",
    "IdentityPath",
    "Stack",
    "identity_path",
    "second_moment",
]

Attention = Literal["identity", "uniform"]
TRUNCATED = math.sqrt(truncated_moments(-2.0, 2.0)[1])
"""The std of a normal cut at ±2 over the std before the cut: 0.8796."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "tanh": torch.tanh,
}
SAME = {
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_python": "gelu",
    "swish": "silu",
}


@dataclass(frozen=True)
class IdentityPath:
    """How much of the stream each sub-layer lets through.

    Args:
        norm: "post", "pre", or what a measurement found ("other", "mixed").
        names: of the sub-layers, in order.
        per_sublayer: w of (1) for each; 1 for pre-norm.
        branch_variances: s² of each branch, for a unit-variance input of the branch.
        stream: second moment of the stream before the first sub-layer and after each.
    """

    norm: str
    names: tuple[str, ...]
    per_sublayer: tuple[float, ...]
    branch_variances: tuple[float, ...]
    stream: tuple[float, ...]

    @property
    def total(self) -> float:
        """The weight of x_0 at the end: the product of all."""
        return math.prod(self.per_sublayer)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The weights of x_0 and of every branch at the end: (2); those of branches if pre: 1."""
        if self.norm == "pre":
            return (self.total, *(1.0 for _ in self.names))
        return tuple(math.prod(self.per_sublayer[i:]) for i in (0, *range(len(self.names))))  # (2)

    @property
    def share(self) -> float:
        """x_0 against all there is at the end, after a final norm; equal to `total` for post."""
        return self.total * math.sqrt(self.stream[0] / self.stream[-1])

    def __str__(self) -> str:
        lines = [f"{self.norm}-norm, {len(self.names)} sub-layers, x_0 keeps {self.total:.4g}"]
        for name, w, s2 in zip(self.names, self.per_sublayer, self.branch_variances, strict=True):
            lines.append(f"  {name}: weight {w:.4f}, branch variance {s2:.4g}")
        return "\n".join(lines)


def second_moment(activation: str | Callable[[Tensor], Tensor], power: float) -> float:
    """E[phi(√p z)²] for z ~ N(0, 1), by `kexue.nn.moments`.

    Args:
        activation: a name such as "gelu" (erf), "gelu_new" (tanh), "relu", "silu"; or a function.
        power: p, the variance of what goes in.

    Raises:
        ValueError: an unknown name, or a negative power.

    Example:
        >>> round(second_moment("gelu", 1.0), 12), round(second_moment("relu", 4.0), 12)
        (0.42522148257, 2.0)
    """
    if power < 0:
        raise ValueError(f"power must not be negative, got {power}")
    if isinstance(activation, str):
        known = SAME.get(activation, activation)
        if known not in ACTIVATIONS:
            names = ", ".join(sorted({*ACTIVATIONS, *SAME}))
            raise ValueError(f"activation {activation!r} is not known; give a function, or {names}")
        activation = ACTIVATIONS[known]
    return activation_moments(activation, math.sqrt(power))[1]


def identity_path(
    model_or_config: Any,
    attention: Attention = "identity",
    seq_len: int | None = None,
    *,
    truncated: bool = False,
    dropout: float = 0.0,
) -> IdentityPath:
    """The weight of the identity path of a stack at initialisation, by formula.

    Args:
        model_or_config: a `Stack`; a Hugging Face config (its `initializer_range` counts); or a
            model, a Hugging Face one or `nn.TransformerEncoder`, whose weights are read. Of an
            encoder-decoder the larger stack, usually the decoder with its cross-attention, counts;
            of its config the encoder.
        attention: "identity" copies each token, an upper bound; "uniform" averages `seq_len`.
        seq_len: n of (4), for "uniform".
        truncated: the std of a Stack or config is that of a normal before its cut at ±2 std.
        dropout: rate at the end of each branch in training; multiplies s² by 1/(1 − rate).

    Raises:
        ValueError: "uniform" without `seq_len`; a config or a model that is not recognised.

    Example:
        >>> bert = Stack(width=768, feed_forward=3072, layers=12, std=0.02)
        >>> round(identity_path(bert).total, 9), round(identity_path(bert, truncated=True).total, 9)
        (0.278345703, 0.466409806)
    """
    tokens = _tokens(attention, seq_len)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    if isinstance(model_or_config, nn.Module):
        if truncated:
            raise ValueError("truncated is about a config's std; a model's weights are read as is")
        norm, names, variances = _of_model(model_or_config, tokens)
    else:
        stack = stack_of(model_or_config)
        scale = TRUNCATED if truncated else 1.0
        norm, names = stack.norm, stack.names
        variances = _of_stack(stack, scale, tokens) * stack.layers
    variances = [s2 / (1 - dropout) for s2 in variances]
    if norm == "pre":
        stream = [1.0, *(1 + np.cumsum(variances)).tolist()]
        return IdentityPath("pre", names, (1.0,) * len(names), tuple(variances), tuple(stream))
    weights = tuple((1 + s2) ** -0.5 for s2 in variances)  # (1)
    return IdentityPath("post", names, weights, tuple(variances), (1.0,) * (len(names) + 1))


def _tokens(attention: str, seq_len: int | None) -> int:
    if attention == "identity":
        return 1
    if attention != "uniform":
        raise ValueError(f'attention must be "identity" or "uniform", got {attention!r}')
    if seq_len is None or seq_len < 1:
        raise ValueError(f'attention="uniform" needs seq_len >= 1, got {seq_len}')
    return seq_len


def _of_stack(stack: Stack, scale: float, tokens: int) -> list[float]:
    """The branch variances of one block."""
    variance = (scale * stack.std) ** 2
    last = variance if stack.residual_std is None else (scale * stack.residual_std) ** 2
    p = stack.width * variance  # (3)
    attended = p * stack.width * last / tokens  # (4)
    fed = stack.feed_forward * last * second_moment(stack.activation, p)  # (5)
    return [attended, fed * p if stack.gated else fed]


def _of_model(model: nn.Module, tokens: int) -> tuple[str, tuple[str, ...], list[float]]:
    names, variances, phi = list[str](), list[float](), activation_of(model)
    blocks = find_blocks(model)
    for name, block in blocks:
        m = branch_matrices(model, name, block)
        attended = m["value"].power * m["output"].power / tokens  # (4)
        crossed = []
        if "cross_value" in m:
            crossed = [m["cross_value"].power * m["cross_output"].power / tokens]  # (4)
        if "gate" in m:
            fed = m["down"].power * second_moment(phi, m["gate"].power) * m["up"].power  # (5)
        else:
            fed = m["down"].power * second_moment(phi, m["up"].power)  # (5)
        parts = ("attention", "cross_attention", "feed_forward")
        names += [f"{name}.{part}" for part in (parts if crossed else parts[::2])]
        variances += [attended, *crossed, fed]
    times = times_run(model, len(blocks))
    return norm_of(model), tuple(names) * times, variances * times
