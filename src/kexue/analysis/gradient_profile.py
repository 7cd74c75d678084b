"""模型优化漫谈：BERT的初始标准差为什么是0.02？ — the gradient against depth (S06).

One backward pass through the blocks h_0 → h_1 → … → h_N of a Transformer:

    ‖∂L/∂h_l‖              what vanishes or explodes towards the input                          (1)
    ‖∂L/∂θ_l‖              the gradient of all parameters of block l                            (2)
    u = g / (|g| + ε)      Adam's first update per unit of learning rate, elementwise           (3)

(3) does not depend on the scale of g while |g| is well above ε: with Adam, a gradient that vanishes
no longer means "no update", it means that the output depends weakly on the front layers, and below
ε = 1e-8 or below what float16 can hold it means no update again: `zeros` and `update` show both.

Cost: one forward and one backward pass; every parameter's gradient is freed as soon as it is read.
Source: article 8747; arXiv 2002.04745. See also: `identity_path`, `analysis.scales`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kexue.analysis.batch import first_tensor
from kexue.analysis.measured_path import evaluating
from kexue.analysis.transformer_blocks import Matrix, distinct_blocks, matrices

__all__ = ["GradientProbe", "GradientProfile", "ParameterGradient", "grad_profile"]

EPSILON = 1e-8
"""Of `torch.optim.Adam`."""


@dataclass(frozen=True)
class ParameterGradient:
    """What is kept of one parameter's gradient.

    Args:
        square: squared norm.
        update: squared norm of (3).
        zeros: elements that are exactly 0.
        size: elements.
        weight: squared norm of the parameter itself.
        parts: squared norms of the parts of a packed weight; empty for any other.
    """

    square: float
    update: float
    zeros: int
    size: int
    weight: float
    parts: tuple[float, ...] = ()


@dataclass(frozen=True)
class GradientProfile:
    """Gradients against depth; lists over the blocks in the order in which they ran.

    Args:
        loss: its value.
        blocks: names.
        stream: (1), at the input of every block and at the output of the last: one more.
        parameters: (2).
        update: root mean square of (3), at most 1; 1 where Adam takes full steps.
        relative_update: norm of (3) over the norm of the parameters, per unit of learning rate.
        zeros: share of gradient elements that are exactly 0.
    """

    loss: float
    blocks: tuple[str, ...]
    stream: tuple[float, ...]
    parameters: tuple[float, ...]
    update: tuple[float, ...]
    relative_update: tuple[float, ...]
    zeros: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Gradient at the input over gradient at the output; 0 where the latter vanishes."""
        return self.stream[0] / self.stream[-1] if self.stream[-1] else 0.0

    def __str__(self) -> str:
        lines = [f"loss {self.loss:.4g}, gradient at the input / at the output {self.ratio:.4g}"]
        for i, name in enumerate(self.blocks):
            lines.append(
                f"  {name}: stream {self.stream[i]:.3g}, parameters {self.parameters[i]:.3g}, "
                f"Adam step {self.update[i]:.3g}, zeros {self.zeros[i]:.1%}"
            )
        return "\n".join(lines)


def grad_profile(
    model: nn.Module, loss_fn: Callable[[nn.Module, Any], Tensor], batch: Any
) -> GradientProfile:
    """Gradient and update norms of every block, from one backward pass.

    Args:
        model: any Transformer with a list of blocks; dropout is off, `.grad` is left as it was.
        loss_fn: (model, batch) -> scalar loss.
        batch: whatever `loss_fn` takes.

    Raises:
        ValueError: no blocks, none ran, or the loss is no scalar that depends on the blocks.

    Example:
        >>> layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        >>> model, x = nn.TransformerEncoder(layer, 3), torch.randn(2, 8, 64)
        >>> profile = grad_profile(model, lambda net, x: net(x)[..., 0].mean(), x)
        >>> len(profile.stream), profile.update[0] > 0.9
        (4, True)
    """
    probe = GradientProbe(model)
    with evaluating(model), torch.enable_grad(), probe:
        loss = loss_fn(model, batch)
        probe.backward(loss)
    return probe.profile(float(loss.detach()))


@dataclass
class GradientProbe:
    """Hooks that read gradients as they are made (`with probe: … probe.backward(loss)`)."""

    model: nn.Module
    stream: dict[int, float] = field(default_factory=dict)
    ends: dict[int, float] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    parameters: dict[str, ParameterGradient] = field(default_factory=dict)

    def __enter__(self) -> "GradientProbe":
        self._hooks: list[Any] = []
        self._names: dict[Tensor, str] = {}
        self._before = {p: p.grad for p in self.model.parameters()}
        for name, parameter in self.model.named_parameters():
            parameter.grad = None
            if parameter.requires_grad:
                self._names[parameter] = name
                hook = parameter.register_post_accumulate_grad_hook(self._reading(name))
                self._hooks.append(hook)
        for name, block in distinct_blocks(self.model):
            opening = block.register_forward_pre_hook(self._opening(name), with_kwargs=True)
            self._hooks += [opening, block.register_forward_hook(self._closing)]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for parameter, gradient in self._before.items():
            parameter.grad = gradient
        self._before = {}

    def of(self, parameter: Tensor) -> ParameterGradient | None:
        """What was read of a parameter's gradient, under whichever name it is tied to."""
        return self.parameters.get(self._names.get(parameter, ""))

    def backward(self, loss: Tensor) -> None:
        """The backward pass.

        Raises:
            ValueError: the loss is no scalar, or nothing it depends on has a gradient.
        """
        if loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"the loss must be one number with a gradient, got shape {tuple(loss.shape)}, "
                f"requires_grad={loss.requires_grad}"
            )
        loss.sum().backward()

    def _reading(self, name: str) -> Callable[[Tensor], None]:
        owner = name.rpartition(".")[0]
        module = self.model.get_submodule(owner)

        @torch.no_grad()
        def read(parameter: Tensor) -> None:
            g = parameter.grad
            if g is not None:
                cut = matrices(self.model, owner, module, g) if g.dim() == 2 else []
                self.parameters[name] = _read(parameter, g, cut if len(cut) > 1 else [])
            parameter.grad = None

        return read

    def _opening(self, name: str) -> Callable[..., Any]:
        def open_block(block: nn.Module, args: Any, kwargs: Any) -> Any:
            x, replaced = first_tensor(args, kwargs.get("hidden_states")), None
            index = len(self.calls)
            self.calls.append(name)
            if x is None or not torch.is_grad_enabled():
                return None
            if not x.requires_grad:  # the features themselves are the model's input
                fresh = x.detach().requires_grad_()
                args = tuple(fresh if one is x else one for one in args)
                kwargs = {key: fresh if one is x else one for key, one in kwargs.items()}
                x, replaced = fresh, (args, kwargs)
            x.register_hook(lambda g: self.stream.__setitem__(index, _norm(g)))
            return replaced

        return open_block

    def _closing(self, block: nn.Module, args: Any, out: Any) -> None:
        y, index = first_tensor(out), len(self.calls) - 1
        if y is not None and y.requires_grad:
            y.register_hook(lambda g: self.ends.__setitem__(index, _norm(g)))

    def profile(self, loss: float) -> GradientProfile:
        """What was read.

        Raises:
            ValueError: no block ran.
        """
        if not self.calls:
            raise ValueError(f"no block of {type(self.model).__name__} ran, so there is no depth")
        count = len(self.calls)
        sums = {name: self._sum(name) for name in dict.fromkeys(self.calls)}
        each = [sums[name] for name in self.calls]
        return GradientProfile(
            loss=loss,
            blocks=tuple(self.calls),
            stream=tuple(
                [self.stream.get(i, 0.0) for i in range(count)] + [self.ends.get(count - 1, 0.0)]
            ),
            parameters=tuple(one.square**0.5 for one in each),
            update=tuple((one.update / max(one.size, 1)) ** 0.5 for one in each),
            relative_update=tuple(
                (one.update / one.weight) ** 0.5 if one.weight else 0.0 for one in each
            ),
            zeros=tuple(one.zeros / max(one.size, 1) for one in each),
        )

    def _sum(self, block: str) -> ParameterGradient:
        inside = [one for name, one in self.parameters.items() if name.startswith(f"{block}.")]
        return ParameterGradient(
            sum(one.square for one in inside),
            sum(one.update for one in inside),
            sum(one.zeros for one in inside),
            sum(one.size for one in inside),
            sum(one.weight for one in inside),
        )


def _read(parameter: Tensor, gradient: Tensor, cut: list[Matrix]) -> ParameterGradient:
    g = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return ParameterGradient(
        square=float(g.square().sum()),
        update=float((g / (g.abs() + EPSILON)).square().sum()),  # (3)
        zeros=int((g == 0).sum()),
        size=g.numel(),
        weight=float(parameter.detach().to(g.dtype).square().sum()),
        parts=tuple(float(one.weight.to(g.dtype).square().sum()) for one in cut),
    )


def _norm(gradient: Tensor) -> float:
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return float(gradient.detach().to(wide).norm())  # (1)
