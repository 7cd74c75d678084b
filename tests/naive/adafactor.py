"""AdaFactor as written in the paper: the second moment is built entry by entry, in float64."""

import itertools
import math

import numpy as np


class NaiveAdaFactor:
    """One parameter; `axes` are (p, q), or None without factors."""

    def __init__(self, x, axes, *, beta1=0.0, eps=(1e-30, 1e-3), d=1.0, scaled=True, decay=0.0):
        self.x = np.array(x, dtype=np.float64)
        self.axes, self.beta1, self.eps, self.d = axes, beta1, eps, d
        self.scaled, self.decay, self.t = scaled, decay, 0
        self.v = np.zeros_like(self.x)  # all squares, averaged over time alone
        self.m = np.zeros_like(self.x)
        self.step_of = None

    def second_moment(self):
        if self.axes is None:
            return self.v
        p, q = self.axes
        estimate = np.empty_like(self.v)
        for place in itertools.product(*map(range, self.v.shape)):

            def line(axis, place=place):
                return [
                    self.v[(*place[:axis], i, *place[axis + 1 :])]
                    for i in range(self.v.shape[axis])
                ]

            def plane(place=place):
                total = []
                for i in range(self.v.shape[p]):
                    for j in range(self.v.shape[q]):
                        there = list(place)
                        there[p], there[q] = i, j
                        total.append(self.v[tuple(there)])
                return total

            estimate[place] = np.mean(line(p)) * np.mean(line(q)) / np.mean(plane())
        return estimate

    def step(self, g, rate, beta2):
        """β̂_t is `beta2`, ρ_t is `rate`."""
        g = np.asarray(g, dtype=np.float64)
        self.t += 1
        self.v = beta2 * self.v + (1 - beta2) * (g**2 + self.eps[0])
        u = g / np.sqrt(self.second_moment())
        u = u / max(1.0, math.sqrt(np.mean(u**2)) / self.d)
        self.step_of = u
        if self.beta1:
            u = self.m = self.beta1 * self.m + (1 - self.beta1) * u
        scale = max(self.eps[1], math.sqrt(np.mean(self.x**2))) if self.scaled else 1.0
        self.x = self.x - rate * scale * u - rate * self.decay * self.x
        return self.x
