r"""浅谈Transformer的初始化、参数化与标准化：残差的几种写法 (S04)

Residual designs as modules that go around a branch, so that one can be exchanged for another.

    PostNorm         y = Norm(x + F(x))                                                      (1)
    PreNorm          y = x + F(Norm(x))                                                      (2)
    SkipInit         y = x + alpha F(x)          alpha trained, one number, starts at 0      (3)
    ReZero           y = x + alpha F(x)          (3) under the name of its second inventors
    LayerScale       y = x + g * F(x)            g trained, one number per feature, small    (4)
    AlphaRamp        y = x + alpha F(x)          alpha not trained, 0 → 1 in equal steps     (5)
    ScaledResidual   y = x + eps F(x)            eps fixed, 1/sqrt(L) for SGD (S20)          (6)
    Fixup            no module but an initialisation: the last layer of a branch is zero,
                     its other m − 1 weights are multiplied by L^(−1/(2m − 2))               (7)

With branches of second moment sigma² relative to the stream, (1) leaves x_0 with the weight
(1 + sigma²)^(−L/2) after L branches, while the stream of (2) grows to 1 + L sigma² and needs a
norm after the last branch. (3), (5) and (7) start as the identity. For DeepNorm,
Norm(alpha x + F(x)), see `kexue.nn.deepnorm`.

Symbols: stream x, branch F, its output G, number of branches L, weight matrices per branch m.
Where the norm does not come first, `forward(x, branch)` takes G as well as F.
Precision: sums and norms in float32 or better; the result has x's dtype.
Source: article 8620; SkipInit arXiv 2002.10444, ReZero 2003.04887, Fixup 1901.09321, LayerScale
2103.17239; (5) is the article's own.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.nn.residual_sum import Branch, Normalise, branch_output, float32_norm, weighted_sum

__all__ = [
    "AlphaRamp",
    "LayerScale",
    "PostNorm",
    "PreNorm",
    "ReZero",
    "ScaledResidual",
    "SkipInit",
    "fixup_init_",
]


class PostNorm(nn.Module):
    """(1): the norm after the sum, as in the first Transformer and in BERT.

    Args:
        dim: width of the stream.
        norm: makes the norm from the width.

    Example:
        >>> import torch
        >>> wrapper, branch = PostNorm(4), nn.Linear(4, 4)
        >>> x = torch.randn(2, 3, 4)
        >>> torch.equal(wrapper(x, branch), wrapper(x, branch(x)))
        True
    """

    def __init__(self, dim: int, norm: Normalise = nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm(dim)

    def forward(
        self, x: Float[Tensor, "*batch dim"], branch: Branch | Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        total = weighted_sum(x, branch_output(x, branch))
        return float32_norm(self.norm, total).to(x.dtype)  # (1)


class PreNorm(nn.Module):
    """(2): the branch reads a normed stream; end the network with a norm of its own.

    Args:
        dim: width of the stream.
        norm: makes the norm from the width.

    Example:
        >>> import torch
        >>> wrapper = PreNorm(4, norm=nn.RMSNorm)
        >>> wrapper(torch.ones(4), lambda h: 2 * h).tolist()
        [3.0, 3.0, 3.0, 3.0]
    """

    def __init__(self, dim: int, norm: Normalise = nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm(dim)

    def forward(
        self, x: Float[Tensor, "*batch dim"], branch: Branch | Float[Tensor, "..."]
    ) -> Float[Tensor, "*batch dim"]:
        """The stream after the branch.

        Raises:
            TypeError: a tensor in place of the branch, which comes after the norm.
        """
        if isinstance(branch, Tensor):
            raise TypeError(
                "PreNorm norms what the branch reads, so it must call the branch itself: pass the "
                f"module or function, not its output, got a tensor of shape {tuple(branch.shape)}"
            )
        normed = float32_norm(self.norm, x).to(x.dtype)
        return weighted_sum(x, branch_output(normed, branch)).to(x.dtype)  # (2)


class SkipInit(nn.Module):
    """(3): one trained number per branch; the network starts as the identity.

    At the start the number alone gets a gradient, the weights of the branch none. Leave it out of
    weight decay; a learning rate of its own often helps.

    Args:
        init: where the number starts; 0 in the papers, at most 1/sqrt(L) elsewhere.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 4)
        >>> torch.equal(SkipInit()(x, nn.Linear(4, 4)), x)
        True
    """

    def __init__(self, init: float = 0.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(init)))

    def forward(
        self, x: Float[Tensor, "*shape"], branch: Branch | Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        return _scaled_sum(x, self.alpha, branch_output(x, branch))  # (3)


class ReZero(SkipInit):
    """(3) with the start at 0, under the name of arXiv 2003.04887: `SkipInit()`."""

    def __init__(self) -> None:
        super().__init__(0.0)


class LayerScale(nn.Module):
    """(4): one trained number per feature, starting small.

    Args:
        dim: width of the stream.
        init: where all of them start; CaiT takes 0.1 to 18 layers, 1e-5 to 24, 1e-6 beyond.

    Example:
        >>> import torch
        >>> LayerScale(3, init=0.5)(torch.zeros(1, 3), torch.ones(1, 3))
        tensor([[0.5000, 0.5000, 0.5000]], grad_fn=<AddBackward0>)
    """

    def __init__(self, dim: int, init: float = 1e-4) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((dim,), float(init)))

    def forward(
        self, x: Float[Tensor, "*batch dim"], branch: Branch | Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        return _scaled_sum(x, self.gain, branch_output(x, branch))  # (4)


class AlphaRamp(nn.Module):
    """(5): alpha = min(t / steps, 1) after t calls of `step()`, then fixed at 1 for good.

    The network starts as the identity and ends as a plain residual network. How far the ramp has
    come is a buffer: it is saved and resumed with the weights. Call `step()` once per optimizer
    step, for all ramps of a model:

        optimizer.register_step_post_hook(lambda *_: [ramp.step() for ramp in ramps])

    Args:
        steps: calls until alpha is 1.

    Raises:
        ValueError: steps below 1.

    Example:
        >>> ramp = AlphaRamp(steps=4)
        >>> ramp.step()
        >>> ramp(torch.zeros(2), torch.ones(2))
        tensor([0.2500, 0.2500])
    """

    taken: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.steps = steps
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def step(self) -> None:
        """Raise alpha by 1 / steps, up to 1."""
        self.taken.add_(1).clamp_(max=self.steps)

    @property
    def alpha(self) -> Float[Tensor, ""]:
        """The weight of the branches now."""
        return self.taken.clamp(max=self.steps) / self.steps

    def forward(
        self, x: Float[Tensor, "*shape"], branch: Branch | Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        return _scaled_sum(x, self.alpha, branch_output(x, branch))  # (5)

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


class ScaledResidual(nn.Module):
    """(6): a residual branch with a fixed weight, to be put into an `nn.Sequential`.

    Args:
        branch: a module that keeps the shape.
        eps: weight of its output; 1/sqrt(L) for L branches trained with SGD, 1/L with Adam.

    Raises:
        ValueError: eps that is not finite.

    Example:
        >>> import torch
        >>> block = ScaledResidual(nn.Identity(), eps=0.5)
        >>> block(torch.ones(2))
        tensor([1.5000, 1.5000])
    """

    def __init__(self, branch: nn.Module, eps: float) -> None:
        super().__init__()
        if not -torch.inf < eps < torch.inf:
            raise ValueError(f"eps must be a finite number, got {eps}")
        self.branch = branch
        self.eps = eps

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        wide = torch.promote_types(x.dtype, torch.float32)
        output = branch_output(x, self.branch)
        return torch.add(x.to(wide), output, alpha=self.eps).to(x.dtype)  # (6)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


@torch.no_grad()
def fixup_init_(branches: Sequence[nn.Module], num_layers: int | None = None) -> None:
    """(7), in place: makes every branch zero and its inner layers small enough for the depth.

    The matrices of a branch count as its layers, in the order in which the modules were
    registered; the last one and its bias become zero. Initialise as for a plain network first
    (He's rule before ReLU). The trained scalar biases and multipliers of the paper are not added.

    Args:
        branches: all residual branches, such as the feed-forward networks of a model; a matrix
            that several share is scaled once.
        num_layers: L, the number of branches in the network; by default those given.

    Raises:
        ValueError: no branches, a branch without weight matrix, or fewer than one layer.

    Example:
        >>> branch = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> fixup_init_([branch], num_layers=16)
        >>> branch(torch.randn(2, 4)).abs().max().item()
        0.0
    """
    num_layers = len(branches) if num_layers is None else num_layers
    scaled: set[Tensor] = set()
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    for number, branch in enumerate(branches):
        layers = [
            module
            for module in branch.modules()
            if any(own.dim() > 1 for own in module.parameters(recurse=False))
        ]
        if not layers:
            raise ValueError(
                f"branch {number}, a {type(branch).__name__}, has no weight matrix to make zero"
            )
        for parameter in layers[-1].parameters(recurse=False):
            parameter.zero_()
        for layer in layers[:-1]:
            for parameter in layer.parameters(recurse=False):
                if parameter.dim() > 1 and parameter not in scaled:
                    scaled.add(parameter)
                    parameter.mul_(num_layers ** (-1 / (2 * len(layers) - 2)))  # (7)


def _scaled_sum(x: Tensor, scale: Tensor, output: Tensor) -> Tensor:
    """The sum x + scale · G in float32 or better, back in x's dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # A scalar does not widen what it multiplies, so G is widened by name.
    return (x.to(wide) + scale.to(wide) * output.to(wide)).to(x.dtype)
