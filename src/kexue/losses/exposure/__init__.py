"""Exposure bias: decoders that train on imperfect prefixes, and how large the bias is (S31)."""

from kexue.losses.exposure.decay import ExponentialDecay, InverseSigmoidDecay, LinearDecay
from kexue.losses.exposure.evaluation import ExposureGap, exposure_gap, free_running
from kexue.losses.exposure.random_replace import RandomReplace, change_rates, random_replace
from kexue.losses.exposure.scheduled_sampling import ParallelScheduledSampling

__all__ = [
    "ExponentialDecay",
    "ExposureGap",
    "InverseSigmoidDecay",
    "LinearDecay",
    "ParallelScheduledSampling",
    "RandomReplace",
    "change_rates",
    "exposure_gap",
    "free_running",
    "random_replace",
]
