"""Records of files far larger than memory, in uniformly random order (S09)."""

from kexue.data.shuffle.glimpse import Plan, plan_shuffle
from kexue.data.shuffle.run import ShuffleReport, shuffle_lines

__all__ = ["Plan", "ShuffleReport", "plan_shuffle", "shuffle_lines"]
