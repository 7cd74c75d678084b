"""Slow and obvious: the multi-label cross-entropy of S17, class by class."""

import torch


def naive_multilabel_cross_entropy(scores, targets):
    """One value per set; targets dense, 0/1 or soft; safe for moderate scores only."""
    classes = scores.shape[-1]
    losses = []
    for row, labels in zip(scores.reshape(-1, classes), targets.reshape(-1, classes), strict=True):
        negatives, positives = torch.ones_like(row[0]), torch.ones_like(row[0])
        for score, label in zip(row, labels.tolist(), strict=True):
            if score == -torch.inf:
                continue
            negatives = negatives + (1 - label) * score.exp()
            positives = positives + label * (-score).exp()
        losses.append(negatives.log() + positives.log())
    return torch.stack(losses).view(scores.shape[:-1])


def naive_dense(index, classes):
    """0/1 labels from an index padded with -1."""
    dense = torch.zeros(*index.shape[:-1], classes, dtype=torch.long)
    sets = index.reshape(dense[..., 0].numel(), -1).tolist()
    for row, positives in zip(dense.view(-1, classes), sets, strict=True):
        for positive in positives:
            if positive != -1:
                row[positive] = 1
    return dense
