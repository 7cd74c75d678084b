"""Slow and obvious: S16 on flattened gradients, every set of active constraints tried in turn."""

from itertools import chain, combinations

import numpy as np
import torch


def naive_gradients(losses, params):
    """One flat float64 row per task."""
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        flat = [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(params, found, strict=True)
        ]
        rows.append(torch.cat(flat).double())
    return torch.stack(rows)


def naive_veto(G, primary=0):
    """The projection of row `primary` on {u: <u, g_i> >= 0}: the best of all faces."""
    g0, others = G[primary], np.delete(G, primary, axis=0)
    best = None
    for face in _subsets(range(len(others))):
        u = g0
        if face:
            A = others[list(face)]
            u = g0 - np.linalg.pinv(A) @ (A @ g0)  # orthogonal to the face
        feasible = (others @ u >= -1e-9 * np.linalg.norm(others, axis=1)).all()
        if feasible and (best is None or np.linalg.norm(u - g0) < np.linalg.norm(best - g0)):
            best = u
    return best


def naive_min_norm(G):
    """The point of the convex hull of the rows nearest to the origin: the best of all faces."""
    best = None
    for face in _subsets(range(len(G))):
        if not face:
            continue
        corner, *edges = G[list(face)]
        u, share = corner, np.ones(1)
        if edges:
            E = np.stack([g - corner for g in edges])
            t = -np.linalg.pinv(E.T) @ corner
            u, share = corner + t @ E, np.append(t, 1 - t.sum())
        if (share >= -1e-9).all() and (best is None or u @ u < best @ best):
            best = u
    return best


def naive_pcgrad(G, order):
    """PCGrad: each gradient projected off those it conflicts with, in the given order; the sum."""
    total = np.zeros(G.shape[1])
    for i, g in enumerate(G):
        for j in order[i]:
            if j != i and g @ G[j] < 0:
                g = g - (g @ G[j]) / (G[j] @ G[j]) * G[j]
        total += g
    return total


def _subsets(items):
    items = list(items)
    return chain.from_iterable(combinations(items, k) for k in range(len(items) + 1))
