"""One forward pass of a model: what its output layer is given, and what becomes of it."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.analysis.unargmaxable.final_norm import FinalNorm
from kexue.models.loading import CheckpointError, quiet_transformers

__all__ = ["Trace", "trace_model"]

PROBE = 4
"""Tokens of the forward pass."""
LOOSE = {torch.float64: 1e-4, torch.float32: 1e-4}
"""How far apart equal numbers may be; `HALF` in half precision."""
HALF = 2e-2


class Trace:
    """One forward pass: what the output layer was given, the logits, and all normalisations."""

    def __init__(self) -> None:
        self.features = self.logits = torch.zeros(0)
        self.norms: list[tuple[nn.Module, Tensor, Tensor]] = []

    def norm(self) -> FinalNorm | None:
        """The last one whose output is what the output layer was given, but for a factor."""
        width = self.features.shape[-1]
        z = self.features.reshape(-1, width).double()
        loose = LOOSE.get(self.features.dtype, HALF)
        for module, given, made in reversed(self.norms):
            if made.shape[-1] != width or made.numel() != z.numel():
                continue
            y = made.reshape(-1, width).double()
            scale = float((z * y).sum() / y.square().sum().clamp_min(1e-300))
            if scale > 0 and _near(z, scale * y, loose):
                return _kind(module, given.reshape(-1, width).double(), y, scale, loose)
        return None

    def check_order(self, source: str, weight: Tensor, bias: Tensor | None) -> None:
        """Refuses a model whose logits do not rise with W z + b.

        Raises:
            CheckpointError: they do not.
        """
        features = self.features.reshape(-1, self.features.shape[-1]).double()
        logits = self.logits.reshape(-1, self.logits.shape[-1]).double()
        fits = features.shape[1] == weight.shape[1] and logits.shape == (len(features), len(weight))
        if fits:
            parts = [features @ rows.double().mT for rows in weight.split(16384)]
            own = torch.cat(parts, dim=1) + (0 if bias is None else bias.double())
            risen = logits.gather(1, own.argsort(dim=1))
            fall = (risen.cummax(dim=1).values - risen).max()
            loose = LOOSE.get(self.logits.dtype, HALF)
            fits = float(fall) <= loose * float(logits.abs().amax())
        if not fits:
            raise CheckpointError(
                f"{source}: its logits are not ordered as W z + b of its output layer (a mixture "
                "of softmaxes, or a bias kept elsewhere); give the matrix itself, FILE:weight:bias"
            )


def trace_model(model: Any, head: Any) -> Trace | None:
    """Runs the model on a few tokens; None where it does not take tokens alone."""
    trace, weight = Trace(), next(model.parameters())
    entries = min(model.get_input_embeddings().weight.shape[0], head.weight.shape[0])
    ids = torch.arange(1, PROBE + 1, device=weight.device)[None] * max(1, entries // (PROBE + 2))
    batch = {"input_ids": ids % entries, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "is_encoder_decoder", False):
        batch["decoder_input_ids"] = batch["input_ids"]

    def given(module: nn.Module, args: tuple[Any, ...]) -> None:
        trace.features = args[0].detach()

    def normed(module: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        if args and isinstance(made, Tensor):
            trace.norms.append((module, args[0].detach(), made.detach()))

    norms = [m for m in model.modules() if "norm" in type(m).__name__.lower()]
    hooks = [head.register_forward_pre_hook(given)]
    hooks += [module.register_forward_hook(normed) for module in norms]
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), quiet_transformers():
            output = model(**batch)
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError):
        return None
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    logits = getattr(output, "logits", getattr(output, "prediction_logits", None))
    if logits is None or not trace.features.numel():
        return None
    trace.logits = logits.detach()
    return trace


def _kind(
    module: Any, x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], scale: float, loose: float
) -> FinalNorm | None:
    """The formula that turns x into y."""
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    beta = bias.detach() if isinstance(bias, Tensor) else None
    plain = weight.detach() if isinstance(weight, Tensor) else torch.ones_like(x[0])
    eps = getattr(module, "eps", getattr(module, "variance_epsilon", 0.0)) or 0.0
    for kind in ("layer", "rms"):
        about = x - x.mean(dim=-1, keepdim=True) if kind == "layer" else x
        unit = about * (about.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
        for gamma in (plain.double(), plain.double() + 1):
            if _near(unit * gamma + (0 if beta is None else beta.double()), y, loose):
                return FinalNorm(kind, gamma, beta, 1.0 if abs(scale - 1) < loose else scale)
    return None


def _near(one: Tensor, other: Tensor, loose: float) -> bool:
    return bool((one - other).abs().max() <= loose * other.abs().max())
