r"""Per-sample parameter-gradient norms without per-sample gradients (S15)

||∇_theta f_i|| for every sample of a batch, from one backward pass. A dense layer z = W h + b has

    ∇_W f = delta h^T,   ||∇_W f||² = ||delta||² ||h||²,   ||∇_b f||² = ||delta||²               (1)

and over the tokens of a sample, with rows Delta (T, out) and H (T, in),

    ∇_W f = Delta^T H,   ||∇_W f||² = sum of (Delta Delta^T) ∘ (H H^T)                           (2)

An embedding is (2) with one-hot rows H; a convolution is (2) with its unfolded patches. Scale and
shift of a normalisation have small per-sample gradients of their own. Where 2 T² exceeds in · out,
Delta^T H itself is smaller than the two T × T tables, and is formed.

Symbols: h inputs, delta = ∂f/∂z.   Axes: B samples, T tokens (or positions).
Cost: one forward and backward pass plus O(B T² (in + out)) per layer; memory O(widths). `vmap` of
`torch.func.grad` needs B × parameters floats: 40 GB for 100 samples of 100 M parameters.
Source: (2) is the "ghost norm" of differentially private training, arXiv 2009.03106.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["per_sample_param_grad_norm"]

Pair = tuple[str, Tensor, Tensor]
"""("outer", H, Delta) or ("ids", ids, Delta) or ("whole", gradient, gradient)."""
DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.LayerNorm, nn.RMSNorm)


def per_sample_param_grad_norm(
    model: nn.Module,
    x: Any,
    y: Any,
    loss: Callable[[Any, Any], Tensor],
    *,
    squared: bool = False,
    create_graph: bool = False,
    method: Literal["ghost", "vmap"] = "ghost",
    chunk_size: int | None = None,
) -> Float[Tensor, " B"]:
    """||∇_theta f_i|| of every sample over all trainable parameters: (1), (2).

    Args:
        model: in eval mode, so that samples do not depend on each other.
        x: what the model takes: a tensor, a tuple of arguments or a mapping of keywords. Samples
            run along the first axis of every tensor.
        y: what the loss takes besides the outputs: a tensor, or anything with "ghost".
        loss: (outputs, y) -> one value per sample, (B,).
        squared: give the squares; these can be differentiated at 0.
        create_graph: keep the graph, to use the norms as a penalty.
        method: "ghost" for Linear, Conv1d, Conv2d (one group), Embedding, LayerNorm, RMSNorm;
            "vmap" for any other network `torch.func` can run, at B × parameters of memory.
        chunk_size: samples at a time for "vmap".

    Returns:
        Norms in float32 or better.

    Raises:
        ValueError: a trainable parameter that "ghost" does not know how to treat, by name; values
            that are not one per sample; batch normalisation in training mode.

    Example:
        >>> linear = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> per_sample_param_grad_norm(linear, x, None, lambda out, _: 2 * out[:, 0])
        tensor([10.,  2.])
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(f"{name} mixes the samples of a batch; call model.eval() first")
    if method == "vmap":
        squares = _vmap_squares(model, x, y, loss, chunk_size)
    elif method == "ghost":
        squares = _ghost_squares(model, x, y, loss, create_graph)
    else:
        raise ValueError(f'method must be "ghost" or "vmap", got {method!r}')
    return squares if squared else squares.sqrt()


def _call(model: Callable[..., Any], x: Any) -> Any:
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def _ghost_squares(
    model: nn.Module, x: Any, y: Any, loss: Callable[[Any, Any], Tensor], create_graph: bool
) -> Tensor:
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    leaves = torch.utils._pytree.tree_leaves(x)
    samples = next((len(one) for one in leaves if isinstance(one, Tensor) and one.dim()), 0)

    def remember(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            given = args[0]
            if isinstance(module, nn.Embedding) and len(out) == 1 < samples:  # positions, shared
                given, out = (one.expand(samples, *one.shape[1:]) for one in (given, out))
            calls.append((name, module, given, out))
            return out

        return hook

    hooks = [
        module.register_forward_hook(remember(name))
        for name, module in model.named_modules()
        if _known(module) and any(p.requires_grad for p in module.parameters(recurse=False))
    ]
    try:
        with torch.enable_grad():
            values = loss(_call(model, x), y)
    finally:
        for hook in hooks:
            hook.remove()
    if values.dim() != 1:
        raise ValueError(
            f"the loss must give one value per sample, (B,), got shape {tuple(values.shape)}; "
            'use reduction="none"'
        )
    _check_uses(model, values, calls)
    deltas = torch.autograd.grad(
        values.sum(), [out for *_, out in calls], create_graph=create_graph, allow_unused=True
    )
    uses: dict[int, list[Pair]] = defaultdict(list)
    for (name, module, given, out), delta in zip(calls, deltas, strict=True):
        if delta is not None:
            if len(out) != len(values):
                raise ValueError(
                    f'{name} sees {len(out)} rows for {len(values)} samples; use method="vmap"'
                )
            for parameter, pair in _pairs(module, given, delta):
                if parameter.requires_grad:
                    uses[id(parameter)].append(pair)
    total = values.new_zeros(len(values), dtype=_wide(values.dtype))
    names = {id(p): name for name, p in model.named_parameters()}
    for key, pairs in uses.items():
        total = total + _square(pairs, names[key])
    return total if create_graph else total.detach()


def _known(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return not module.scale_grad_by_freq and module.max_norm is None
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return isinstance(module, (*DENSE, *NORMS))


def _check_uses(model: nn.Module, values: Tensor, calls: list[Any]) -> None:
    """Every use of a trainable parameter in the graph must be one that a hook has seen."""
    seen: dict[int, int] = defaultdict(int)
    for _, module, _, out in calls:
        if out.requires_grad:
            for p in module.parameters(recurse=False):
                seen[id(p)] += 1
    used: dict[int, int] = defaultdict(int)
    waiting, visited = [values.grad_fn], {values.grad_fn}
    while waiting:
        for parent, _ in waiting.pop().next_functions:  # type: ignore[union-attr]
            if (leaf := getattr(parent, "variable", None)) is not None:
                used[id(leaf)] += 1
            if parent is not None and parent not in visited:
                visited.add(parent)
                waiting.append(parent)
    for name, p in model.named_parameters():
        if p.requires_grad and used[id(p)] > seen[id(p)]:
            raise ValueError(
                f"parameter {name} is used outside Linear, Conv1d, Conv2d, Embedding, LayerNorm "
                'and RMSNorm modules (or with groups, max_norm, …); use method="vmap", or freeze it'
            )


def _pairs(module: nn.Module, given: Tensor, delta: Tensor) -> list[tuple[Tensor, Pair]]:
    """What the gradients of a module's own parameters are made of, for one call."""
    delta = delta.to(_wide(delta.dtype))
    if isinstance(module, nn.Embedding):
        ids = given.reshape(len(given), -1)
        delta = delta.reshape(*ids.shape, delta.shape[-1])
        if module.padding_idx is not None:
            delta = delta.masked_fill((ids == module.padding_idx)[..., None], 0.0)
        return [(module.weight, ("ids", ids, delta))]
    given = given.to(delta.dtype)
    found: list[tuple[Tensor, Pair]] = []
    if isinstance(module, NORMS):
        own = module.normalized_shape
        if isinstance(module, nn.LayerNorm):
            unit = F.layer_norm(given, own, eps=module.eps)
        else:
            unit = F.rms_norm(given, own, eps=module.eps)
        parts = {"weight": delta * unit, "bias": delta}
        for name, p in module.named_parameters(recurse=False):
            whole = parts[name].reshape(len(given), -1, p.numel()).sum(dim=1)  # (B, P)
            found.append((p, ("whole", whole, whole)))
        return found
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        given, delta = _patches(module, given, delta)
    elif isinstance(module, nn.Linear):
        given, delta = (one.reshape(len(one), -1, one.shape[-1]) for one in (given, delta))
    found.append((module.weight, ("outer", given, delta)))  # type: ignore[arg-type]
    if module.bias is not None:
        whole = delta.sum(dim=1)  # (B, out)
        found.append((module.bias, ("whole", whole, whole)))  # type: ignore[arg-type]
    return found


def _patches(module: nn.Conv1d | nn.Conv2d, given: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    sizes = [tuple(v) for v in (module.kernel_size, module.stride, module.dilation)]
    given = F.pad(given, module._reversed_padding_repeated_twice)  # (left, right) per axis
    if isinstance(module, nn.Conv1d):
        given, delta = given.unsqueeze(2), delta.unsqueeze(2)
        sizes = [(1, *v) for v in sizes]
    kernel, stride, dilation = sizes
    rows = F.unfold(given, kernel, dilation=dilation, stride=stride)  # (B, in · k, T)
    return rows.transpose(1, 2), delta.flatten(2).transpose(1, 2)  # (B, T, in · k), (B, T, out)


def _square(pairs: list[Pair], name: str) -> Tensor:
    """The squared norm of one parameter's gradient, over all its uses."""
    kinds = {kind for kind, *_ in pairs}
    if len(kinds) > 1:
        raise ValueError(
            f"parameter {name} is tied between an embedding and another layer; "
            'use method="vmap", or untie them'
        )
    if kinds == {"whole"}:
        return torch.stack([grad for _, grad, _ in pairs]).sum(dim=0).square().sum(dim=1)
    given = torch.cat([one for _, one, _ in pairs], dim=1)  # uses of one weight are more tokens
    delta = torch.cat([one for *_, one in pairs], dim=1)  # (B, T, out)
    if kinds == {"ids"}:
        same = given[:, :, None] == given[:, None, :]  # (B, T, T): H H^T of one-hot rows
        return (torch.bmm(delta, delta.transpose(1, 2)) * same).sum(dim=(1, 2))  # (2)
    tokens, width = given.shape[1:]
    if tokens == 1:
        return given.square().sum(dim=(1, 2)) * delta.square().sum(dim=(1, 2))  # (1)
    if 2 * tokens**2 > width * delta.shape[2]:
        return torch.bmm(delta.transpose(1, 2), given).square().sum(dim=(1, 2))
    inner = torch.bmm(delta, delta.transpose(1, 2)) * torch.bmm(given, given.transpose(1, 2))
    return inner.sum(dim=(1, 2))  # (2)


def _vmap_squares(
    model: nn.Module, x: Any, y: Any, loss: Callable[[Any, Any], Tensor], chunk_size: int | None
) -> Tensor:
    params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def value(weights: dict[str, Tensor], x: Any, y: Any) -> Tensor:
        x, y = torch.utils._pytree.tree_map(lambda one: one.unsqueeze(0), (x, y))

        def run(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, weights, args, kwargs)

        return loss(_call(run, x), y).squeeze(0)

    grads = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0), chunk_size=chunk_size)(
        params, x, y
    )
    rows = [g.to(_wide(g.dtype)).flatten(start_dim=1).square().sum(dim=1) for g in grads.values()]
    return torch.stack(rows).sum(dim=0)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
