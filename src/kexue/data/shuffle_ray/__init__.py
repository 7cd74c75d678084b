"""Records in uniformly random order on a Ray cluster (S09)."""

from kexue.data.shuffle_ray.cost import RayCost, cost_model
from kexue.data.shuffle_ray.engine import shuffle_lines_ray

__all__ = ["RayCost", "cost_model", "shuffle_lines_ray"]
