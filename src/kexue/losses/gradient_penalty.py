r"""输入梯度惩罚与参数梯度惩罚的一个不等式 — gradient penalties (S15)

The squared length of a gradient as a term of the loss: smoothness in x, flat minima in theta.

    ||∇_x f||²                   of one value, or of every sample of a batch                    (1)
    ||∇_theta L||²               of the batch's loss; (1/n) sum_i ||∇_theta f_i||² is larger    (2)
    L + coef · ||∇_E L||²        E the embedding table, the article's usage with coef = 1/2     (3)
    grad ||g||² = 2 H g ≈ (2 ||g|| / epsilon) (∇L(theta + epsilon g/||g||) − ∇L(theta))         (4)

(1) to (3) differentiate twice. (4) needs two plain backward passes instead: for fused attention,
compiled models, or memory; its error is O(epsilon). An adversarial step (`losses.adversarial`) is
the same shift with the loss itself: L(E + epsilon g/||g||) ≈ L + epsilon ||g||.

Symbols: value f or L, wrt x or theta, embedding E.   Axes: B samples.
Cost: (1)–(3) about three plain backward passes; (4) two forward and two backward passes.
Source: arXiv 2009.11162, 2111.15090; article 8796. The author's script squares the gradient of each
looked-up token (`at="lookups"`); a penalty on the table adds up repeated tokens first.
See also: `losses.ghost_norm` for per-sample norms over parameters, `analysis.inequality`.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.losses.ghost_norm import per_sample_param_grad_norm
from kexue.losses.reduction import Reduced, check_reduction, reduced
from kexue.losses.same_noise import SameNoise
from kexue.losses.second_derivative import twice_differentiable_grad
from kexue.losses.shift import frobenius_norm, shifted, unit_step

__all__ = [
    "EmbeddingGradientPenalty",
    "finite_difference_backward",
    "gradient_penalty",
    "input_gradient_norm",
    "per_sample_param_grad_norm",
]


def gradient_penalty(
    value: Float[Tensor, "*batch"],
    wrt: Tensor | nn.Module | Iterable[Tensor],
    *,
    scale: float | Tensor = 1.0,
    reduction: Literal["mean", "sum", "none", "sum_and_count"] = "mean",
    weight: Tensor | None = None,
) -> Reduced:
    """The squared length of the gradient of `value`, ready to be differentiated again: (1), (2).

    Args:
        value: a scalar; or one value per sample, (B,), each of which depends on its own row of
            every tensor in `wrt` alone (no batch normalisation in training mode).
        wrt: inputs, embeddings or parameters; a module stands for its trainable parameters. For a
            scalar all tensors count together; a tensor that `value` does not use counts 0.
        scale: the gradient is taken of scale · value and divided by it afterwards, so that small
            float16 gradients survive: `scaler.get_scale()`.
        reduction: over the samples; a scalar is one sample.
        weight: how much each sample counts, (B,).

    Returns:
        The penalty, in float32 or better.

    Raises:
        ValueError: nothing to differentiate by, or `value` depends on none of it; (B,) values with
            a parameter or a tensor of another leading size.
        RuntimeError: an operation on the way has no second derivative; the message says which
            attention implementation to choose.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [0.0, 3.0]], requires_grad=True)
        >>> penalty = gradient_penalty(x.square().sum(1), x, reduction="none")
        >>> penalty
        tensor([20., 36.], grad_fn=<AddBackward0>)
        >>> torch.autograd.grad(penalty.sum(), x)[0]  # 8 x
        tensor([[ 8., 16.],
                [ 0., 24.]])
    """
    check_reduction(reduction)
    tensors = _tensors(wrt)
    if value.dim() > 1:
        raise ValueError(
            f"value must be a scalar or one value per sample, got shape {tuple(value.shape)}; "
            "sum the last axes first"
        )
    if value.dim() == 1:
        _check_rows(tensors, len(value))
        if weight is not None:
            value = value.masked_fill(weight == 0, 0.0)
    total = value.sum() * scale
    squares = None
    for grad in twice_differentiable_grad(total, tensors):
        if grad is not None:
            grad = grad.to(torch.promote_types(grad.dtype, torch.float32)) / scale
            square = grad.square().flatten(start_dim=value.dim()).sum(dim=-1)  # (1), (2)
            squares = square + (0.0 if squares is None else squares)
    if squares is None:
        raise ValueError("value does not depend on any tensor of wrt; was it computed from them?")
    return reduced(squares, reduction, weight)


def input_gradient_norm(
    model: Callable[[Tensor], Any],
    x: Float[Tensor, "B ..."],
    y: Any,
    loss: Callable[[Any, Any], Tensor],
) -> Float[Tensor, " B"]:
    """||∇_x f_i|| of every sample, to look at (no graph is kept).

    Args:
        model: maps x to outputs, sample by sample: put it into eval mode.
        x: floating inputs, or embeddings.
        y: whatever the loss takes besides the outputs.
        loss: (outputs, y) -> one value per sample, (B,).

    Raises:
        ValueError: the loss gives anything but one value per sample.

    Example:
        >>> x, y = torch.tensor([[3.0, 4.0]]), torch.tensor([0.0])
        >>> input_gradient_norm(lambda x: x.norm(dim=1), x, y, lambda out, y: 2 * (out - y))
        tensor([2.])
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        values = loss(model(x), y)
        if values.shape != x.shape[:1]:
            raise ValueError(
                f"the loss must give one value per sample, ({len(x)},), got shape "
                f'{tuple(values.shape)}; use reduction="none"'
            )
        (grad,) = torch.autograd.grad(values.sum(), x)
    return frobenius_norm(grad.flatten(start_dim=1), dim=1)


def finite_difference_backward(
    closure: Callable[[], Tensor],
    parameters: Iterable[Tensor],
    *,
    wrt: Tensor | Iterable[Tensor] | None = None,
    coef: float = 0.5,
    epsilon: float = 1e-2,
    scale: float | Tensor = 1.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Adds the gradient of L + coef · ||∇_wrt L||² to `.grad` by two plain backward passes: (4).

    Both passes drop the same units: the random states are played again. Under DDP the penalty is
    that of the whole batch, since every pass averages its gradients.

    Args:
        closure: computes the loss, a scalar, without calling backward; is called twice.
        parameters: what is trained; gradients already in `.grad` stay and are added to.
        wrt: what is penalised and therefore shifted, such as `embedding.weight`; must be among
            the parameters. None: all of them.
        coef: weight of the penalty; 0.5 in the author's script.
        epsilon: length of the shift. Too small drowns in rounding, too large bends; 1e-2 fits
            float32 weights. bfloat16 and float16 weights cannot be shifted so finely.
        scale: `.grad` gets everything times this: `scaler.get_scale()` with a GradScaler.

    Returns:
        The loss and ||∇_wrt L||², detached. Where the gradient is zero or not finite, nothing is
        shifted and the penalty adds nothing.

    Raises:
        ValueError: epsilon not positive, `wrt` not among the parameters or of less than float32.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> loss, penalty = finite_difference_backward(lambda: w.square().sum(), [w])
        >>> loss, penalty, w.grad  # 2 w + 0.5 · 8 w
        (tensor(5.), tensor(20.), tensor([ 6.0000, 12.0000]))
    """
    if epsilon <= 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    params = [p for p in parameters if p.requires_grad]
    penalised = params if wrt is None else _tensors(wrt)
    known = {id(p) for p in params}
    for p in penalised:
        if id(p) not in known:
            raise ValueError(f"a tensor of wrt, shape {tuple(p.shape)}, is not in parameters")
        if torch.finfo(p.dtype).bits < 32:
            raise ValueError(
                f"a tensor of wrt has dtype {p.dtype}, too coarse for a shift of {epsilon}; keep "
                "float32 weights and use autocast"
            )
    noise = SameNoise(params[0].device)
    before, found = [p.grad for p in params], []
    loss = _fresh_backward(closure, params, scale)
    found.append([p.grad for p in params])
    slopes = [p.grad for p in penalised]
    step, length = unit_step(slopes, epsilon)
    length = length / scale
    with noise.replay(), shifted(penalised, step):
        _fresh_backward(closure, params, scale)
    found.append([p.grad for p in params])
    factor = torch.where(torch.isfinite(length), 2 * coef * length / epsilon, 0.0)
    for p, old, here, there in zip(params, before, *found, strict=True):
        p.grad = old
        if here is not None:
            there = here if there is None else there
            grad = here + torch.where(factor > 0, factor * (there - here), 0.0).to(p.dtype)  # (4)
            p.grad = grad if old is None else old + grad
    return loss, length.square()


class EmbeddingGradientPenalty:
    """coef · ||∇_E L||² for an embedding table: (3).

        penalty = EmbeddingGradientPenalty(model.get_input_embeddings())
        loss = task_loss(model, batch)
        (loss + penalty(loss)).backward()

    Args:
        embedding: the module with the table as `weight`, or the table.
        coef: weight; 0.5 in the author's script.
        normalize: None for the sum over the table; "per_token" divides it by the number of rows
            (or lookups) with a gradient, so that long batches do not weigh more.
        at: "table" adds the gradients of repeated tokens before squaring; "lookups" squares that
            of every occurrence, as the author's script does, and needs the module: its outputs
            are remembered from the forward pass to the call. `remove()` ends that.

    Raises:
        ValueError: no weight, a frozen one, an unknown option, coef negative.

    Example:
        >>> table = nn.Embedding.from_pretrained(torch.ones(3, 2), freeze=False)
        >>> loss = table(torch.tensor([0, 1, 1])).square().sum() / 2
        >>> EmbeddingGradientPenalty(table)(loss)  # rows 1, 2, 0 times (1, 1)
        tensor(5., grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        embedding: nn.Module | nn.Parameter,
        coef: float = 0.5,
        normalize: Literal["per_token"] | None = None,
        *,
        at: Literal["table", "lookups"] = "table",
    ) -> None:
        if coef < 0:
            raise ValueError(f"coef must not be negative, got {coef}")
        if normalize not in (None, "per_token"):
            raise ValueError(f'normalize must be None or "per_token", got {normalize!r}')
        if at not in ("table", "lookups"):
            raise ValueError(f'at must be "table" or "lookups", got {at!r}')
        if at == "lookups" and not isinstance(embedding, nn.Module):
            raise ValueError('at="lookups" needs the embedding module, got its table alone')
        self.weight = table_of(embedding)
        self.coef, self.normalize = coef, normalize
        self._lookups: list[Tensor] = []
        self._hook = None
        if at == "lookups":
            self._hook = cast(nn.Module, embedding).register_forward_hook(self._remember)

    def __call__(self, loss: Float[Tensor, ""], *, scale: float | Tensor = 1.0) -> Tensor:
        """The penalty of a scalar loss, of which the graph stays; see `gradient_penalty`."""
        wrt, self._lookups = self._lookups or [self.weight], []
        if self._hook is not None and wrt[0] is self.weight:
            raise ValueError("the embedding was not looked up since the last call, with gradients")
        if self.normalize is None:
            return self.coef * cast(Tensor, gradient_penalty(loss, wrt, scale=scale))  # (3)
        rows = [
            (grad.to(torch.promote_types(grad.dtype, torch.float32)) / scale).square().sum(dim=-1)
            for grad in twice_differentiable_grad(loss * scale, wrt)
            if grad is not None
        ]
        tokens = torch.cat([row.flatten() for row in rows]) if rows else loss.new_zeros(1)
        return self.coef * tokens.sum() / (tokens.detach() > 0).sum().clamp(min=1)

    def remove(self) -> None:
        """Stop remembering lookups."""
        if self._hook is not None:
            self._hook.remove()
        self._lookups = []

    def _remember(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            self._lookups.append(output)


def table_of(embedding: nn.Module | nn.Parameter) -> nn.Parameter:
    """The table of an embedding module, or the table itself.

    Raises:
        ValueError: no parameter called `weight`, or a frozen one.
    """
    weight = (
        embedding if isinstance(embedding, nn.Parameter) else getattr(embedding, "weight", None)
    )
    if not isinstance(weight, nn.Parameter):
        raise ValueError(
            f"{type(embedding).__name__} has no parameter called weight; give the embedding "
            "module (model.get_input_embeddings() in Hugging Face models) or its table"
        )
    if not weight.requires_grad:
        raise ValueError("the embedding table is frozen (requires_grad=False): it has no gradient")
    return weight


def _fresh_backward(
    closure: Callable[[], Tensor], params: list[Tensor], scale: float | Tensor
) -> Tensor:
    for p in params:
        p.grad = None
    with torch.enable_grad():
        loss = closure()
    (loss * scale).backward()
    return loss.detach()


def _tensors(wrt: Tensor | nn.Module | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(wrt, nn.Module):
        tensors: list[Tensor] = [p for p in wrt.parameters() if p.requires_grad]
    else:
        tensors = [wrt] if isinstance(wrt, Tensor) else list(wrt)
    if not tensors:
        raise ValueError("wrt holds no tensor that requires a gradient")
    for index, tensor in enumerate(tensors):
        if not tensor.requires_grad:
            raise ValueError(
                f"tensor {index} of wrt, shape {tuple(tensor.shape)}, does not require a gradient; "
                "call requires_grad_() before the forward pass"
            )
    return tensors


def _check_rows(tensors: list[Tensor], rows: int) -> None:
    for index, tensor in enumerate(tensors):
        if isinstance(tensor, nn.Parameter) or tensor.shape[:1] != (rows,):
            kind = "parameter" if isinstance(tensor, nn.Parameter) else "tensor"
            raise ValueError(
                f"value has one entry for each of {rows} samples, but {kind} {index} of wrt has "
                f"shape {tuple(tensor.shape)}: every row must belong to one sample. Give a scalar "
                "value, or use per_sample_param_grad_norm for parameters"
            )
