"""模型优化漫谈：BERT的初始标准差为什么是0.02？ — the identity path of a model as it is (S06).

One forward pass: each sub-layer's output y is projected on its input x,

    w = <y, x> / <x, x>,     F = (norm's input) − x  or  y − x,     s² = <F, F> / <x, x>         (1)

and the product of all w is compared with the formula of `identity_path`. Where a sub-layer begins
and ends is seen in the pass itself, by the tensors that go through the norms of a block:

    the first norm reads the block's input             pre-norm:   streams are the norms' inputs
    the last norm's output is the block's output       post-norm:  streams are the norms' outputs
    neither                                            other:      the block is one sub-layer

For pre-norm s² is E[F²] itself, since the branch reads a normalised input.

Cost: one forward pass. No activation is kept longer than its own block runs.
Source: article 8747; the measurement is ours. See also: `identity_path`, `gradient_profile`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kexue.analysis.batch import first_tensor, run, visible_rows
from kexue.analysis.path_weight import IdentityPath
from kexue.analysis.transformer_blocks import distinct_blocks, is_norm

__all__ = ["PathProbe", "evaluating", "mean_square", "measure_identity_path"]

PARTS = {
    2: ("attention", "feed_forward"),
    3: ("attention", "cross_attention", "feed_forward"),
}
"""Names of the sub-layers by their number; other blocks have one."""


def measure_identity_path(model: nn.Module, batch: Any) -> IdentityPath:
    """The identity path of a model with the weights it has: (1), in one forward pass.

    Args:
        model: any Transformer with a list of blocks; dropout is off during the pass.
        batch: arguments of the model: a mapping, a tuple, or one tensor. Padding by
            `attention_mask` of shape (B, L) is left out.

    Raises:
        ValueError: no blocks, a forward pass in which none of them ran, an empty batch, or weights
            on the meta device.

    Example:
        >>> layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        >>> path = measure_identity_path(nn.TransformerEncoder(layer, 2), torch.randn(2, 8, 64))
        >>> path.norm, len(path.per_sublayer), 0.2 < path.total < 1.0
        ('post', 4, True)
    """
    probe = PathProbe(model, batch)
    with evaluating(model), torch.no_grad(), probe:
        run(model, batch)
    return probe.path()


@dataclass
class PathProbe:
    """Hooks that measure (1) for every sub-layer while they are in place (`with probe:`).

    Args:
        model: with a list of blocks.
        batch: tells which tokens are padding.
    """

    model: nn.Module
    batch: Any = None
    names: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)
    stream: list[float] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    calls: int = 0

    def __enter__(self) -> "PathProbe":
        self._hooks = []
        for name, block in distinct_blocks(self.model):
            seen: list[tuple[Tensor, Tensor]] = []
            start: list[Tensor] = []
            self._hooks.append(block.register_forward_pre_hook(_opening(start), with_kwargs=True))
            for path, module in block.named_modules():
                if is_norm(path, module):
                    self._hooks.append(module.register_forward_hook(_passing(start, seen)))
            self._hooks.append(block.register_forward_hook(self._closing(name, start, seen)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _closing(
        self, name: str, start: list[Tensor], seen: list[tuple[Tensor, Tensor]]
    ) -> Callable[..., None]:
        def close(block: nn.Module, args: Any, out: Any) -> None:
            end = first_tensor(out)
            if start and end is not None and end.shape == start[0].shape:
                self._read(name, start[0], seen, end)
            start.clear()
            seen.clear()

        return close

    @torch.no_grad()
    def _read(
        self, name: str, start: Tensor, seen: list[tuple[Tensor, Tensor]], end: Tensor
    ) -> None:
        """(1) for the sub-layers of one call of one block."""
        norm, steps = _sublayers(start, seen, end)
        parts = PARTS.get(len(steps))
        if not self.stream:
            self.stream.append(mean_square(visible_rows(start, self.batch)))
        for index, (x, y, summed) in enumerate(steps):
            x, y, summed = (visible_rows(one, self.batch).float() for one in (x, y, summed))
            size = float((x * x).sum())
            branch = float((summed - x).square().sum())
            self.names.append(f"{name}.{parts[index]}" if parts else name)
            self.weights.append(float((y * x).sum()) / size if size > 0 else 0.0)  # (1)
            unit = float(x.numel()) if norm == "pre" else size
            self.variances.append(branch / unit if unit > 0 else 0.0)  # (1)
            self.stream.append(mean_square(y))
        self.norms.append(norm)
        self.calls += 1

    def path(self) -> IdentityPath:
        """What was measured.

        Raises:
            ValueError: no block ran.
        """
        if not self.calls:
            raise ValueError(
                f"no block of {type(self.model).__name__} ran on the batch, or none maps a tensor "
                "to one of the same shape"
            )
        found = self.norms[0] if len(set(self.norms)) == 1 else "mixed"
        return IdentityPath(
            found, tuple(self.names), tuple(self.weights), tuple(self.variances), tuple(self.stream)
        )


def _opening(start: list[Tensor]) -> Callable[..., None]:
    def open_block(block: nn.Module, args: Any, kwargs: Any) -> None:
        x = first_tensor(args, kwargs.get("hidden_states"), kwargs)
        if x is not None and not x.numel():
            raise ValueError(f"a block got an empty tensor of shape {tuple(x.shape)}: give tokens")
        start[:] = [] if x is None else [x.detach()]

    return open_block


def _passing(start: list[Tensor], seen: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
    def passing(module: nn.Module, args: Any, out: Any) -> None:
        x, y = first_tensor(args), first_tensor(out)
        if not start or x is None or y is None:
            return
        size = (start[0].numel(), start[0].shape[-1])
        if (x.numel(), x.shape[-1]) == size == (y.numel(), y.shape[-1]):  # OPT's is (B·L, D)
            seen.append((x.detach().view_as(start[0]), y.detach().view_as(start[0])))

    return passing


def _sublayers(
    start: Tensor, seen: list[tuple[Tensor, Tensor]], end: Tensor
) -> tuple[str, list[tuple[Tensor, Tensor, Tensor]]]:
    """Arrangement of the norms, and per sub-layer its input, its output and stream plus branch."""
    if seen and _same(seen[0][0], start):
        inputs = [x for x, _ in seen]
        if len(inputs) == 4:  # a norm before and one behind each branch
            inputs = inputs[::2]
        ends: list[Tensor] = []
        for x in inputs:
            if not any(_same(x, other) for other in ends):  # parallel branches read the same
                ends.append(x)
        ends.append(end)
        return "pre", [(x, y, y) for x, y in pairwise(ends)]
    if seen and _same(seen[-1][1], end):
        before = [start, *(y for _, y in seen[:-1])]
        return "post", [(x, y, summed) for x, (summed, y) in zip(before, seen, strict=True)]
    return "other", [(start, end, end)]


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.data_ptr() == b.data_ptr())


def mean_square(x: Tensor) -> float:
    """E[x²] over all elements, in float32 or better."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return float(x.detach().to(wide).square().mean()) if x.numel() else 0.0


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, every module's own mode restored afterwards.

    The fused path of `nn.TransformerEncoder` is off as well: it goes past the modules.

    Raises:
        ValueError: weights on the meta device.
    """
    if any(one.is_meta for one in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} has weights on the meta device, which have no numbers: load "
            "them first; identity_path(config) needs none"
        )
    modes = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes:
            module.training = training
