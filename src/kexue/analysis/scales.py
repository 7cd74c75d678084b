"""浅谈Transformer的初始化、参数化与标准化 — an audit of the scales of a model (S04).

A Transformer that does not learn whatever one does very often has a wrong scale somewhere. One
forward and one backward pass, and for every module:

    E[x²], E[y²]                second moments of its input and output                          (1)
    p = fan_in · E[w²]          weight against LeCun: std / LeCun std = √p                      (2)
    ‖∂L/∂w‖, rms γ              gradient of its weight; gain of a norm                          (3)

and along the blocks the stream's second moment, its gradient, and the identity path (S06). What is
suspicious is said in words (`scale_findings`).

Packed query-key-value weights are read part by part, Hugging Face's Conv1D is turned, embeddings
have no fan. Modules that run several times show the mean of their moments.

Cost: one forward and one backward pass; a hook keeps a few numbers of a tensor, never the tensor.
Source: article 8620, 2.2; S06 for the path. See also: `propagation`, `nn.init`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kexue.analysis.batch import first_tensor, run, visible_rows
from kexue.analysis.gradient_profile import GradientProbe, GradientProfile
from kexue.analysis.measured_path import PathProbe, evaluating
from kexue.analysis.norm_gains import gain_of
from kexue.analysis.path_weight import IdentityPath, identity_path
from kexue.analysis.scale_findings import Finding, ScaleRow, findings_of, plain, suggestion
from kexue.analysis.transformer_blocks import find_blocks, is_norm, matrices

__all__ = ["Finding", "ScaleAudit", "ScaleRow", "audit_scales"]


@dataclass(frozen=True)
class ScaleAudit:
    """What an audit found.

    Args:
        rows: one per module with parameters, packed ones one per part, in the model's order.
        findings: what is suspicious, worst first.
        path: the identity path as measured.
        formula: the same by formula from the weights; None where they are not recognised.
        gradients: gradient against depth.
        fresh: whether the weights are as drawn: every gain is 1 and every bias 0.
        largest: the largest |activation|.
        suggested: an `initializer_range` for this shape, None where none is needed or known.
    """

    rows: tuple[ScaleRow, ...]
    findings: tuple[Finding, ...]
    path: IdentityPath
    formula: IdentityPath | None
    gradients: GradientProfile
    fresh: bool
    largest: float
    suggested: float | None

    def table(self) -> list[dict[str, Any]]:
        """One plain row per module."""
        return [asdict(row) for row in self.rows]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values; numbers that are not finite become text."""
        path = asdict(self.path) | {"total": self.path.total, "share": self.path.share}
        rows = [asdict(row) | {"ratio": row.ratio} for row in self.rows]
        found: dict[str, Any] = plain(
            {
                "rows": rows,
                "findings": [asdict(one) for one in self.findings],
                "path": path,
                "formula": None if self.formula is None else asdict(self.formula),
                "gradients": asdict(self.gradients) | {"ratio": self.gradients.ratio},
                "fresh": self.fresh,
                "largest": self.largest,
                "suggested": self.suggested,
            }
        )
        return found

    def __str__(self) -> str:
        lines = [f"{one.level}: {one.where}: {one.en}" for one in self.findings]
        return "\n".join([*lines, *map(str, self.rows)])


@dataclass
class _Moments:
    """Running means of one module's second moments."""

    inputs: list[float] = field(default_factory=list)
    outputs: list[float] = field(default_factory=list)

    @staticmethod
    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None


def audit_scales(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
) -> ScaleAudit:
    """The scales of a model on a batch: weights, activations, gradients, and what is suspicious.

    Args:
        model: any Transformer with a list of blocks. Dropout is off during the audit; `.grad`,
            modes and weights are left as they were.
        batch: arguments of the model: a mapping, a tuple, or one tensor. Padding by
            `attention_mask` of shape (B, L) is left out of the moments.
        loss_fn: (model, batch) -> scalar. None: the output's own `loss` if it has one, else the
            mean of the output under fixed random signs.

    Raises:
        ValueError: not a Transformer, none of its blocks ran, or no loss with a gradient.

    Example:
        >>> layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        >>> audit = audit_scales(nn.TransformerEncoder(layer, 2), torch.randn(4, 8, 64))
        >>> [row.name for row in audit.rows][:2], round(audit.rows[3].ratio or 0, 1)
        (['layers.0.self_attn.in_proj[q]', 'layers.0.self_attn.in_proj[k]'], 0.6)
    """
    find_blocks(model)  # a model without blocks is refused before anything runs
    moments: dict[str, _Moments] = {}
    largest = [0.0]
    path, gradients = PathProbe(model, batch), GradientProbe(model)
    hooks = [
        module.register_forward_hook(_watching(moments, name, batch, largest))
        for name, module in model.named_modules()
        if _has_weights(module)
    ]
    try:
        with evaluating(model), torch.enable_grad(), gradients, path:
            loss = _default_loss(model, batch) if loss_fn is None else loss_fn(model, batch)
            gradients.backward(loss)
    finally:
        for hook in hooks:
            hook.remove()
    measured, profile = path.path(), gradients.profile(float(loss.detach()))
    rows = tuple(
        row
        for name, module in model.named_modules()
        if _has_weights(module)
        for row in _rows(model, name, module, moments, gradients)
    )
    fresh = _is_fresh(model, rows)
    suggested = suggestion(model, measured.norm)
    found = findings_of(rows, measured, profile, fresh, largest[0], suggested)
    formula = _formula(model)
    return ScaleAudit(rows, found, measured, formula, profile, fresh, largest[0], suggested)


def _formula(model: nn.Module) -> IdentityPath | None:
    try:
        return identity_path(model)
    except ValueError:
        return None


def _has_weights(module: nn.Module) -> bool:
    return any(p.dim() >= 1 for p in module.parameters(recurse=False))


def _watching(
    moments: dict[str, _Moments], name: str, batch: Any, largest: list[float]
) -> Callable[..., None]:
    @torch.no_grad()
    def watch(module: nn.Module, args: Any, out: Any) -> None:
        own = moments.setdefault(name, _Moments())
        for tensor, into in ((first_tensor(args), own.inputs), (first_tensor(out), own.outputs)):
            if tensor is not None and tensor.numel():
                rows = visible_rows(tensor, batch)
                wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
                into.append(float(wide.square().mean()))  # (1)
                peak = float(wide.abs().amax())
                largest[0] = peak if not peak <= largest[0] else largest[0]

    return watch


def _rows(
    model: nn.Module,
    name: str,
    module: nn.Module,
    moments: dict[str, _Moments],
    gradients: GradientProbe,
) -> list[ScaleRow]:
    """The rows of one module: one, or one per part of a packed weight."""
    own = moments.get(name, _Moments())
    before, after = _Moments.mean(own.inputs), _Moments.mean(own.outputs)
    parent = moments.get(name.rpartition(".")[0])
    if name.endswith("self_attn.out_proj") and not own.outputs and parent is not None:
        after = _Moments.mean(parent.outputs)  # nn.MultiheadAttention calls it by its weight
    held = matrices(model, name, module)
    packed = isinstance(module, nn.MultiheadAttention)
    weight = getattr(module, "in_proj_weight" if packed else "weight", None)
    if not isinstance(weight, Tensor):
        weight = max(module.parameters(recurse=False), key=lambda p: p.dim())
    gradient = gradients.of(weight)
    size = None if gradient is None else gradient.square**0.5
    zeros = None if gradient is None else gradient.zeros / max(gradient.size, 1)
    common: dict[str, Any] = {"input": before, "output": after, "gradient": size, "zeros": zeros}
    if held:
        parts = [] if gradient is None else [square**0.5 for square in gradient.parts]
        return [
            ScaleRow(
                f"{one.name}[{one.part}]" if one.part else name,
                "matrix",
                tuple(one.weight.shape),
                **_weight(one.weight),
                lecun=one.fan_in**-0.5,
                **(common | ({"output": None} if packed else {}) | own_gradient),
            )
            for one, own_gradient in zip(held, _parts(parts, len(held)), strict=True)
        ]
    gain = None
    kind = "embedding" if isinstance(module, nn.Embedding) else "other"
    fan = None
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        kind, fan = "convolution", weight[0].numel() ** -0.5
    elif is_norm(name, module) and weight.dim() == 1 and len(weight) > 1:
        kind, gain = "norm", float(gain_of(module)[0].square().mean().sqrt())
    return [
        ScaleRow(name, kind, tuple(weight.shape), **_weight(weight), lecun=fan, gain=gain, **common)
    ]


def _parts(norms: list[float], count: int) -> list[dict[str, float]]:
    """The gradient norms of the parts of a packed weight, in place of the whole."""
    return [{"gradient": norm} for norm in norms] if len(norms) == count else [{}] * count


@torch.no_grad()
def _weight(weight: Tensor) -> dict[str, float]:
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return {"std": float(wide.square().mean().sqrt()), "bound": float(wide.abs().amax())}


def _is_fresh(model: nn.Module, rows: tuple[ScaleRow, ...]) -> bool:
    """Every gain 1 and every bias of a norm 0: training moves both at once."""
    gains = [row.gain for row in rows if row.gain is not None]
    norms = [module for name, module in model.named_modules() if is_norm(name, module)]
    biases = [getattr(one, "bias", None) for one in norms]
    still = all(not bool(b.detach().any()) for b in biases if isinstance(b, Tensor))
    return bool(gains) and still and all(abs(gain - 1) < 1e-6 for gain in gains)


def _default_loss(model: nn.Module, batch: Any) -> Tensor:
    out = run(model, batch)
    loss = out.get("loss") if isinstance(out, dict) else getattr(out, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    y = first_tensor(out)
    if y is None:
        raise ValueError(f"{type(model).__name__} gives no floating output; give a loss_fn")
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
    return (y * signs).mean()
