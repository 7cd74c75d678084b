"""Slow and obvious: the contrastive losses of S03, anchor by anchor and candidate by candidate."""

import math

import torch


def naive_xi(row, target, ignored=()):
    """The odds against the positive: a sum over the negatives."""
    xi = torch.zeros((), dtype=row.dtype)
    for i in range(len(row)):
        if i != target and i not in ignored:
            xi = xi + (row[i] - row[target]).exp()
    return xi


def naive_xis(scores, target, ignore=None):
    """One xi per row; safe for moderate scores only."""
    masks = torch.zeros_like(scores, dtype=torch.bool) if ignore is None else ignore
    ignored = [mask.nonzero()[:, 0].tolist() for mask in masks]
    rows = zip(scores, target.tolist(), ignored, strict=True)
    return torch.stack([naive_xi(row, t, out) for row, t, out in rows])


def naive_info_nce(scores, target, ignore=None):
    return (1 + naive_xis(scores, target, ignore)).log()


def naive_flat_nce(scores, target, ignore=None):
    """The paper's quotient, whose value is 1."""
    xi = naive_xis(scores, target, ignore)
    return xi / xi.detach()


def naive_flat_clr(scores, target):
    """What the paper's code computes: InfoNCE's value over the gradient of exp(v − sg v)."""
    v = naive_xis(scores, target).log()
    return (v - v.detach()).exp() - 1 + naive_info_nce(scores, target).detach()


def naive_pair_scores(anchors, candidates, temperature):
    """Cosines over the temperature, one by one."""
    rows = []
    for a in anchors:
        cosines = [(a * c).sum() / (a.square().sum() * c.square().sum()).sqrt() for c in candidates]
        rows.append(torch.stack(cosines) / temperature)
    return torch.stack(rows)


def naive_two_views(embeddings, temperature, groups=None):
    """(scores, target, ignore) of stacked views, found by asking about every couple of rows."""
    rows = len(embeddings)
    n = rows // 2
    target = torch.tensor([i + n if i < n else i - n for i in range(rows)])
    ignore = torch.zeros(rows, rows, dtype=torch.bool)
    for i in range(rows):
        for j in range(rows):
            same = groups is not None and groups[i % n] == groups[j % n]
            ignore[i, j] = i == j or same
    return naive_pair_scores(embeddings, embeddings, temperature), target, ignore


def naive_cross_entropy_gradient(row, target, dtype):
    """(value, d/ds) of logsumexp(s) − s_t as written, every step rounded to the dtype."""
    s = row.to(dtype)
    top = s.max()
    lse = (s - top).exp().sum(dtype=dtype).log() + top
    grad = (s - lse).exp()
    grad[target] = grad[target] - 1
    return lse - s[target], grad


def exact_gradient(row, target):
    """d log(1 + xi)/ds_t = −xi / (1 + xi) in double precision, by Python's own sum."""
    s = row.double().tolist()
    xi = math.fsum(math.exp(s[i] - s[target]) for i in range(len(s)) if i != target)
    return -xi / (1 + xi)
