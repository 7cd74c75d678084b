r"""L2正则没有想象那么好？可能是“权重尺度偏移”惹的祸 (S36): the decoupled form

WEISSI's pull as a decay after the step of any optimizer, out of its moments.

    W ← W − α λ1 W / (|W|² + ε²) = f W,   f = max(0, 1 − α λ1 / (|W|² + ε²))                   (1)

after every step of learning rate α. |W|² falls by 2αλ1 per step (to first order) in every layer,
whatever its size; decoupled weight decay takes the share 2αλ of it. λ1 = λ|W|² pulls alike at the
start. Coupled, as a gradient under Adam, the same pull would be divided by the gradients' RMS.

Symbols: weight W, rate α of the parameter's group, lambda1 λ1, eps ε, factor f.
Cost: one pass for the norms and one in place for (1), 12 bytes an entry; nothing is allocated.
Under FSDP2 the squared norms of all shards are added up in one all-reduce.
Sources: arXiv 2008.02965 and article 7681 for the penalty; the decoupling follows AdamW's.
See also: `kexue.losses.weissi` for which weights, and for the penalty as a loss.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from kexue.optim.wrapped import unwrapped

__all__ = ["WeissiDecay"]

CHECK_EVERY = 100
"""Steps between two looks at the flags of an accelerator."""


class WeissiDecay:
    """Hangs (1) on an optimizer: it then acts at the end of every `optimizer.step()`.

    A weight without a gradient in this step is left alone, as AdamW leaves it. It keeps no state.

    Args:
        optimizer: a `torch.optim.Optimizer`, or what Accelerate or Lightning wrap around one. It
            must hold the weights; each decays with the rate of its group.
        parameters: name → weight, such as `weissi_parameters(model)` of `kexue.losses.weissi`.
        lambda1: λ1; a number that does not carry over from weight decay.
        eps: ε. 0 is the formula itself and refuses a weight that this step would shrink to zero;
            above 0 such a weight becomes zero.

    Raises:
        TypeError: no optimizer, or no named tensors.
        ValueError: a negative option, a weight that the optimizer does not hold; at a step, while
            eps is 0, a weight with |W|² ≤ αλ1 (it is named; nothing has been decayed then). On an
            accelerator it keeps its value and is told within 100 steps or by `check()`.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.6, 0.8]]))
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> decay = WeissiDecay(optimizer, {"weight": layer.weight}, lambda1=0.5)
        >>> layer.weight.grad = torch.zeros(1, 2)
        >>> optimizer.step()
        >>> [round(value, 4) for value in layer.weight[0].tolist()]  # times 1 − 0.1 · 0.5 / 1
        [0.57, 0.76]
    """

    def __init__(
        self,
        optimizer: Any,
        parameters: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        lambda1: float,
        *,
        eps: float = 0.0,
    ) -> None:
        for name, value in (("lambda1", lambda1), ("eps", eps)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, got {value}")
        if isinstance(parameters, nn.Module):
            raise TypeError(
                "parameters must be names with weights, got a module: pass "
                "weissi_parameters(model), which leaves out layers before a normalisation"
            )
        self.optimizer: Optimizer = unwrapped(optimizer)
        self.parameters: dict[str, Tensor] = dict(parameters)
        self.lambda1, self.eps, self.steps = lambda1, eps, 0
        self._groups()  # refuses a stranger now, not at the first step
        self._vanishing: dict[str, Tensor] = {}
        hook = torch.compiler.disable(self._post_step)  # a compiled step calls it as it is
        self._handle: Any = self.optimizer.register_step_post_hook(hook)

    def remove(self) -> None:
        """Takes the decay off the optimizer."""
        self._handle.remove()

    def check(self) -> None:
        """Waits for an accelerator and tells of weights that a step would have shrunk to zero.

        Raises:
            ValueError: there is one; the message names it.
        """
        found, self._vanishing = self._vanishing, {}
        for name, flag in found.items():
            if bool(flag):
                raise ValueError(self._refusal(name))

    @torch.no_grad()
    def _post_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        early = bool(getattr(optimizer, "hooks", None))  # step_in_backward frees gradients
        moved = {n: p for n, p in self.parameters.items() if early or p.grad is not None}
        if not moved or self.lambda1 == 0:
            return
        groups = self._groups()
        names, weights = list(moved), [_local(p) for p in moved.values()]
        rates = [groups[name]["lr"] for name in names]
        squares = squared_norms(list(moved.values()))
        if all(weight.device.type == "cpu" for weight in weights):
            self._shrink_here(names, weights, rates, squares)
        else:
            self._shrink_there(names, weights, rates, squares)
        self.steps += 1
        if self.steps % CHECK_EVERY == 0:
            self.check()

    def _shrink_here(
        self, names: list[str], weights: list[Tensor], rates: list[Any], squares: list[Tensor]
    ) -> None:
        """(1) on a CPU, where reading values is free."""
        skipped = getattr(self.optimizer, "found_inf", None)  # a fused step that did nothing
        if skipped is not None and bool(skipped):
            return
        factors = []
        for name, rate, square in zip(names, rates, squares, strict=True):
            pull, base = float(rate) * self.lambda1, float(square) + self.eps**2
            if self.eps == 0 and base <= pull:
                raise ValueError(self._refusal(name))
            factors.append(max(0.0, 1 - pull / base))  # (1)
        torch._foreach_mul_(weights, factors)

    def _shrink_there(
        self, names: list[str], weights: list[Tensor], rates: list[Any], squares: list[Tensor]
    ) -> None:
        """(1) on an accelerator, which nobody waits for."""
        skipped = getattr(self.optimizer, "found_inf", None)
        factors = []
        for name, rate, square in zip(names, rates, squares, strict=True):
            pull = torch.as_tensor(rate, dtype=square.dtype, device=square.device) * self.lambda1
            if skipped is not None:
                pull = pull * (1 - skipped.to(square.device))
            base = square + self.eps**2
            factor = (1 - pull / base).clamp(min=0)  # (1)
            if self.eps == 0:
                vanishing = base <= pull
                factor = torch.where(vanishing, 1.0, factor)
                before = self._vanishing.get(name)
                self._vanishing[name] = vanishing if before is None else before | vanishing
            factors.append(factor)
        torch._foreach_mul_(weights, factors)

    def _groups(self) -> dict[str, dict[str, Any]]:
        """The optimizer's group of each weight."""
        holders = {p: group for group in self.optimizer.param_groups for p in group["params"]}
        for name, weight in self.parameters.items():
            if not isinstance(weight, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(weight).__name__}")
            if weight not in holders:
                raise ValueError(
                    f"{name} of shape {tuple(weight.shape)} is not in the optimizer; name only "
                    "weights that it trains"
                )
        return {name: holders[weight] for name, weight in self.parameters.items()}

    def _refusal(self, name: str) -> str:
        return (
            f"{name} of shape {tuple(self.parameters[name].shape)} is so close to zero that "
            f"lambda1={self.lambda1} times the learning rate is at least its squared norm: the "
            "decay would end it. Nothing in the loss holds its scale, or lambda1 is too large; "
            "leave it out, lower lambda1, or let it become zero with eps above 0"
        )


def squared_norms(parameters: list[Tensor]) -> list[Tensor]:
    """|W|² of each, in float32 or float64; of a sharded one over all of its shards.

    Example:
        >>> found = squared_norms([torch.tensor([3.0, 4.0]), torch.ones(2, 2).bfloat16()])
        >>> [round(square.item(), 4) for square in found]
        [25.0, 4.0]
    """
    squares: list[Tensor] = [torch.empty(0)] * len(parameters)
    alike: dict[Any, list[int]] = {}
    for place, parameter in enumerate(parameters):
        mesh = getattr(parameter, "device_mesh", None)
        layout = (mesh, tuple(getattr(parameter, "placements", ())))
        alike.setdefault((parameter.dtype, parameter.device, layout), []).append(place)
    for (dtype, device, (mesh, placements)), places in alike.items():
        wide = torch.promote_types(dtype, torch.float32)
        parts = [_local(parameters[i]) for i in places]
        if device.type == "cpu":  # its kernels add one by one: short rows keep the digits
            total = torch.stack([_rows(part, wide).square().sum() for part in parts])  # (L)
        else:
            total = torch.stack(torch._foreach_norm(parts, 2, dtype=wide)).square()  # (L)
        for axis, placement in enumerate(placements):
            if placement.is_shard():
                distributed.all_reduce(total, group=mesh.get_group(axis))
        for place, square in zip(places, total.unbind(), strict=True):
            squares[place] = square
    return squares


def _rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The norm of each row."""
    norms: Tensor = torch.linalg.vector_norm(
        tensor.flatten(1) if tensor.dim() > 1 else tensor, dim=-1, dtype=dtype
    )
    return norms


def _local(tensor: Any) -> Tensor:
    """This process's part of a sharded tensor, which shares its memory; any other as it is."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part
