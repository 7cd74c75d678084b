"""What a network or a score table hides."""

from kexue.analysis.implicit_regularisation import ImplicitRegularisation
from kexue.analysis.inequality import GradientInequality, gradient_inequality

__all__ = ["GradientInequality", "ImplicitRegularisation", "gradient_inequality"]
