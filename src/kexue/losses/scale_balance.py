r"""L2正则没有想象那么好？可能是“权重尺度偏移”惹的祸 (S36): moving scale between layers

The same function with other norms: what an L2 penalty sees and the network does not.

    W_l → γ_l W_l,   b_l → (γ_1 ⋯ γ_l) b_l     ⇒     f → (Π γ_l) f                             (1)
    γ_l = (Π_k |W_k|)^{1/L} / |W_l|     makes all norms equal and Σ|W_l|² smallest:            (2)
    min over shifts of Σ|W_l|² = L (Π|W_l|)^{2/L}                                              (3)

For a chain of layers with positively homogeneous operations between them. The bias takes the
product of the factors up to its layer; the article has γ_l alone, right for l = 1 only.
Cost: a copy of the model. Sources: article 7681, arXiv 2008.02965. See also: `weissi`.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["balance_scales", "shift_scales"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
HOMOGENEOUS = (
    *(nn.ReLU, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
"""φ(cz) = c φ(z) for c ≥ 0."""


def shift_scales(model: nn.Sequential, gammas: Sequence[float]) -> nn.Sequential:
    """A copy whose layers are multiplied by γ_l and whose output by Π γ_l: (1).

    Args:
        model: Linear and convolution layers with homogeneous operations between them; sequences
            within the sequence are fine. After the last layer anything may follow, but the factor
            Π γ_l is that of the last layer's output.
        gammas: a positive factor for each layer.

    Raises:
        TypeError: something between the layers that is not homogeneous (it is named), or no
            `nn.Sequential`.
        ValueError: as many factors as layers are needed, all positive; a layer used twice.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> x = torch.randn(4, 2)
        >>> torch.allclose(shift_scales(net, [4.0, 0.25])(x), net(x), atol=1e-6)
        True
    """
    layers = _layers(model)
    gammas = [float(gamma) for gamma in gammas]
    if len(gammas) != len(layers):
        raise ValueError(f"{len(layers)} layers need as many gammas, got {len(gammas)}")
    if not all(0 < gamma < math.inf for gamma in gammas):
        raise ValueError(f"gammas must be positive numbers, got {gammas}")
    shifted = copy.deepcopy(model)
    so_far = 1.0
    with torch.no_grad():
        for layer, gamma in zip(_layers(shifted), gammas, strict=True):
            so_far *= gamma
            layer.weight.mul_(gamma)  # (1)
            if layer.bias is not None:
                layer.bias.mul_(so_far)  # (1)
    return shifted


def balance_scales(model: nn.Sequential) -> nn.Sequential:
    """A copy that computes the same with all weight norms equal: (2).

    Raises:
        TypeError, ValueError: as `shift_scales`; also a weight of zeros (it is named).

    Example:
        >>> net = balance_scales(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
        >>> torch.allclose(net[0].weight.norm(), net[2].weight.norm())
        True
    """
    norms = [float(layer.weight.detach().double().norm()) for layer in _layers(model)]
    if 0 in norms:
        raise ValueError(f"layer {norms.index(0)} of {len(norms)} has a weight of norm 0")
    mean = math.exp(sum(map(math.log, norms)) / len(norms))
    return shift_scales(model, [mean / norm for norm in norms])  # (2)


def _layers(model: nn.Sequential) -> list[nn.Linear]:
    """The layers in order, once everything between them is known to be homogeneous."""
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model must be an nn.Sequential, got {type(model).__name__}")
    chain = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, nn.Sequential)
    ]
    places = [i for i, (_, module) in enumerate(chain) if isinstance(module, LAYERS)]
    layers = [chain[i][1] for i in places]
    if not layers:
        raise ValueError("the model has no Linear or convolution layer to scale")
    weights = [layer.weight for layer in layers]
    if len(set(weights)) < len(weights):
        raise ValueError("a layer is used twice and cannot take two factors; untie it first")
    for name, module in chain[: places[-1]]:
        if not isinstance(module, (*LAYERS, *HOMOGENEOUS)):
            raise TypeError(
                f"{name} is a {type(module).__name__}, which is not positively homogeneous: the "
                "scale of the layer before it cannot be moved past it"
            )
    return layers
