r"""Why residuals? A view from update size — 为什么需要残差？一个来自DeepNet的视角 (S20)

How far one optimizer step moves the loss and the output of a network, against its depth.

Gradients of a deep plain stack can be kept at O(1) by initialisation; but one step of SGD then
moves the loss by the sum over all N layers, and so by O(N) ("update explosion"):

    dL ≈ −η |g|²  for a step −η g,     dL ≈ −η |g|₁  for a step −η sign g                     (1)
    |dF| = RMS of F(θ + dθ) − F(θ),    dθ one step of any optimizer                             (2)

The cure is a gradient of O(N^(−1/2)) per layer with signals still stable: a residual branch with a
small weight (`kexue.analysis.residual_weight`). `depth_sweep` shows (1) for any family of networks.

Symbols: depth N, rate η (`lr`), parameters θ, gradient g, loss L, output F.
Cost: (1) a forward and a backward pass and one more forward pass; (2) the same and a copy of the
parameters, buffers and optimizer state.
Source: article 8994; DeepNet, arXiv 2203.00555.
What we do differently: the article argues with (1); here it is measured beside the change that
really comes about, and nothing of the model is touched.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from inspect import Parameter, signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kexue.analysis.batch import arguments_of
from kexue.analysis.untouched import restore_buffers, saved_buffers, untouched
from kexue.losses.same_noise import SameNoise
from kexue.optim.wrapped import unwrapped

__all__ = [
    "DepthRow",
    "UpdateMagnitude",
    "depth_sweep",
    "update_magnitude",
    "update_norm",
]


@dataclass(frozen=True)
class UpdateMagnitude:
    """What one step does to the loss.

    Args:
        loss: before the step.
        squared_gradient: |g|², summed over all parameters.
        first_order: the change that the gradient predicts, (1).
        actual: the change that comes about.
    """

    loss: float
    squared_gradient: float
    first_order: float
    actual: float


@dataclass(frozen=True)
class DepthRow(UpdateMagnitude):
    """`UpdateMagnitude` of a network of `depth` layers; `pandas.DataFrame(rows)` takes a list."""

    depth: int


def update_magnitude(
    model: nn.Module,
    loss_fn: Callable[[Any], Tensor],
    batch: Any,
    optimizer_step: Literal["sgd", "sign"] = "sgd",
    lr: float = 1e-2,
) -> UpdateMagnitude:
    """The change of the loss in one step, predicted by (1) and measured, side by side.

    Everything happens in copies: `model` is only read. Both passes see the same dropout masks and
    buffers; autocast is off inside, and half precision is computed in float32.

    Args:
        model: the network, in the mode in which it is to be measured.
        loss_fn: what `model` returns -> a scalar loss; targets belong into it.
        batch: a tuple or list goes in as `model(*batch)`, a mapping as `model(**batch)`, anything
            else as `model(batch)`.
        optimizer_step: "sgd" steps by −lr·g, "sign" by −lr·sign g, as Adam does at first.
        lr: the rate η, positive; 1e-2 is the rate of our depth sweep.

    Raises:
        ValueError: an unknown step, a rate that is not positive, a loss that is not a scalar, or a
            model without trainable parameters.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False).double()
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> update = update_magnitude(layer, lambda out: out.sum(), one, lr=0.1)
        >>> round(update.first_order, 12), round(update.actual, 12)
        (-0.1, -0.1)
    """
    if optimizer_step not in ("sgd", "sign"):
        raise ValueError(f'optimizer_step must be "sgd" or "sign", got {optimizer_step!r}')
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    theta = {
        name: _widened(p.detach()).requires_grad_()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    if not theta:
        raise ValueError(f"{type(model).__name__} has no trainable parameter, so nothing can step")
    frozen = {n: _widened(p.detach()) for n, p in model.named_parameters() if n not in theta}
    device, batch = next(iter(theta.values())).device, _widened(batch)
    noise = SameNoise(device)

    def loss_at(point: Mapping[str, Tensor]) -> Tensor:
        buffers = {name: _widened(b.detach().clone()) for name, b in model.named_buffers()}
        args, kwargs = arguments_of(batch)
        with noise.replay():
            returned = functional_call(model, (dict(point), frozen, buffers), args, kwargs)
            return _scalar(loss_fn(returned)).double()

    with _full_precision(device), torch.enable_grad():  # twice: layers have faster ways without
        loss = loss_at(theta)
        found = torch.autograd.grad(loss, list(theta.values()), materialize_grads=True)
        gradient = [g.to_dense() if g.is_sparse else g for g in found]
        step = gradient if optimizer_step == "sgd" else [g.sign() for g in gradient]
        there = {n: p - lr * s for (n, p), s in zip(theta.items(), step, strict=True)}
        actual = loss_at(there).detach() - loss.detach()
    return UpdateMagnitude(
        loss=loss.item(),
        squared_gradient=_inner(gradient, gradient),
        first_order=-lr * _inner(gradient, step),  # (1)
        actual=actual.item(),
    )


def depth_sweep(
    factory: Callable[[int], nn.Module],
    depths: Iterable[int],
    loss_fn: Callable[[Any], Tensor],
    batch: Any,
    optimizer_step: Literal["sgd", "sign"] = "sgd",
    lr: float = 1e-2,
) -> list[DepthRow]:
    """`update_magnitude` at every depth.

    Args:
        factory: depth N -> a network of that depth. Networks that share their first layers differ
            by depth alone; build the deepest one once and slice it.
        depths: the depths N.
        loss_fn: see `update_magnitude`, as the rest.
        batch: the same for all depths.
        optimizer_step: "sgd" or "sign".
        lr: the same rate for all depths.

    Example:
        >>> layers = [nn.Linear(8, 8) for _ in range(4)]
        >>> rows = depth_sweep(
        ...     lambda depth: nn.Sequential(*layers[:depth]),
        ...     (1, 2, 4),
        ...     lambda out: out.square().mean(),
        ...     torch.ones(3, 8),
        ... )
        >>> [row.depth for row in rows], all(row.first_order < 0 for row in rows)
        ([1, 2, 4], True)
    """
    return [
        DepthRow(
            **asdict(update_magnitude(factory(depth), loss_fn, batch, optimizer_step, lr)),
            depth=depth,
        )
        for depth in depths
    ]


def update_norm(
    model: nn.Module,
    loss_fn: Callable[[Any], Tensor],
    batch: Any,
    optimizer: torch.optim.Optimizer,
    *,
    output: Callable[[Any], Tensor] | None = None,
) -> float:
    """How far one optimizer step moves what the model computes: (2).

    Takes the step, measures, and undoes it: parameters, gradients, buffers, modes, optimizer and
    random numbers are as before, to the bit. Both passes see the same dropout masks and the same
    buffers, so that the weights make all the difference. Autocast is off inside.

    Args:
        model: the network, in the mode in which it is to be measured.
        loss_fn: what `model` returns -> a scalar loss to step on.
        batch: a tuple or list goes in as `model(*batch)`, a mapping as `model(**batch)`, anything
            else as `model(batch)`; targets belong into `loss_fn`.
        optimizer: any torch optimizer over some or all parameters, fresh or in the middle of
            training; wrappers of Accelerate and Lightning are looked through. One whose `step`
            needs a closure gets it.
        output: what `model` returns -> the tensor F; the return value itself when None.

    Returns:
        The root of the mean square over all elements of F. Its error is the rounding of F, about
        1e-7 |F| in float32: for smaller steps give a model in float64.

    Raises:
        TypeError: F is not a floating tensor, or the optimizer is none.
        ValueError: F has no element, the loss is not a scalar or has no gradient.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> round(update_norm(layer, lambda out: out.sum(), torch.ones(1, 1), sgd), 4)
        0.1
    """
    inner, (args, kwargs) = unwrapped(optimizer), arguments_of(batch)
    buffers = saved_buffers(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def measured(returned: Any) -> Tensor:
        F = returned if output is None else output(returned)
        if not isinstance(F, Tensor) or not F.is_floating_point():
            given = f"{F.dtype} tensor" if isinstance(F, Tensor) else type(F).__name__
            raise TypeError(
                f"the output must be a floating tensor, got {given}; "
                "say which one to read by output=lambda returned: ..."
            )
        if F.numel() == 0:
            raise ValueError(f"the output has no element: shape {tuple(F.shape)}")
        return F.detach().double()

    with untouched(model, inner), torch.enable_grad(), _full_precision(device):
        noise = SameNoise(device)
        with noise.replay():
            returned = model(*args, **kwargs)
        before, loss = measured(returned), _scalar(loss_fn(returned))
        if not loss.requires_grad:
            raise ValueError("the loss depends on no trainable parameter, so nothing can step")

        def again() -> Tensor:
            inner.zero_grad()
            restore_buffers(buffers)
            with noise.replay():
                value = _scalar(loss_fn(model(*args, **kwargs)))
            value.backward()
            return value

        loss.backward()
        del returned, loss  # frees the graph before the second pass
        _step(inner, again)
        restore_buffers(buffers)
        with noise.replay():
            after = measured(model(*args, **kwargs))
    return (after - before).square().mean().sqrt().item()  # (2)


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn must give a scalar tensor, got {given}; take the mean")
    return loss.reshape(())


def _widened(value: Any) -> Any:
    """Half precision as float32, in a tensor or in a batch of them."""
    if isinstance(value, Tensor):
        half = value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value
    if isinstance(value, Mapping):
        return {key: _widened(one) for key, one in value.items()}
    return [_widened(one) for one in value] if isinstance(value, (tuple, list)) else value


def _inner(a: Iterable[Tensor], b: Iterable[Tensor]) -> float:
    """The inner product over all parameters, summed in float64."""
    return math.fsum((x.double() * y.double()).sum().item() for x, y in zip(a, b, strict=True))


def _step(optimizer: torch.optim.Optimizer, closure: Callable[[], Any]) -> None:
    wanted = signature(optimizer.step).parameters.get("closure")
    if wanted is not None and wanted.default is Parameter.empty:
        optimizer.step(closure)
    else:
        optimizer.step()


def _full_precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)
