r"""训练1000层的Transformer究竟有什么困难？初始化 (S19)

The start of a DeepNorm stack: every matrix anew, with a gain by its role.

    W ~ N(0, gain² · 2/(n + m)),    gain = beta for value, output and feed-forward matrices,
                                    gain = 1 for query and key                              (1)

Symbols: W of n rows and m columns, beta from `kexue.nn.deepnorm.deepnorm_constants`.
Traps: beta for a packed query-key-value matrix as a whole, for embeddings or for the output head
is not the recipe. Under FSDP initialise before the parameters are sharded.
Source: article 8978; DeepNet, arXiv 2203.00555.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.nn.fan_average import fan_average
from kexue.nn.truncated_normal import draw_blocks_
from kexue.nn.weight_roles import PACKED

__all__ = ["QUERY_KEY_LIKE", "VALUE_LIKE", "deepnorm_init_", "gained_xavier_"]

VALUE_LIKE = (
    *("v_proj", "value", "v_lin", "to_v"),
    *("out_proj", "o_proj", "out_lin", "to_out", "attention.output.dense"),
    *("fc1", "fc2", "linear1", "linear2", "lin1", "lin2", "wi", "wi_0", "wi_1", "wo"),
    *("gate_proj", "up_proj", "down_proj", "intermediate.dense", "output.dense"),
)
"""Ends of the names of the matrices that start with gain beta."""

QUERY_KEY_LIKE = ("q_proj", "query", "q_lin", "to_q", "k_proj", "key", "k_lin", "to_k")
"""Ends of the names of the matrices that start with gain 1."""

HEADS = {"classifier", "classification_head", "lm_head", "pooler", "embeddings", "cls", "score"}


@torch.no_grad()
def deepnorm_init_(
    module: nn.Module,
    beta: float,
    value_like: Sequence[str] = VALUE_LIKE,
    query_key_like: Sequence[str] = QUERY_KEY_LIKE,
    *,
    generator: torch.Generator | None = None,
) -> list[str]:
    """(1), in place, for the matrices with such names; their biases become zero.

    A name matches by its end: "fc1" any `….fc1`, "output.dense" any `….output.dense`. The packed
    matrix of `nn.MultiheadAttention` is taken apart: gain 1 for query and key, beta for value, each
    drawn as a matrix of its own. Everything else stays as it is: embeddings, norms, heads.

    Args:
        module: one stack; an encoder and a decoder need a call each, with their own beta.
        beta: the gain, from `deepnorm_constants`.
        value_like: ends of the names of value, output and feed-forward matrices.
        query_key_like: ends of the names of query and key matrices.
        generator: source of the numbers; torch's own when None.

    Returns:
        The names of the matrices that were drawn with gain beta.

    Raises:
        ValueError: beta that is not positive; no name matches; a packed matrix of unknown layout.

    Example:
        >>> layer, source = nn.TransformerEncoderLayer(64, 4, 256), torch.Generator().manual_seed(0)
        >>> deepnorm_init_(layer, 0.25, generator=source)
        ['self_attn.in_proj_weight[value]', 'self_attn.out_proj', 'linear1', 'linear2']
        >>> round(layer.linear1.weight.std().item() / (2 / (64 + 256)) ** 0.5, 2)
        0.25
    """
    if not 0 < beta < torch.inf:
        raise ValueError(f"beta must be positive and finite, got {beta}")
    matrices = list(_matrices(module, value_like, query_key_like))
    scaled = [one.name for one in matrices if one.scaled]
    if not scaled:
        linear = [name for name, one in module.named_modules() if isinstance(one, nn.Linear)]
        raise ValueError(
            f"no matrix of {type(module).__name__} is called like one of value_like; name them: "
            f"its linear layers are {', '.join(linear[:12]) or 'none'}"
        )
    for one in matrices:
        gained_xavier_(one.weight, beta if one.scaled else 1.0, generator=generator)  # (1)
        if one.bias is not None:
            one.bias.zero_()
    return scaled


@torch.no_grad()
def gained_xavier_(
    weight: Float[Tensor, "n m"], gain: float, *, generator: torch.Generator | None = None
) -> None:
    """(1) for one matrix or a part of one, in place, drawn in float32 or better.

    Example:
        >>> import torch
        >>> w = torch.empty(300, 100)
        >>> gained_xavier_(w, 2.0, generator=torch.Generator().manual_seed(0))
        >>> round(w.std().item() / (2 / 400) ** 0.5, 1)
        2.0
    """
    std = gain * fan_average(weight.shape[1], weight.shape[0]) ** -0.5
    draw_blocks_(weight, lambda block: block.normal_(0.0, std, generator=generator))  # (1)


class _Matrix(NamedTuple):
    name: str
    weight: Tensor
    bias: Tensor | None
    scaled: bool


def _matrices(
    module: nn.Module, value_like: Sequence[str], query_key_like: Sequence[str]
) -> Iterator[_Matrix]:
    """The matrices of (1), in the order of the modules, packed ones as three."""
    for name, one in module.named_modules():
        if HEADS & set(name.split(".")):
            continue
        if isinstance(one, nn.MultiheadAttention):
            yield from _of_attention(f"{name}." if name else "", one)
        weight, bias = getattr(one, "weight", None), getattr(one, "bias", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            continue
        if _ends(name, PACKED):
            raise ValueError(
                f"{name} packs query, key and value in a layout that is not known here; draw its "
                "parts with gained_xavier_, with beta for value alone, and everything else by name"
            )
        if _ends(name, (*value_like, *query_key_like)):
            yield _Matrix(name, weight, bias, _ends(name, value_like))


def _of_attention(prefix: str, one: nn.MultiheadAttention) -> Iterator[_Matrix]:
    biases = (None,) * 3 if one.in_proj_bias is None else one.in_proj_bias.chunk(3)
    if one.in_proj_weight is not None:
        weights = one.in_proj_weight.chunk(3)
        names = [f"{prefix}in_proj_weight[{role}]" for role in ("query", "key", "value")]
    else:  # keys or values of another width
        weights = (one.q_proj_weight, one.k_proj_weight, one.v_proj_weight)
        names = [f"{prefix}{letter}_proj_weight" for letter in "qkv"]
    for k in range(3):
        yield _Matrix(names[k], weights[k], biases[k], k == 2)


def _ends(name: str, ends: Sequence[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)
