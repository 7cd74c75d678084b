r"""浅谈Transformer的初始化、参数化与标准化 — what each parameter of a model is for (S04)

An initialiser for whole models has to know of every parameter whether it is a matrix, and how its
axes lie, a lookup table, a bias or the scale of a normalisation. The type of the module says so:

    nn.Linear and kin                     matrix (out, in)              bias zeros
    transformers' Conv1D                  matrix (in, out)              bias zeros
    nn.Conv1d …, nn.ConvTranspose1d …     matrix with kernel            bias zeros
    nn.MultiheadAttention                 three matrices in one         bias zeros
    nn.Embedding, nn.EmbeddingBag         embedding
    torch's normalisations, T5LayerNorm   ones                          bias zeros

A parameter under several names has one role. If it is looked up and multiplied with, it is `tied`.
Other modules' parameters have no role: recurrent layers, Gemma's normalisation (which starts at 0),
weights behind `torch.nn.utils.parametrize`.

What we do differently: Conv1D is known by its name and shape, so that transformers need not be
there; packed query, key and value are known by the name of the layer.

Cost: one walk over the modules.   Source: article 8620. See also: `kexue.nn.init_rules`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kexue.nn.fans import Axes, fan_in_out

__all__ = ["PACKED", "ParameterRole", "weight_roles"]

PACKED = (*("c_attn", "in_proj", "qkv", "qkv_proj", "query_key_value", "to_qkv", "Wqkv", "W_pack"),)
"""Names of layers that hold query, key and value in one matrix."""
NORMS = (
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    *(nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm),
)


@dataclass
class ParameterRole:
    """One parameter and its role.

    Args:
        name: the first of its names in the model.
        parameter: the tensor itself.
        role: "matrix", "embedding", "tied", "zeros" or "ones".
        axes: options of `fan_in_out` for a matrix.
        padding: the row of an embedding that stays zero.
    """

    name: str
    parameter: Tensor
    role: str
    axes: Axes | None = None
    padding: int | None = None

    @property
    def fans(self) -> tuple[float, float]:
        """Fan-in and fan-out of a matrix."""
        return fan_in_out(self.parameter.shape, **(self.axes or Axes()))


def weight_roles(model: nn.Module) -> list[ParameterRole]:
    """The role of every parameter whose module is recognised, each parameter once.

    Raises:
        ValueError: a lazy layer does not know its shape yet.

    Example:
        >>> from torch import nn
        >>> [(one.name, one.role) for one in weight_roles(nn.Sequential(nn.Linear(2, 3)))]
        [('0.weight', 'matrix'), ('0.bias', 'zeros')]
    """
    names: dict[int, str] = {}
    for name, each in model.named_parameters():
        names[id(each)] = name
        if is_lazy(each):
            raise ValueError(f"{name} has no shape yet: run one batch through the model first")
    found: dict[int, ParameterRole] = {}
    for path, module in model.named_modules():
        for attribute, role, axes in _known(path, module):
            parameter = module._parameters.get(attribute)
            if parameter is None:  # absent, or computed from others
                continue
            name = names[id(parameter)]
            padding = getattr(module, "padding_idx", None) if role == "embedding" else None
            one = found.setdefault(
                id(parameter), ParameterRole(name, parameter, role, axes, padding)
            )
            if {one.role, role} >= {"matrix", "embedding"}:
                one.role = "tied"
            one.padding = padding if one.padding is None else one.padding
    return list(found.values())


def _known(path: str, module: nn.Module) -> Iterator[tuple[str, str, Axes | None]]:
    """(attribute, role, axes) of the parameters of one module."""
    if isinstance(module, nn.MultiheadAttention):
        yield "in_proj_weight", "matrix", {"parts": 3}
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            yield name, "matrix", {}
        yield "in_proj_bias", "zeros", None
    elif isinstance(module, nn.Linear):
        yield "weight", "matrix", {"parts": _parts(path, *module.weight.shape[:2])}
        yield "bias", "zeros", None
    elif (shape := _conv1d(module)) is not None:
        ins, outs = shape
        yield "weight", "matrix", {"layout": "linear_transposed", "parts": _parts(path, outs, ins)}
        yield "bias", "zeros", None
    elif isinstance(module, nn.modules.conv._ConvNd):
        layout = "conv_transposed" if module.transposed else "conv"
        axes: Axes = {"layout": layout, "groups": module.groups, "stride": module.stride}
        yield "weight", "matrix", axes
        yield "bias", "zeros", None
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        yield "weight", "embedding", None
    elif isinstance(module, NORMS) or type(module).__name__ == "T5LayerNorm":
        yield "weight", "ones", None
        yield "bias", "zeros", None


def _conv1d(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of transformers' Conv1D, whose weight is (in, out)."""
    weight = module._parameters.get("weight")
    if type(module).__name__ != "Conv1D" or weight is None or weight.ndim != 2:
        return None
    ins, outs = weight.shape
    return (ins, outs) if getattr(module, "nf", None) == outs else None


def _parts(path: str, outs: int, ins: int) -> int:
    """How many square matrices a packed layer holds; grouped keys and values do not divide."""
    packed = path.rpartition(".")[2] in PACKED
    return outs // ins if packed and ins and outs % ins == 0 and outs else 1
