"""Optimisation by sampling: the view that yields the classics, and MGS that comes of it."""

from kexue.optim.guided_search.sampling_view import (
    ball_update,
    evolution_update,
    gaussian_update,
    newton_update,
    optimise_by_sampling,
)
from kexue.optim.guided_search.search import (
    MGS,
    effective_sample_size,
    mgs_weights,
    mixture_log_density,
)

__all__ = [
    "MGS",
    "ball_update",
    "effective_sample_size",
    "evolution_update",
    "gaussian_update",
    "mgs_weights",
    "mixture_log_density",
    "newton_update",
    "optimise_by_sampling",
]
