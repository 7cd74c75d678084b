"""Which entries of a network matter for a task: the diagonal of the Fisher information (S12)

    F_i = 1/n sum_j (∂ log p(y_j | x_j; θ) / ∂θ_i)²        over n samples                        (1)

The ChildTuning paper's code squares the gradient of a batch's mean instead. By Jensen's inequality
that is never more, and it ranks entries otherwise: high where the samples agree, while (1) is high
where an entry matters to any of them. `per_sample=False` has the code's form.

Symbols: parameters θ, samples (x_j, y_j).
Cost: n forward and backward passes, 4 bytes an entry, and a block of per-sample gradients.
Sources: arXiv 2109.05687; article 8764. See also: `top_share`, which keeps the entries with the
largest values, and `mask`, which trains them alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from kexue.optim.gradient_mask.names import NUMBERED_BLOCKS, choose, plain_name

__all__ = ["fisher_diagonal"]

Batch = Any
"""A dict of tensors with the key "labels", or a tuple of tensors whose last one is the labels."""
Loss = Callable[[nn.Module, Batch], Tensor]

BLOCK = 1 << 26
"""Per-sample gradients held at once, in entries: 256 MB."""
IGNORED = -100
"""The label of a position that does not count, as in torch's cross_entropy."""


def fisher_diagonal(
    model: nn.Module,
    dataloader: Iterable[Batch],
    loss: str | Loss = "nll",
    *,
    per_sample: bool = True,
    labels: str = "empirical",
    n_samples: int | None = None,
    include: str = NUMBERED_BLOCKS,
    exclude: str | None = None,
    training: bool = False,
    max_grad_norm: float | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information, (1).

    Samples are differentiated side by side by `torch.func.vmap`; a model that it cannot handle is
    run with one sample at a time, which gives the same numbers more slowly.

    Args:
        model: returns logits, or an object or dict that has them as `logits`. Its modes and
            buffers are afterwards what they were.
        dataloader: batches: a dict with "labels", or a tuple whose last tensor is the labels.
        loss: "nll" is −log p(y|x), summed over positions (label −100 is none); or a function
            (model, batch) → mean loss of a batch.
        per_sample: False squares the gradient of each batch's mean instead and averages over
            batches. The paper's code is per_sample=False, training=True, max_grad_norm=1.0.
        labels: "empirical" are those of the data; "sampled" are drawn from the model, which gives
            the Fisher information itself ("nll" only).
        n_samples: stop after this many; None takes all.
        include: regular expression found in the names of the parameters wanted.
        exclude: regular expression of names to leave out.
        training: run in train mode, with dropout; by default in eval mode.
        max_grad_norm: per_sample=False only: clip each tensor's gradient to this norm first.
        generator: of sampled labels, on the model's device.

    Returns:
        Name → float32 tensor (float64 for float64 parameters) of the parameter's shape.

    Raises:
        ValueError: no parameter matches; no sample; a batch or an argument that does not fit.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> batch = torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
        >>> {n: tuple(f.shape) for n, f in fisher_diagonal(model, [batch], include="").items()}
        {'weight': (3, 2), 'bias': (3,)}
    """
    if labels not in ("empirical", "sampled"):
        raise ValueError(f"labels must be 'empirical' or 'sampled', got {labels!r}")
    if isinstance(loss, str) and loss != "nll":
        raise ValueError(f"loss must be 'nll' or a function of (model, batch), got {loss!r}")
    if labels == "sampled" and loss != "nll":
        raise ValueError("labels='sampled' needs loss='nll': a function keeps its logits to itself")
    if max_grad_norm is not None and per_sample:
        raise ValueError("max_grad_norm clips gradients of batch means: needs per_sample=False")
    if n_samples is not None and n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}")
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    plain = {plain_name(name): name for name in trainable}
    parameters = {plain[n]: trainable[plain[n]] for n in choose(plain, include, exclude)}
    objective = _Objective(model, _nll if isinstance(loss, str) else loss)
    sample_squares = _SampleSquares(objective, parameters)
    total = {name: torch.zeros_like(p, dtype=_wide(p)) for name, p in parameters.items()}
    count = 0
    with _mode(model, training):
        for batch in _first(dataloader, n_samples, next(iter(parameters.values())).device):
            if labels == "sampled":
                batch = _with_sampled_labels(model, batch, generator)
            if per_sample:
                found, seen = sample_squares(batch), _size(batch)
            else:
                found, seen = _mean_squares(objective, parameters, batch, max_grad_norm), 1
            count += seen
            for name, square in found.items():
                total[name] += square
    if count == 0:
        raise ValueError("dataloader gave no sample; give at least one batch")
    return {plain_name(name): value.div_(count) for name, value in total.items()}  # (1)


def _wide(value: Tensor) -> torch.dtype:
    """float32 or better: squares of half-precision gradients would underflow."""
    return torch.promote_types(value.dtype, torch.float32)


class _Objective(nn.Module):
    """A loss as a module, so that `functional_call` can put other parameters into its model."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        value: Tensor = self.loss(self.model, batch)
        return value


class _SampleSquares:
    """Sum over a batch's samples of the squared gradient of each."""

    def __init__(self, objective: _Objective, parameters: dict[str, nn.Parameter]) -> None:
        self.objective, self.parameters = objective, parameters
        self.samples = max(1, BLOCK // sum(p.numel() for p in parameters.values()))
        self.vectorised = self.samples > 1

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        total = {n: torch.zeros_like(p, dtype=_wide(p)) for n, p in self.parameters.items()}
        for start in range(0, _size(batch), self.samples):
            block = _part(batch, start, start + self.samples)
            try:
                found = self.side_by_side(block) if self.vectorised else self.one_by_one(block)
            except RuntimeError:
                if not self.vectorised:
                    raise
                self.vectorised = False  # vmap lacks an operation; a true error comes back
                found = self.one_by_one(block)
            for name, square in found.items():
                total[name] += square
        return total

    def side_by_side(self, block: Batch) -> dict[str, Tensor]:
        values = {f"model.{name}": p.detach() for name, p in self.parameters.items()}

        def one(values: dict[str, Tensor], sample: Batch) -> Tensor:
            batch = _map(sample, lambda x: x.unsqueeze(0))
            value: Tensor = functional_call(self.objective, values, (batch,))
            return value

        gradients = vmap(grad(one), in_dims=(None, 0), randomness="different")(values, block)
        return {
            name: gradients[f"model.{name}"].to(_wide(p)).square_().sum(0)
            for name, p in self.parameters.items()
        }

    def one_by_one(self, block: Batch) -> dict[str, Tensor]:
        total = {n: torch.zeros_like(p, dtype=_wide(p)) for n, p in self.parameters.items()}
        for start in range(_size(block)):
            sample = _part(block, start, start + 1)
            for name, gradient in _gradients(self.objective, self.parameters, sample).items():
                total[name].addcmul_(gradient, gradient)
        return total


def _mean_squares(
    objective: _Objective,
    parameters: dict[str, nn.Parameter],
    batch: Batch,
    max_norm: float | None,
) -> dict[str, Tensor]:
    """The squared gradient of a batch's mean, each tensor clipped by itself."""
    gradients = _gradients(objective, parameters, batch)
    if max_norm is not None:
        for gradient in gradients.values():
            gradient.mul_((max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0))
    return {name: gradient.square() for name, gradient in gradients.items()}


def _gradients(
    objective: _Objective, parameters: dict[str, nn.Parameter], batch: Batch
) -> dict[str, Tensor]:
    """The gradient of the loss, in float32 or better; zero for what the loss does not reach."""
    with torch.enable_grad():
        value = objective(batch)
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), found, strict=True)
    return {
        name: torch.zeros_like(p, dtype=_wide(p)) if g is None else g.to(_wide(p))
        for (name, p), g in pairs
    }


def _nll(model: nn.Module, batch: Batch) -> Tensor:
    """−log p(y|x), summed over the positions of a sample, mean over samples."""
    if isinstance(batch, dict) and "labels" not in batch:
        raise ValueError(f"a batch must have the key 'labels', got {', '.join(map(str, batch))}")
    labels = batch["labels"] if isinstance(batch, dict) else batch[-1]
    logits = _logits(model, batch)
    logits = logits.flatten(0, -2).to(_wide(logits))
    return F.cross_entropy(logits, labels.flatten(), reduction="sum") / len(labels)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """What the model says to a batch without its labels."""
    if isinstance(batch, dict):
        output = model(**{key: value for key, value in batch.items() if key != "labels"})
    else:
        output = model(*batch[:-1])
    if isinstance(output, dict):
        output = output["logits"]
    logits: Tensor = getattr(output, "logits", output)
    return logits


def _with_sampled_labels(
    model: nn.Module, batch: Batch, generator: torch.Generator | None
) -> Batch:
    """The batch with labels drawn from the model's own distribution; label −100 stays."""
    with torch.no_grad():
        logits = _logits(model, batch)
    chances = logits.flatten(0, -2).to(_wide(logits)).softmax(-1)
    drawn = chances.multinomial(1, generator=generator).view(logits.shape[:-1])
    if not isinstance(batch, dict):
        return (*batch[:-1], drawn.where(batch[-1] != IGNORED, IGNORED))
    if "labels" in batch:
        drawn = drawn.where(batch["labels"] != IGNORED, IGNORED)
    return {**batch, "labels": drawn}


def _first(data: Iterable[Batch], n: int | None, device: torch.device) -> Iterator[Batch]:
    """The batches on the device, until n samples were seen."""
    seen = 0
    for batch in data:
        batch = dict(batch) if isinstance(batch, Mapping) else tuple(batch)
        leaves = _leaves(batch)
        rows = {len(x) if isinstance(x, Tensor) and x.ndim else None for x in leaves}
        if len(rows) != 1 or None in rows:
            given = ", ".join(str(getattr(x, "shape", type(x).__name__)) for x in leaves)
            raise ValueError(
                "a batch must be a dict or a tuple of tensors with one row per sample, got "
                f"{type(batch).__name__} of {given}"
            )
        batch = _map(batch, lambda x: x.to(device))
        batch = batch if n is None else _part(batch, 0, n - seen)
        yield batch
        seen += _size(batch)
        if n is not None and seen >= n:
            return


def _leaves(batch: Batch) -> list[Any]:
    return list(batch.values() if isinstance(batch, dict) else batch)


def _map(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    if isinstance(batch, dict):
        return {key: function(value) for key, value in batch.items()}
    return tuple(function(value) for value in batch)


def _part(batch: Batch, start: int, end: int) -> Batch:
    return _map(batch, lambda x: x[start:end])


def _size(batch: Batch) -> int:
    return len(_leaves(batch)[0])


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Train or eval mode for a while; BatchNorm's running statistics come back with the mode."""
    before = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if training else []
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
        for buffer, value in buffers:
            buffer.copy_(value)
