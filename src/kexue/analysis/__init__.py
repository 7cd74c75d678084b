"""What a network or a score table hides."""

from kexue.analysis.head_rank import HeadRank, effective_rank, head_rank_report
from kexue.analysis.implicit_regularisation import ImplicitRegularisation
from kexue.analysis.inequality import GradientInequality, gradient_inequality
from kexue.analysis.propagation import (
    GainReport,
    GradientProfile,
    IdentityPath,
    LinearWarmup,
    NormGain,
    Stack,
    grad_profile,
    identity_path,
    ln_gain_report,
    measure_identity_path,
    suggest_initializer_range,
    tied_logit_std,
)
from kexue.analysis.residual_weight import amplification, residual_scale
from kexue.analysis.scales import Finding, ScaleAudit, ScaleRow, audit_scales
from kexue.analysis.update_size import (
    DepthRow,
    UpdateMagnitude,
    depth_sweep,
    update_magnitude,
    update_norm,
)

__all__ = [
    "DepthRow",
    "Finding",
    "GainReport",
    "GradientInequality",
    "GradientProfile",
    "HeadRank",
    "IdentityPath",
    "ImplicitRegularisation",
    "LinearWarmup",
    "NormGain",
    "ScaleAudit",
    "ScaleRow",
    "Stack",
    "UpdateMagnitude",
    "amplification",
    "audit_scales",
    "depth_sweep",
    "effective_rank",
    "grad_profile",
    "gradient_inequality",
    "head_rank_report",
    "identity_path",
    "ln_gain_report",
    "measure_identity_path",
    "residual_scale",
    "suggest_initializer_range",
    "tied_logit_std",
    "update_magnitude",
    "update_norm",
]
