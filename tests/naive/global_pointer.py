"""Slow and obvious: rotary embedding and GlobalPointer of S17, cell by cell."""

import math

import torch


def naive_rotate(x, position, base=10000.0):
    """One vector, pair by pair."""
    size = len(x)
    out = []
    for i in range(size // 2):
        angle = position * base ** (-2 * i / size)
        a, b = x[2 * i], x[2 * i + 1]
        out += [
            a * math.cos(angle) - b * math.sin(angle),
            a * math.sin(angle) + b * math.cos(angle),
        ]
    return torch.stack(out)


def naive_span_scores(query, key, mask, rope=True, upper_triangular=True):
    """(B, H, L, d) twice and a list of lists of bool -> (B, H, L, L)."""
    batch, types, length, size = query.shape
    cells = []
    for b in range(batch):
        for h in range(types):
            for m in range(length):
                for n in range(length):
                    if not (mask[b][m] and mask[b][n]) or (upper_triangular and n < m):
                        cells.append(query.new_tensor(-torch.inf))
                        continue
                    q, k = query[b, h, m], key[b, h, n]
                    if rope:
                        q, k = naive_rotate(q, m), naive_rotate(k, n)
                    cells.append(sum(q[i] * k[i] for i in range(size)) / math.sqrt(size))
    return torch.stack(cells).view(batch, types, length, length)


def naive_global_pointer(hidden, weight, bias, num_types, mask, **options):
    """Type by type: the rows of the kernel are q of type 0, k of type 0, q of type 1, ..."""
    size = len(weight) // (2 * num_types)
    query, key = [], []
    for h in range(num_types):
        rows = (
            slice(2 * h * size, (2 * h + 1) * size),
            slice((2 * h + 1) * size, (2 * h + 2) * size),
        )
        query.append(hidden @ weight[rows[0]].T + bias[rows[0]])
        key.append(hidden @ weight[rows[1]].T + bias[rows[1]])
    return naive_span_scores(torch.stack(query, 1), torch.stack(key, 1), mask, **options)
