"""What a network or a score table hides.

Names are imported when they are first asked for, so that a score table does not wait for torch.
"""

from importlib import import_module
from typing import Any

HOMES = {
    "ArgmaxReport": "unargmaxable.report",
    "DepthRow": "update_size",
    "Finding": "finding",
    "GainReport": "propagation",
    "GradientInequality": "inequality",
    "GradientProfile": "propagation",
    "HeadRank": "head_rank",
    "IdentityPath": "propagation",
    "ImplicitRegularisation": "implicit_regularisation",
    "LinearWarmup": "propagation",
    "NormGain": "propagation",
    "ScaleAudit": "scales",
    "ScaleRow": "scales",
    "Stack": "propagation",
    "UpdateMagnitude": "update_size",
    "WordsAudit": "unargmaxable.words",
    "amplification": "residual_weight",
    "audit_model": "unargmaxable.words",
    "audit_scales": "scales",
    "check_argmaxable": "unargmaxable.check",
    "depth_sweep": "update_size",
    "effective_rank": "head_rank",
    "grad_profile": "propagation",
    "gradient_inequality": "inequality",
    "head_rank_report": "head_rank",
    "identity_path": "propagation",
    "ln_gain_report": "propagation",
    "make_all_argmaxable": "unargmaxable.repair",
    "measure_identity_path": "propagation",
    "norm_box": "unargmaxable.final_norm",
    "residual_scale": "residual_weight",
    "suggest_initializer_range": "propagation",
    "tied_logit_std": "propagation",
    "update_magnitude": "update_size",
    "update_norm": "update_size",
}
__all__ = [
    "ArgmaxReport",
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
    "WordsAudit",
    "amplification",
    "audit_model",
    "audit_scales",
    "check_argmaxable",
    "depth_sweep",
    "effective_rank",
    "grad_profile",
    "gradient_inequality",
    "head_rank_report",
    "identity_path",
    "ln_gain_report",
    "make_all_argmaxable",
    "measure_identity_path",
    "norm_box",
    "residual_scale",
    "suggest_initializer_range",
    "tied_logit_std",
    "update_magnitude",
    "update_norm",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
