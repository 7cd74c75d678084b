"""Where a Transformer keeps its blocks, its norms, and the matrices of its branches (for S04, S06).

Nothing is known about a model but its module tree: blocks are the largest `ModuleList`, norms are
modules whose class says so, and the matrices of a branch are recognised by the names that the
families give them (BERT and its kin, ModernBERT, GPT-2, GPT-NeoX, OPT, Llama and its kin, Phi-3,
T5, `nn.TransformerEncoder`). A packed projection is cut into its parts, and the (in, out) layout of
Hugging Face's Conv1D is turned, so that a `Matrix` is always (out, in).
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kexue.nn import weight_roles

__all__ = [
    "Matrix",
    "branch_matrices",
    "distinct_blocks",
    "find_blocks",
    "is_norm",
    "matrices",
]

PACKED = {name.lower() for name in weight_roles.PACKED}
VALUE = {"value", "v_proj", "v_lin", "v", "value_proj"}
OUTPUT = {"dense", "out_proj", "o_proj", "c_proj", "out_lin", "wo", "o"}
GATE = {"gate_proj", "wi_0"}
UP = {"up_proj", "wi_1", "wi", "c_fc", "fc1", "lin1", "linear1", "dense_h_to_4h", "ffn"}
DOWN = {"down_proj", "wo", "c_proj", "fc2", "lin2", "linear2", "dense_4h_to_h", "ffn_output"}
CROSS = re.compile("cross|encdec|encoder_att|multihead_attn")
"""In the name of an attention to another stack: BERT's, T5's, BART's, torch's."""
PER_HEAD = {"bloom", "gpt_neox"}
"""Families that pack query, key and value head by head."""


@dataclass(frozen=True)
class Matrix:
    """One projection: its name, its weight as (out, in), and its part of a packed weight."""

    name: str
    weight: Tensor
    part: str = ""

    @property
    def fan_in(self) -> int:
        """How many inputs are summed."""
        return self.weight.shape[1]

    @property
    def power(self) -> float:
        """p = fan_in · E[w²]: what the second moment of an input is multiplied by."""
        if self.weight.is_meta:
            raise ValueError(f"{self.name}: its weight is on the meta device and has no numbers")
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return self.fan_in * float(self.weight.detach().to(wide).square().mean())


def find_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks in order, as (name, module): the members of the largest ModuleList.

    Raises:
        ValueError: there is none with matrices in it.
    """
    best: tuple[int, list[tuple[str, nn.Module]]] = (0, [])
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            size = sum(p.numel() for p in module.parameters() if p.dim() >= 2)
            if size > best[0]:
                inner = [(f"{name}.{index}".lstrip("."), one) for index, one in enumerate(module)]
                best = (size, inner)
    if not best[1]:
        raise ValueError(
            f"{type(model).__name__} has no list of blocks (an nn.ModuleList), so it is not a "
            "Transformer that can be read; give the encoder or decoder itself"
        )
    return best[1]


def distinct_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """`find_blocks`, where a block that stands in several places is listed once, for hooks.

    Raises:
        ValueError: as in `find_blocks`.
    """
    first: dict[nn.Module, str] = {}
    for name, block in find_blocks(model):
        first.setdefault(block, name)
    return [(name, block) for block, name in first.items()]


def is_norm(name: str, module: nn.Module) -> bool:
    """Whether this is a norm of the stream: none of queries, keys or batches, and no container.

    An `nn.Identity` called a norm counts: ModernBERT puts one before its first attention.
    """
    last = name.rpartition(".")[2].lower()
    if next(module.children(), None) is not None or re.match(
        r"(q|k|query|key)_?(layer)?norm", last
    ):
        return False
    kind = type(module).__name__.lower()
    if "batchnorm" in kind or "instancenorm" in kind:
        return False
    return "norm" in kind or (isinstance(module, nn.Identity) and "norm" in last)


def matrices(
    model: nn.Module, name: str, module: nn.Module, weight: Tensor | None = None
) -> list[Matrix]:
    """The projections that a module holds itself: none, one, or the parts of a packed one.

    Args:
        model: whose config tells how a packed weight is laid out.
        name: of the module in the model.
        module: the module.
        weight: cut this in place of the module's weight, such as its gradient.
    """
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            parts = (module.in_proj_weight if weight is None else weight).chunk(3)
        else:
            own = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
            parts = tuple(part for part in own if part is not None)
        return [Matrix(f"{name}.in_proj", w, p) for w, p in zip(parts, "qkv", strict=True)]
    weight = getattr(module, "weight", None) if weight is None else weight
    if not isinstance(weight, Tensor) or weight.dim() != 2 or isinstance(module, nn.Embedding):
        return []
    if type(module).__name__ == "Conv1D":  # transformers keeps (in, out) there
        weight = weight.T
    elif not isinstance(module, nn.Linear):
        return []
    last = name.rpartition(".")[2].lower()
    config = getattr(model, "config", None)
    if last in PACKED:
        cut = _cut(weight, config)
        if cut:
            return [Matrix(name, w, p) for w, p in zip(cut, "qkv", strict=True)]
    if last == "gate_up_proj" or (last == "wi" and _gated_wi(config)):
        return [Matrix(name, half, part) for half, part in zip(weight.chunk(2), "12", strict=True)]
    return [Matrix(name, weight)]


def _cut(weight: Tensor, config: Any) -> tuple[Tensor, ...]:
    """Queries, keys and values of a packed weight; with fewer key heads the last two are less."""
    heads = getattr(config, "num_attention_heads", None) or 0
    rows = weight.shape[0]
    if heads and getattr(config, "model_type", "") in PER_HEAD and rows % (3 * heads) == 0:
        per_head = weight.unflatten(0, (heads, 3, -1))  # (H, 3, D, in)
        return tuple(part.flatten(0, 1) for part in per_head.unbind(1))
    shared = getattr(config, "num_key_value_heads", None) or heads
    if heads and shared != heads and rows % (heads + 2 * shared) == 0:
        size = rows // (heads + 2 * shared)
        return tuple(weight.split([heads * size, shared * size, shared * size]))
    return tuple(weight.chunk(3)) if rows % 3 == 0 else ()


def _gated_wi(config: Any) -> bool:
    return getattr(config, "model_type", "") == "modernbert"


def branch_matrices(model: nn.Module, name: str, block: nn.Module) -> dict[str, Matrix]:
    """The matrices of a block's branches: value, output, up, down, and gate where there is one.

    Cross-attention, the third branch of some decoders, has `cross_value` and `cross_output`.

    Raises:
        ValueError: one is missing or has a name that is not known.
    """
    found: dict[str, Matrix] = {}
    for path, module in block.named_modules():
        last, lower = path.rpartition(".")[2].lower(), path.lower()
        held = matrices(model, path, module)
        if not held:
            continue
        attention = "att" in lower and not lower.startswith("output")
        cross = "cross_" if CROSS.search(lower) else ""
        if isinstance(module, nn.MultiheadAttention) or (attention and last in PACKED):
            found[f"{cross}value"] = held[-1]
        elif attention and last in VALUE:
            found[f"{cross}value"] = held[0]
        elif attention and last in OUTPUT:
            found[f"{cross}output"] = held[0]
        elif len(held) == 2:
            found["gate"], found["up"] = held
        elif last in GATE:
            found["gate"] = held[0]
        elif last in UP or lower.endswith("intermediate.dense"):
            found["up"] = held[0]
        elif last in DOWN or lower.endswith("output.dense"):
            found["down"] = held[0]
    missing = [role for role in ("value", "output", "up", "down") if role not in found]
    if missing:
        raise ValueError(
            f"{name} ({type(block).__name__}): no {' or '.join(missing)} matrix recognised among "
            f"its names; measure_identity_path(model, batch) needs no names"
        )
    return found
