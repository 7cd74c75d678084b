"""Flooding as it is written down: absolute values, one number after the other."""

import math


def flood(loss, level):
    return abs(loss - level) + level


def slope(loss, level):
    return math.copysign(1.0, loss - level) if loss != level else 0.0


def flood_batch(losses, level):
    return flood(sum(losses) / len(losses), level)


def flood_samples(losses, levels):
    return sum(flood(one, level) for one, level in zip(losses, levels, strict=True)) / len(losses)
