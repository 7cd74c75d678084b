r"""L2正则没有想象那么好？可能是“权重尺度偏移”惹的祸 (S36)

WEISSI: penalise the product of layer norms, which shifting scale between layers cannot lower.

With φ positively homogeneous, φ(cz) = c φ(z) for c ≥ 0 (ReLU, leaky ReLU, max-pooling), and layers
h_l = φ(W_l h_{l−1} + b_l), the shift W_l → γ_l W_l, b_l → (γ_1 ⋯ γ_l) b_l multiplies the output by
Π γ_l. If Π γ_l = 1 the function is the same, but Σ|W_l|² is not: an L2 penalty is partly lowered by
moving scale between layers, which changes nothing. The logarithm is the only function of the norms
whose gradient flow does not see the shift:

    R = λ1 Σ_l log |W_l|  +  λ2 Σ_l |W_l|₁ / |W_l|                                             (1)
    ∂R/∂W = λ1 W/|W|²  +  λ2 (sign(W)/|W| − |W|₁ W/|W|³)                                       (2)
    P = λ Π_l |W_l|²,   ∂P/∂W_l = 2P W_l/|W_l|², so (1) with λ1 replaced by 2P                 (3)

The first term of (1) is size, the second the sparsity of the direction; |·| is the Frobenius norm
over all entries of a weight tensor, biases apart. For 1-Lipschitz φ, |∂f/∂x| ≤ Π|W_l|.
Every layer has the same budget: d|W|²/dt = −2λ1 whatever its size, so (1) never balances layers and
reaches |W| = 0 in finite time where the loss does not resist. A layer before a normalisation is not
resisted (its scale does nothing), so such layers are left out.

Symbols: weights W, gradient of R (2), factors γ (`scale_balance`), coefficients lambda1, lambda2.
Cost: one pass over the weights and one gradient tensor per layer; `kexue.optim.weissi_decay` is
cheaper, and right under Adam.
Sources: arXiv 2008.02965; article 7681, which derives the logarithm. Unlike the article, b_l takes
the product of the factors up to l, not γ_l alone. See also: decoupled weight decay (AdamW).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["product_penalty", "weissi_parameters", "weissi_penalty"]

Named = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
NORMALISATIONS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,
)


def weissi_parameters(
    model: nn.Module,
    selection: str | Sequence[str] = "free",
    *,
    example: Any = None,
) -> dict[str, nn.Parameter]:
    """The weights to penalise, by name: Linear and convolution layers, as `selection` says.

    Args:
        model: any module.
        selection: "free", the default: layers whose scale matters, that is those not followed by a
            normalisation; what has no parameters between the two (activation, pooling, dropout) is
            looked past. "all": every Linear and convolution. Otherwise regular expressions: every
            parameter in whose name one of them is found, whatever its layer.
        example: an input, or a tuple of inputs. The model is run on it once, without gradients, and
            its layers follow each other as they are called. None: as they are registered, which is
            the same in sequential models and in most others.

    Returns:
        Name → parameter; a shared one once.

    Raises:
        ValueError: an expression that fits no name, or nothing found at all.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> list(weissi_parameters(net)), list(weissi_parameters(net, "all"))
        (['3.weight'], ['0.weight', '3.weight'])
    """
    named = dict(model.named_parameters())
    if not isinstance(selection, str):
        return _by_pattern(named, selection)
    if selection not in ("free", "all"):
        raise ValueError(
            f'selection must be "free", "all" or a list of regular expressions, got {selection!r}'
        )
    leaves = _leaves(model) if example is None else _called(model, example)
    chosen: set[Tensor] = set()
    normalised: set[Tensor] = set()
    for place, layer in enumerate(leaves):
        if isinstance(layer, LAYERS):
            before_norm = selection == "free" and _meets_normalisation(leaves[place + 1 :])
            (normalised if before_norm else chosen).add(layer.weight)
    found = {name: p for name, p in named.items() if p in chosen - normalised}
    if not found:
        raise ValueError(
            f"no weight of this {type(model).__name__} is selected: it has no Linear or "
            "convolution, or each is followed by a normalisation, where the penalty would only "
            'raise the effective learning rate; name others with selection=["…"]'
        )
    return found


def weissi_penalty(
    parameters: Named,
    lambda1: float,
    lambda2: float = 0.0,
    *,
    eps: float = 0.0,
) -> Float[Tensor, ""]:
    """R of (1), to be added to a loss.

    Args:
        parameters: a module, of which `weissi_parameters` are taken, or names with tensors.
        lambda1: coefficient of the log norms. No published value; |W|² times the weight decay that
            works is the same pull at the start.
        lambda2: coefficient of the directions' sparsity.
        eps: norms are sqrt(|W|² + eps²). 0 is (1) itself and refuses a weight of zeros.

    Returns:
        The penalty in float32, or float64 for weights in float64.

    Raises:
        ValueError: a negative coefficient; a weight of zeros while eps is 0 (it is named).
        TypeError: what is given are no named tensors.

    Example:
        >>> import torch
        >>> weights = {"a": torch.tensor([[1.0, 2.0], [-0.5, 0.5]]), "b": torch.tensor([0.3, -0.4])}
        >>> round(weissi_penalty(weights, 1.0).item(), 6)
        0.159227
        >>> round(weissi_penalty(weights, 0.0, 1.0).item(), 6)  # 1.7056 + 1.4
        3.105606
    """
    for name, value in (("lambda1", lambda1), ("lambda2", lambda2), ("eps", eps)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a number of at least 0, got {value}")
    weights = _named(parameters)
    squares = torch.stack([_wide(w).square().sum() for w in weights.values()]) + eps**2  # (L)
    if eps == 0:
        _refuse_zeros(weights, squares)
    penalty = lambda1 / 2 * squares.log().sum()  # (1), the size
    if lambda2:
        lengths = torch.stack([_wide(w).abs().sum() for w in weights.values()])
        penalty = penalty + lambda2 * (lengths / squares.sqrt()).sum()  # (1), the direction
    return penalty


def product_penalty(parameters: Named, coef: float = 1.0) -> Float[Tensor, ""]:
    """P of (3): strong while the network is large, weaker as the product falls.

    Args:
        parameters: as for `weissi_penalty`; a weight of zeros makes P zero and is allowed.
        coef: λ.

    Raises:
        ValueError: a negative coefficient; a product beyond the numbers of its dtype.
        TypeError: what is given are no named tensors.

    Example:
        >>> import torch
        >>> product_penalty({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([2.0])}).item()
        100.0
    """
    if not 0 <= coef < float("inf"):
        raise ValueError(f"coef must be a number of at least 0, got {coef}")
    weights = _named(parameters)
    product = torch.stack([_wide(w).square().sum() for w in weights.values()]).prod()  # (3)
    if not torch.compiler.is_compiling() and product.device.type == "cpu" and product.isinf():
        raise ValueError(
            f"the product of {len(weights)} squared norms is beyond {product.dtype}; use "
            "weissi_penalty, its logarithm"
        )
    return coef * product


def _wide(tensor: Tensor) -> Tensor:
    """In float32 or better, whatever autocast says of the rest."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _named(parameters: Named) -> dict[str, Tensor]:
    if isinstance(parameters, nn.Module):
        return dict(weissi_parameters(parameters))
    pairs = list(parameters.items() if isinstance(parameters, Mapping) else parameters)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Tensor)):
            raise TypeError(
                f"parameters must be a module or names with tensors, got {type(pair).__name__} "
                "among them: pass model.named_parameters() or weissi_parameters(model)"
            )
    if not pairs:
        raise ValueError("there is no weight to penalise: parameters is empty")
    return dict(pairs)


def _refuse_zeros(weights: Mapping[str, Tensor], squares: Tensor) -> None:
    """One look at all norms together, on a CPU; elsewhere log 0 shows as −inf."""
    if torch.compiler.is_compiling() or squares.device.type != "cpu":
        return
    if (squares == 0).any():
        name = list(weights)[int((squares == 0).nonzero()[0])]
        raise ValueError(
            f"{name} of shape {tuple(weights[name].shape)} has norm 0, whose logarithm is −inf; "
            "leave it out, or set eps above 0"
        )


def _by_pattern(named: Mapping[str, nn.Parameter], patterns: Sequence[str]) -> dict[str, Any]:
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in named):
            some = ", ".join(list(named)[:4])
            raise ValueError(f"no parameter's name fits {pattern!r}; the names are {some}, …")
    return {n: p for n, p in named.items() if any(re.search(one, n) for one in patterns)}


def _leaves(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if not any(True for _ in module.children())]


def _called(model: nn.Module, example: Any) -> list[nn.Module]:
    """The innermost modules in the order in which one run calls them."""
    order: list[nn.Module] = []
    hooks = [one.register_forward_pre_hook(lambda m, _: order.append(m)) for one in _leaves(model)]
    training = [module for module in model.modules() if module.training]
    model.eval()  # a normalisation must not take the example into its statistics
    try:
        with torch.no_grad():
            model(*example if isinstance(example, tuple) else (example,))
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    return order


def _meets_normalisation(following: Iterable[nn.Module]) -> bool:
    """Whether a normalisation comes before anything that has parameters."""
    for module in following:
        if isinstance(module, NORMALISATIONS) or "Norm" in type(module).__name__:
            return True
        if any(True for _ in module.parameters()):
            return False
    return False
