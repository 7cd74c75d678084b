"""ChildTuning：试试把Dropout加到梯度上去？ (S12)

Fine-tune a child of a network: only a share p of its entries learns, with any optimizer.

A step of any optimizer turns gradients g into a change Δθ. With a mask M of zeros and ones:

    random    g  ← g ⊙ M / p',  M_i ~ Bernoulli(p') anew in every step  (the paper's F)          (1)
    update    Δθ ← Δθ ⊙ M / p', the same M on the whole change, weight decay included            (2)
    fixed     g  ← g ⊙ M,       M from the Fisher information, once     (the paper's D)          (3)

With momentum an entry without gradient still moves by its history, so (1) changes nearly all
entries in every step and only (2) really changes a share p. For Adam and ε → 0, (1) multiplies the
mean step by sqrt(p), as a smaller learning rate would, but leaves the step's variance as it was.

Symbols: gradient g, parameter θ, mask M; p' = round(2^16 p) / 2^16 is the share that is drawn, and
rescaling by p' keeps (1) and (2) unbiased. Step t of tensor `name` draws from the bits that hash
(seed, t, name): every process draws the same masks, in whatever groups the parameters are.
Cost: 2 random bytes an entry and 3 passes over g; (2), (3) also copy θ within the step. Saves none.
Sources: arXiv 2109.05687; article 8764. Unlike the paper's code: any optimizer; blocks are found
by their number; entries that (3) leaves out do not decay either. See also: `fisher`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from operator import index
from typing import Any, SupportsIndex
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kexue.optim.gradient_mask.names import NUMBERED_BLOCKS, choose, trained_parameters
from kexue.optim.gradient_mask.shards import local, placed, shard, whole
from kexue.optim.per_tensor import PerTensorOptimizer
from kexue.optim.wrapped import unwrapped

__all__ = ["GradientMask", "random_mask"]

LEVELS = 1 << 16
STATE = "gradient_mask"
"""The key in the optimizer's state_dict."""


def random_mask(
    shape: torch.Size | tuple[int, ...],
    keep_prob: float,
    seed: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Ones with probability p' = round(2^16 keep_prob) / 2^16 and zeros, from 16 bits an entry.

    On a CPU the bits are those of NumPy's SFC64, the same everywhere. Other devices use torch's
    generator there, whose bits are the same on devices of the same model.

    Returns:
        A tensor of int16 (torch's loops over bool are not vectorised).

    Example:
        >>> random_mask((2, 6), 0.5, seed=0).tolist()
        [[0, 1, 1, 1, 1, 0], [1, 0, 1, 1, 1, 0]]
    """
    count, level = torch.Size(shape).numel(), round(keep_prob * LEVELS)
    if level == LEVELS:
        return torch.ones(shape, dtype=torch.int16, device=device)
    numbers = _numbers(count, seed, torch.device(device))
    return torch.lt(numbers, level - LEVELS // 2, out=numbers).view(shape)


def _numbers(count: int, seed: int, device: torch.device) -> Tensor:
    """Random int16, uniform on −2^15 … 2^15 − 1: four to a word of 64 bits."""
    size = -(-count // 4)
    if device.type == "cpu":
        words = np.random.SFC64(seed).random_raw(size)
        return torch.from_numpy(words.view(np.int16))[:count]
    generator = torch.Generator(device).manual_seed(seed)
    drawn = torch.empty(size, dtype=torch.int64, device=device)
    return drawn.random_(-(1 << 63), None, generator=generator).view(torch.int16)[:count]


class GradientMask:
    """Masks the steps of any optimizer, (1), (2) or (3), once per `optimizer.step()`.

    It hangs on the optimizer's step hooks: training code stays as it is, closures included, and
    the optimizer keeps it alive. Gradients are masked in place, after unscaling and clipping, so
    whoever reads them after the step sees them masked. Its state travels in
    `optimizer.state_dict()`. Groups that are added to the optimizer, and parameters that are
    unfrozen, later on stay free. A copied or unpickled mask hangs on the copied optimizer.

    Args:
        optimizer: a `torch.optim.Optimizer`, or what Accelerate or Lightning wrap around one.
        mode: "random" (1), "update" (2) or "fixed" (3).
        keep_prob: p, the share of entries that learn in a step; the article's example is
            0.2. Not a drop rate. "fixed" takes it from the masks.
        masks: for "fixed", name → bool tensor, True where an entry learns, as `topk_masks` makes
            them. Tensors without a mask are free. None: `load_state_dict` brings them.
        model: tells the names; not needed if the optimizer was built from `named_parameters()`.
        include: regular expression found in the names of masked parameters ("random", "update");
            by default numbered blocks. "" is all of them.
        exclude: regular expression of names that stay free nevertheless.
        rescale: divide by p; by default in "random" and "update" only, as in the authors' code.
        decay_masked: "fixed" only: True lets the optimizer move left-out entries as it does
            without a gradient, which is their weight decay. By default they do not move.
        seed: of the masks; the same on all processes.

    Raises:
        TypeError: the optimizer is none.
        ValueError: an argument that does not fit; no parameter to mask; a second mask on the same
            optimizer; at a step, a sparse gradient, masks that never came, or gradients that
            `step_in_backward` has used already.

    Example:
        >>> model = nn.TransformerEncoderLayer(8, 2, 16)
        >>> optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-3)
        >>> mask = GradientMask(optimizer, "random", keep_prob=0.3, include="linear")
        >>> sorted(mask.parameters)
        ['linear1.bias', 'linear1.weight', 'linear2.bias', 'linear2.weight']
    """

    def __init__(
        self,
        optimizer: Any,
        mode: str = "random",
        *,
        keep_prob: float | None = None,
        masks: Mapping[str, Tensor] | None = None,
        model: nn.Module | None = None,
        include: str = NUMBERED_BLOCKS,
        exclude: str | None = None,
        rescale: bool | None = None,
        decay_masked: bool = False,
        seed: SupportsIndex = 0,
    ) -> None:
        optimizer = unwrapped(optimizer)
        if optimizer in ATTACHED:
            raise ValueError("this optimizer has a GradientMask already; call its remove() first")
        _check(mode, keep_prob, masks, decay_masked)
        self.optimizer, self.mode, self.seed, self.step = optimizer, mode, index(seed), 0
        self.rescale = mode != "fixed" if rescale is None else rescale
        self.decay_masked = decay_masked
        self.keep_prob = 1.0 if keep_prob is None else round(keep_prob * LEVELS) / LEVELS
        self.masks: dict[str, Tensor] = {}
        named = trained_parameters(optimizer, model, anonymous=mode != "fixed" and include == "")
        names = list(named) if mode == "fixed" else choose(named, include, exclude)
        self.parameters = {name: named[name] for name in names}
        if masks is not None:
            self._take(masks)
        self._before: dict[str, Tensor] = {}
        self._attach()

    def _attach(self) -> None:
        ATTACHED.add(self.optimizer)
        still = torch.compiler.disable  # a compiled step calls the hooks and does not trace them
        self._handles = [
            self.optimizer.register_step_pre_hook(still(self._pre_step)),
            self.optimizer.register_step_post_hook(still(self._post_step)),
            self.optimizer.register_state_dict_post_hook(self._save),
            self.optimizer.register_load_state_dict_pre_hook(self._load),
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the hooks, which belong to the original's optimizer."""
        attached = {"attached": bool(self._handles)}
        return self.__dict__ | {"_handles": [], "_before": {}} | attached

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({key: value for key, value in state.items() if key != "attached"})
        if state["attached"] and self.optimizer not in ATTACHED:  # as a shallow copy's is
            self._attach()

    def mask(self, name: str) -> Tensor:
        """The coming step's mask of a parameter, of ones and zeros (of its own shard, if any)."""
        if self.mode == "fixed":
            return local(self.masks[name])
        parameter = self.parameters[name]
        own = local(parameter)
        key = repr((self.seed, self.step, name, *shard(parameter))).encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())
        return random_mask(own.shape, self.keep_prob, seed, own.device)

    def remove(self) -> None:
        """Take the mask off the optimizer, which then steps as before."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        ATTACHED.discard(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Mode, share, seed, number of steps and, in "fixed" mode, the masks."""
        state = {key: getattr(self, key) for key in ("mode", "keep_prob", "seed", "step")}
        if self.mode == "fixed":
            state["masks"] = {name: whole(mask) for name, mask in self.masks.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: it is of another mode or share.
        """
        keys = ("mode",) if self.mode == "fixed" else ("mode", "keep_prob")
        for key in keys:
            if state[key] != getattr(self, key):
                raise ValueError(
                    f"the saved mask has {key}={state[key]!r}, this one {getattr(self, key)!r}; "
                    f"build it with the saved one, or drop {STATE!r} from the optimizer's state"
                )
        if self.mode == "fixed":
            self._take(state["masks"])
        self.seed, self.step = state["seed"], state["step"]

    def _take(self, masks: Mapping[str, Tensor]) -> None:
        """Use these masks, once each of them fits its parameter."""
        kept = total = 0
        for name, mask in masks.items():
            if name not in self.parameters:
                known = ", ".join(list(self.parameters)[:4])
                raise ValueError(
                    f"masks has {name!r}, which is no parameter of the optimizer (those are "
                    f"{known}, …); give model= the module whose named_parameters() it comes from"
                )
            parameter = self.parameters[name]
            if mask.dtype != torch.bool or mask.shape != parameter.shape:
                raise ValueError(
                    f"the mask of {name} must be torch.bool of shape {tuple(parameter.shape)}, got "
                    f"{mask.dtype} of {tuple(mask.shape)}"
                )
            kept, total = kept + int(mask.sum()), total + mask.numel()
        if kept == 0:
            raise ValueError("masks keep no entry at all; give at least one mask with a True")
        self.masks = {name: placed(mask, self.parameters[name]) for name, mask in masks.items()}
        self.keep_prob = kept / total

    def _pre_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Mask the gradients, or have the closure do so whenever it made new ones."""
        if self.mode == "fixed" and not self.masks:
            raise ValueError('mode="fixed" has no masks yet; give masks= or load a state')
        if isinstance(optimizer, PerTensorOptimizer) and optimizer.hooks:
            raise ValueError(
                "step_in_backward uses each gradient before this mask sees it; remove() its handle "
                "or the mask"
            )
        if self.keep_prob == 1:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if self.mode == "update" or (self.mode == "fixed" and not self.decay_masked):
            self._before = {
                name: local(parameter.detach()).clone()
                for name, parameter in self._masked()
                if closure is not None or parameter.grad is not None
            }
        if self.mode == "update":
            return None
        if closure is None:
            self._mask_gradients()
            return None

        def masked_closure() -> Any:
            loss = closure()
            self._mask_gradients()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": masked_closure}
        return (args[0], masked_closure, *args[2:]), kwargs

    @torch.no_grad()
    def _mask_gradients(self) -> None:
        for name, parameter in self._masked():
            if parameter.grad is None:
                continue
            if parameter.grad.layout != torch.strided:
                raise ValueError(
                    f"{name} has a sparse gradient, which a mask would fill; exclude it, build its "
                    'embedding with sparse=False, or use mode="update"'
                )
            _mask_(local(parameter.grad), self.mask(name), self._scale)  # (1), (3)

    @torch.no_grad()
    def _post_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        scale = self._scale if self.mode == "update" else 1.0
        for name, before in self._before.items():
            theta = local(self.parameters[name].detach())
            _mask_(theta.sub_(before), self.mask(name), scale)  # (2)
            theta.add_(before)
        self._before = {}
        self.step += 1

    @property
    def _scale(self) -> float:
        return 1 / self.keep_prob if self.rescale else 1.0

    def _masked(self) -> Iterable[tuple[str, Tensor]]:
        names = self.masks if self.mode == "fixed" else self.parameters
        return ((name, self.parameters[name]) for name in names)

    def _save(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        state[STATE] = self.state_dict()

    def _load(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        if STATE in state:
            self.load_state_dict(state[STATE])


ATTACHED: WeakSet[Optimizer] = WeakSet()
"""Optimizers that have a mask; a second one would silently square the share."""


def _mask_(values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """values ⊙ M · scale, in place; an entry that is not finite stays visible as NaN."""
    if scale != 1:
        values.mul_(scale)
    return values.mul_(mask.to(values.dtype))


def _check(
    mode: str, keep_prob: float | None, masks: Mapping[str, Tensor] | None, decay_masked: bool
) -> None:
    if mode not in ("random", "fixed", "update"):
        raise ValueError(f"mode must be 'random', 'fixed' or 'update', got {mode!r}")
    if mode == "fixed":
        if keep_prob is not None:
            raise ValueError(
                f'mode="fixed" takes its share from masks; give keep_prob={keep_prob} to '
                "topk_masks instead"
            )
        return
    if masks is not None or decay_masked:
        raise ValueError(f'masks and decay_masked belong to mode="fixed", got mode={mode!r}')
    if keep_prob is None or not 0 < keep_prob <= 1:
        raise ValueError(
            "keep_prob is the share of entries that learn, above 0 and at most 1 (not a drop "
            f"rate), got {keep_prob}"
        )
    if round(keep_prob * LEVELS) == 0:
        raise ValueError(f"keep_prob must be at least 2^-16, got {keep_prob}")
