r"""输入梯度惩罚与参数梯度惩罚的一个不等式 — both sides of the inequality, as numbers (S15)

How far the parameter gradient of a network bounds its input gradient, layer by layer.

Dense layers z_{t+1} = W_t h_t + b_t, h_{t+1} = phi_t(z_{t+1}), h_1 = x, J_t = ∂h_t/∂x, and for one
sample a differentiable scalar f of the last h, with delta_t = ∂f/∂z_{t+1}:

    ||∇_{W_t} f||_F² + ||∇_{b_t} f||² = ||delta_t||² (1 + ||h_t||²)                             (1)
    ||∇_x f|| = ||J_t^T W_t^T delta_t|| <= S_t ||delta_t||                                      (2)
    ||∇_x f||² · sum_t (1 + ||h_t||²) / S_t²  <=  ||∇_theta f||²                                (3)

    S_t = ||W_t||_F ||J_t||_F "fro"  >=  ||W_t||_2 ||J_t||_2 "spectral"  >=  ||W_t J_t||_2 "tight"

Without bias the 1 in (1) and (3) is left out. Layers with S_t = 0 are dropped: ∇_x f = 0 there.
Quotients ||∇_x f|| / S_t are formed before squaring, since squares of deep saturated networks
underflow. In any other network whose input enters one dense layer W_1 only (and nothing else
does), the term t = 1 of (3) with J_1 = I still holds: the "stem" bound.

(3) is about every sample by itself. The gradient of a *mean* loss obeys no such bound: sample
gradients may cancel, E||∇_theta f_i||² = ||∇_theta L||² + tr Cov.

Symbols: weight W, h, jacobian J.   Axes: B samples, L layers, d inputs.
Cost: one forward and backward pass for h and delta, d forward columns for J: O(B d params).
Source: article 8796, which proves (3) by components; arXiv 2111.15090 for what it is used for.
See also: `losses.gradient_penalty`, `losses.ghost_norm`, `analysis.implicit_regularisation`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.analysis.implicit_regularisation import ImplicitRegularisation
from kexue.losses.shift import frobenius_norm

__all__ = ["GradientInequality", "ImplicitRegularisation", "gradient_inequality"]

Norm = Literal["spectral", "fro", "tight"]
ELEMENTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
    nn.Tanhshrink, nn.Identity,
)  # fmt: skip


@dataclass(frozen=True)
class GradientInequality:
    """Both sides of (3) for every sample, and what they are made of.

    Args:
        names: of the dense layers.
        norm: how S_t was measured.
        stem: True if only the first dense layer could be used.
        value: f, (B,).
        input_gradient: ||∇_x f||, (B,).
        h: ||h_t||, (B, L).
        weight: ||W_t||, (L,); for "tight" the spectral norm.
        jacobian: ||J_t||, (B, L); for "tight" the spectral norm.
        size: S_t, (B, L).
        coefficient: (1 + ||h_t||²) / S_t², (B, L); 0 where dropped, inf where it overflows.
        layer_gradient: ||∇_{W_t} f||² + ||∇_{b_t} f||², (B, L).
        contribution: the left side's term of each layer, (B, L).
    """

    names: tuple[str, ...]
    norm: str
    stem: bool
    value: Tensor
    input_gradient: Tensor
    h: Tensor
    weight: Tensor
    jacobian: Tensor
    size: Tensor
    coefficient: Tensor
    layer_gradient: Tensor
    contribution: Tensor

    @property
    def left(self) -> Tensor:
        """The left side of (3), (B,)."""
        return self.contribution.sum(dim=1)

    @property
    def right(self) -> Tensor:
        """The right side of (3), (B,)."""
        return self.layer_gradient.sum(dim=1)

    @property
    def ratio(self) -> Tensor:
        """Left over right, at most 1, (B,); 0 where both vanish."""
        return torch.where(self.right > 0, self.left / self.right, 0.0)

    def table(self, sample: int = 0) -> list[dict[str, Any]]:
        """One row per layer of a sample, then a row with both sides."""
        rows: list[dict[str, Any]] = [
            {
                "layer": name,
                "h": self.h[sample, t].item(),
                "weight": self.weight[t].item(),
                "jacobian": self.jacobian[sample, t].item(),
                "coefficient": self.coefficient[sample, t].item(),
                "layer_gradient": self.layer_gradient[sample, t].item(),
                "contribution": self.contribution[sample, t].item(),
            }
            for t, name in enumerate(self.names)
        ]
        sides = {"left": self.left, "right": self.right, "ratio": self.ratio}
        return [*rows, {"layer": "all"} | {name: v[sample].item() for name, v in sides.items()}]

    def __str__(self) -> str:
        lines = [f"sample 0, {self.norm} norm" + (", stem only" if self.stem else "")]
        for row in self.table():
            cells = (f"{k} {v:.4g}" for k, v in row.items() if k != "layer")
            lines.append(f"{row['layer']}: " + ", ".join(cells))
        return "\n".join(lines)


def gradient_inequality(
    model: nn.Module,
    x: Float[Tensor, "*sizes"],
    f: Callable[[Tensor], Tensor],
    norm: Norm = "spectral",
    *,
    dtype: torch.dtype = torch.float64,
) -> GradientInequality:
    """Both sides of (3), sample by sample.

    Args:
        model: a Sequential of Linear and elementwise activations (also Flatten, and Dropout in
            eval mode): all layers. Any other network: the stem bound, if x enters one Linear.
        x: a batch, (B, …); one vector for a network whose first layer is dense.
        f: outputs -> one value per sample, (B,), or a scalar for a single sample; a loss or a
            logit, but not a mean over samples.
        norm: how sizes are measured; see the formulas.
        dtype: precision of a copy of the model in which everything is computed.

    Raises:
        ValueError: Dropout or batch normalisation in training mode; f is not per sample; x enters
            the network by any other way than one dense layer.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> both = gradient_inequality(net, torch.randn(5, 2), lambda out: out[:, 0])
        >>> bool((both.left <= both.right).all())
        True
    """
    if norm not in ("spectral", "fro", "tight"):
        raise ValueError(f'norm must be "spectral", "fro" or "tight", got {norm!r}')
    _check_eval(model)
    model, x = copy.deepcopy(model).to(dtype), x.detach().to(dtype)
    x = (x[None] if x.dim() == 1 else x).requires_grad_()
    for module in model.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010  # the hooks need z as it was
    chain = _chain(model)
    stem = chain is None
    calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def remember(module: nn.Module, args: Any, out: Tensor) -> None:
        calls.setdefault(module, []).append((args[0], out))

    hooks = [m.register_forward_hook(remember) for m in model.modules() if isinstance(m, nn.Linear)]
    with torch.enable_grad():
        value = f(model(x))
    for hook in hooks:
        hook.remove()
    value = value[None] if value.dim() == 0 and len(x) == 1 else value
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"f must give one value per sample, ({len(x)},), got shape {tuple(value.shape)}; the "
            "inequality does not hold for a mean"
        )
    names = {module: name for name, module in model.named_modules()}
    if chain is None:
        chain = [_stem(model, calls, x, names)]
    dense = [one for one in chain if isinstance(one, nn.Linear)]
    pairs = [calls[one][0] for one in dense]
    if len(pairs[0][0].shape) != 2:
        raise ValueError(
            f"{names[dense[0]] or 'the model'} works on {tuple(x.shape)}, many positions with one "
            "weight, where no bound holds in general; flatten x or give one position at a time"
        )
    slopes = torch.autograd.grad(
        value.sum(), [x, *(z for _, z in pairs)], allow_unused=True, materialize_grads=True
    )
    gradient, deltas = slopes[0].flatten(start_dim=1), slopes[1:]
    if stem:
        _check_stem(gradient, deltas[0] @ dense[0].weight, names[dense[0]])
    jacobians = _jacobians(chain, pairs, x)
    length = frobenius_norm(gradient, dim=1)
    columns = [
        _layer(layer, h.detach(), delta, J, length, norm)
        for layer, (h, _), delta, J in zip(dense, pairs, deltas, jacobians, strict=True)
    ]
    parts = {name: torch.stack([c[name] for c in columns], dim=-1) for name in columns[0]}
    return GradientInequality(
        names=tuple(names[one] or "model" for one in dense),
        norm=norm,
        stem=stem,
        value=value.detach(),
        input_gradient=length,
        **parts,
    )


def _layer(
    layer: nn.Linear, h: Tensor, delta: Tensor, J: Tensor, gradient: Tensor, norm: str
) -> dict[str, Tensor]:
    """The numbers of one dense layer for every sample."""
    W = layer.weight.detach()
    weight, jacobian = (_matrix_norm(one, norm) for one in (W[None], J))
    weight = weight[0]
    size = _matrix_norm(W @ J, norm) if norm == "tight" else weight * jacobian
    inputs = frobenius_norm(h, dim=1)
    bias = 1.0 if layer.bias is not None else 0.0
    root = (bias + inputs.square()).sqrt()
    safe = torch.where(size > 0, size, 1.0)
    return {
        "h": inputs,
        "weight": weight,
        "jacobian": jacobian,
        "size": size,
        "coefficient": torch.where(size > 0, (root / safe).square(), 0.0),
        "layer_gradient": (frobenius_norm(delta, dim=1) * root).square(),  # (1)
        "contribution": torch.where(size > 0, (root * (gradient / safe)).square(), 0.0),  # (2)
    }


def _matrix_norm(matrices: Tensor, norm: str) -> Tensor:
    if norm == "fro":
        return frobenius_norm(matrices.flatten(start_dim=1), dim=1)
    return cast(Tensor, torch.linalg.matrix_norm(matrices, ord=2))


def _jacobians(
    chain: list[nn.Module], pairs: list[tuple[Tensor, Tensor]], x: Tensor
) -> list[Tensor]:
    """J_t = ∂h_t/∂x for every dense layer, (B, width, d), by forward columns."""
    size = x[0].numel()
    J = torch.eye(size, dtype=x.dtype, device=x.device).expand(len(x), size, size)
    found, waiting, now = [], iter(pairs), x.detach().flatten(start_dim=1)
    for module in chain:
        if isinstance(module, nn.Linear):
            h, z = next(waiting)
            now = h.detach()
            found.append(J)
            J, now = module.weight.detach() @ J, z.detach()
        elif isinstance(module, ELEMENTWISE):
            z = now.clone().requires_grad_()
            with torch.enable_grad():
                out = module(z)
                (slope,) = torch.autograd.grad(out.sum(), z)
            J, now = slope.flatten(start_dim=1)[:, :, None] * J, out.detach()
    return found


def _chain(model: nn.Module) -> list[nn.Module] | None:
    """The layers in order if (3) covers the whole network, else None."""
    if isinstance(model, nn.Linear):
        return [model]
    if type(model) is not nn.Sequential:
        return None
    flat: list[nn.Module] = []
    for module in model:
        inner = _chain(module) if isinstance(module, nn.Sequential) else [module]
        flat += inner or []
        if inner is None:
            return None
    known = all(isinstance(one, (nn.Linear, nn.Flatten, nn.Dropout, *ELEMENTWISE)) for one in flat)
    dense = [one for one in flat if isinstance(one, nn.Linear)]
    own = [id(p) for one in dense for p in one.parameters()]
    return flat if known and dense and len(set(own)) == len(own) else None


def _stem(
    model: nn.Module, calls: dict[nn.Module, list[Any]], x: Tensor, names: dict[nn.Module, str]
) -> nn.Linear:
    way_out = "the stem bound needs x to enter one unshared nn.Linear, and nothing else"
    first = [one for one, pairs in calls.items() if any(h is x or _same(h, x) for h, _ in pairs)]
    if len(first) != 1:
        raise ValueError(f"x enters {len(first)} dense layers of {type(model).__name__}; {way_out}")
    layer = cast(nn.Linear, first[0])
    uses = [n for n, p in model.named_parameters(remove_duplicate=False) if p is layer.weight]
    if len(calls[layer]) > 1 or len(uses) > 1 or calls[layer][0][0].dim() != 2:
        raise ValueError(f"{names[layer]} is used more than once per sample; {way_out}")
    return layer


def _same(h: Tensor, x: Tensor) -> bool:
    return h.dim() == 2 and h.numel() == x.numel() and h.data_ptr() == x.data_ptr()


def _check_stem(gradient: Tensor, through: Tensor, name: str) -> None:
    if not torch.allclose(gradient, through, rtol=1e-4, atol=1e-6 * float(gradient.abs().max())):
        raise ValueError(
            f"x reaches f beside {name} too (a skip, a product, …), so no bound holds; pass the "
            "part of the network that x enters through one nn.Linear"
        )


def _check_eval(model: nn.Module) -> None:
    for name, module in model.named_modules():
        dropping = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        mixing = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if module.training and (dropping or mixing):
            raise ValueError(
                f"{name or 'the model'} ({type(module).__name__}) is in training mode; "
                "call model.eval() first"
            )
    if sum(1 for _ in model.parameters()) == 0:
        raise ValueError("the model has no parameters, so there is nothing to bound by")
