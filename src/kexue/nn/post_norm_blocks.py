"""Where the branches of known post-norm Transformer blocks end, and what their matrices are for.

    find_blocks(model)    every block with Norm(x + F(x)) whose inner names are in LAYOUTS

A layout names, relative to the block, the module that ends each branch with the norm after its sum,
the value, output and feed-forward matrices, and the query and key matrices; a packed
query-key-value matrix counts as three, along its rows (torch) or columns (OpenAI GPT). BART's
names are shared by pre-norm models such as MBart and Pegasus, so there the class decides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn

__all__ = ["LAYOUTS", "Layout", "Part", "PostNormBlock", "find_blocks"]


class Part(NamedTuple):
    """A matrix of a block, or one third of a packed one along `dim`."""

    path: str
    name: str = "weight"
    third: int | None = None
    dim: int = 0


def parts(prefix: str, names: str) -> tuple[Part, ...]:
    """The matrices of the named modules under a common prefix."""
    return tuple(Part(prefix + name) for name in names.split())


def thirds(path: str, name: str, dim: int) -> tuple[Part, Part, Part]:
    """Query, key and value of a packed matrix."""
    return Part(path, name, 0, dim), Part(path, name, 1, dim), Part(path, name, 2, dim)


@dataclass(frozen=True)
class Layout:
    """The inside of one kind of block.

    Args:
        role: the stack it belongs to.
        sublayers: pairs of the module that ends a branch and the norm after its sum.
        scaled: value, output and feed-forward matrices.
        query_key: query and key matrices.
        is_one: what a module must satisfy besides having these names.
        reads_another: the block always attends to another stack.
    """

    role: Literal["encoder", "decoder"]
    sublayers: tuple[tuple[str, str], ...]
    scaled: tuple[Part, ...]
    query_key: tuple[Part, ...]
    is_one: Callable[[nn.Module], bool]
    reads_another: bool = False

    def fits(self, module: nn.Module) -> bool:
        """Whether the module is such a block."""
        paths = [path for pair in self.sublayers for path in pair]
        paths += [part.path for part in (*self.scaled, *self.query_key)]
        return self.is_one(module) and all(_has(module, path) for path in paths)


@dataclass(frozen=True)
class PostNormBlock:
    """A block of a model together with its layout."""

    module: nn.Module
    layout: Layout

    def sublayers(self) -> list[tuple[nn.Module, nn.Module]]:
        """End of the branch and norm, for every sub-layer."""
        find = self.module.get_submodule
        return [(find(end), find(norm)) for end, norm in self.layout.sublayers]

    def matrix(self, part: Part) -> Tensor:
        """The matrix itself, a view where it is packed."""
        whole: Tensor = getattr(self.module.get_submodule(part.path), part.name)
        return whole if part.third is None else whole.chunk(3, dim=part.dim)[part.third]


def find_blocks(model: nn.Module) -> list[PostNormBlock]:
    """The known post-norm blocks of a model, in its order.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> len(find_blocks(nn.TransformerEncoder(layer, num_layers=3)))
        3
        >>> find_blocks(nn.TransformerEncoderLayer(8, 2, 16, norm_first=True))
        []
    """
    found = []
    for module in model.modules():
        layout = next((one for one in LAYOUTS if one.fits(module)), None)
        if layout is not None:
            found.append(PostNormBlock(module, layout))
    return found


def _has(module: nn.Module, path: str) -> bool:
    for name in path.split("."):
        child = getattr(module, name, None)
        if not isinstance(child, nn.Module):
            return False
        module = child
    return True


def _torch(kind: type[nn.Module]) -> Callable[[nn.Module], bool]:
    return lambda module: isinstance(module, kind) and not module.norm_first


def _bert(cross: bool, decoder: bool) -> Callable[[nn.Module], bool]:
    def is_one(module: nn.Module) -> bool:
        flags = hasattr(module, "crossattention"), bool(getattr(module, "is_decoder", False))
        return flags == (cross, decoder)

    return is_one


def _bart(kind: str) -> Callable[[nn.Module], bool]:
    names = {f"{family}{kind}" for family in ("Bart", "PLBart", "Marian", "BlenderbotSmall")}
    return lambda module: type(module).__name__ in names


def _openai_gpt(module: nn.Module) -> bool:
    return type(module).__name__ == "Block" and "openai" in type(module).__module__


TORCH_SELF = thirds("self_attn", "in_proj_weight", 0)
TORCH_CROSS = thirds("multihead_attn", "in_proj_weight", 0)
PACKED_GPT = thirds("attn.c_attn", "weight", 1)

BERT_ENDS = (("attention.output.dense", "attention.output.LayerNorm"),)
BERT_CROSS_ENDS = (("crossattention.output.dense", "crossattention.output.LayerNorm"),)
BERT_FFN_ENDS = (("output.dense", "output.LayerNorm"),)
BERT_SCALED = parts("attention.", "self.value output.dense")
BERT_CROSS_SCALED = parts("crossattention.", "self.value output.dense")
BERT_FFN = parts("", "intermediate.dense output.dense")
BERT_QUERY_KEY = parts("attention.self.", "query key")

LAYOUTS = (
    Layout(
        role="encoder",
        sublayers=(("self_attn", "norm1"), ("linear2", "norm2")),
        scaled=(TORCH_SELF[2], *parts("", "self_attn.out_proj linear1 linear2")),
        query_key=TORCH_SELF[:2],
        is_one=_torch(nn.TransformerEncoderLayer),
    ),
    Layout(
        role="decoder",
        sublayers=(("self_attn", "norm1"), ("multihead_attn", "norm2"), ("linear2", "norm3")),
        scaled=(
            *(TORCH_SELF[2], TORCH_CROSS[2]),
            *parts("", "self_attn.out_proj multihead_attn.out_proj linear1 linear2"),
        ),
        query_key=(*TORCH_SELF[:2], *TORCH_CROSS[:2]),
        is_one=_torch(nn.TransformerDecoderLayer),
        reads_another=True,
    ),
    *(
        Layout(
            role="decoder" if decoder else "encoder",
            sublayers=(*BERT_ENDS, *BERT_FFN_ENDS),
            scaled=(*BERT_SCALED, *BERT_FFN),
            query_key=BERT_QUERY_KEY,
            is_one=_bert(cross=False, decoder=decoder),
        )
        for decoder in (False, True)
    ),
    Layout(
        role="decoder",
        sublayers=(*BERT_ENDS, *BERT_CROSS_ENDS, *BERT_FFN_ENDS),
        scaled=(*BERT_SCALED, *BERT_CROSS_SCALED, *BERT_FFN),
        query_key=(*BERT_QUERY_KEY, *parts("crossattention.self.", "query key")),
        is_one=_bert(cross=True, decoder=True),
        reads_another=True,
    ),
    Layout(
        role="encoder",
        sublayers=(("attention.out_lin", "sa_layer_norm"), ("ffn.lin2", "output_layer_norm")),
        scaled=parts("", "attention.v_lin attention.out_lin ffn.lin1 ffn.lin2"),
        query_key=parts("attention.", "q_lin k_lin"),
        is_one=lambda module: True,
    ),
    Layout(
        role="encoder",
        sublayers=(("self_attn.out_proj", "self_attn_layer_norm"), ("fc2", "final_layer_norm")),
        scaled=parts("", "self_attn.v_proj self_attn.out_proj fc1 fc2"),
        query_key=parts("self_attn.", "q_proj k_proj"),
        is_one=_bart("EncoderLayer"),
    ),
    Layout(
        role="decoder",
        sublayers=(
            ("self_attn.out_proj", "self_attn_layer_norm"),
            ("encoder_attn.out_proj", "encoder_attn_layer_norm"),
            ("fc2", "final_layer_norm"),
        ),
        scaled=(
            *parts("self_attn.", "v_proj out_proj"),
            *parts("encoder_attn.", "v_proj out_proj"),
            *parts("", "fc1 fc2"),
        ),
        query_key=(*parts("self_attn.", "q_proj k_proj"), *parts("encoder_attn.", "q_proj k_proj")),
        is_one=_bart("DecoderLayer"),
    ),
    Layout(
        role="decoder",
        sublayers=(("attn.c_proj", "ln_1"), ("mlp.c_proj", "ln_2")),
        scaled=(PACKED_GPT[2], *parts("", "attn.c_proj mlp.c_fc mlp.c_proj")),
        query_key=PACKED_GPT[:2],
        is_one=_openai_gpt,
    ),
)
