"""Slow and obvious: the losses of S37, row by row, as their formulas are written.

Safe for moderate logits only. Every function gives one value per row or element.
"""

import math

import torch


def by_row(row_loss, logits, labels):
    return torch.stack([row_loss(z, y) for z, y in zip(logits, labels.tolist(), strict=True)])


def by_element(element_loss, logits, targets):
    flat = [
        element_loss(z, y)
        for z, y in zip(logits.reshape(-1), targets.reshape(-1).tolist(), strict=True)
    ]
    return torch.stack(flat).view(logits.shape)


def softmax(z):
    exponentials = [x.exp() for x in z]
    return [e / sum(exponentials) for e in exponentials]


def sigmoid(z):
    return 1 / (1 + (-z).exp())


def cross_entropy(logits, labels, weight=None, smoothing=0.0):
    classes = logits.shape[-1]
    weight = [1.0] * classes if weight is None else list(weight)

    def row(z, y):
        loss = 0.0
        for k, p in enumerate(softmax(z)):
            target = (1 - smoothing) * (k == y) + smoothing / classes
            loss = loss - target * weight[k] * p.log()
        return loss

    return by_row(row, logits, labels)


def logit_adjusted(logits, labels, prior, tau):
    """log(1 + sum (pi_i / pi_y)^tau e^{z_i − z_y})."""

    def row(z, y):
        odds = 0.0
        for i in range(len(z)):
            if i != y:
                odds = odds + (prior[i] / prior[y]) ** tau * (z[i] - z[y]).exp()
        return (1 + odds).log()

    return by_row(row, logits, labels)


def softmax_focal(logits, labels, gamma, alpha=None):
    def row(z, y):
        p = softmax(z)[y]
        return -(1.0 if alpha is None else alpha[y]) * (1 - p) ** gamma * p.log()

    return by_row(row, logits, labels)


def sigmoid_focal(logits, targets, gamma, alpha=None):
    def element(z, y):
        p = sigmoid(z)
        positive, negative = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
        return (
            -y * positive * (1 - p) ** gamma * p.log()
            - (1 - y) * negative * p**gamma * (1 - p).log()
        )

    return by_element(element, logits, targets)


def soft_truncated(logits, targets, sharpness):
    def element(z, y):
        right = -sigmoid(-sharpness * z) * sigmoid(z).log()
        wrong = -sigmoid(sharpness * z) * sigmoid(-z).log()
        return y * right + (1 - y) * wrong

    return by_element(element, logits, targets)


def hard_truncated(logits, targets, threshold):
    def element(z, y):
        p = sigmoid(z)
        right = -p.log() if p.item() <= threshold else z * 0
        wrong = -(1 - p).log() if p.item() >= 1 - threshold else z * 0
        return y * right + (1 - y) * wrong

    return by_element(element, logits, targets)


def f1_weighted(logits, targets):
    top = bottom = 0.0
    for z, y in zip(logits.reshape(-1), targets.reshape(-1).tolist(), strict=True):
        p = sigmoid(z).item()
        top, bottom = top + y * p, bottom + y + p
    f1 = 2 * top / bottom

    def element(z, y):
        return -(1 - f1 / 2) * y * sigmoid(z).log() - f1 / 2 * (1 - y) * sigmoid(-z).log()

    return by_element(element, logits, targets)


def dice(logits, targets, smooth):
    top = bottom = smooth
    for z, y in zip(logits.reshape(-1), targets.reshape(-1).tolist(), strict=True):
        p = sigmoid(z)
        top, bottom = top + 2 * y * p, bottom + y + p
    return 1 - top / bottom


def ldam(logits, labels, counts, max_margin, scale):
    largest = max(n**-0.25 for n in counts)
    margins = [max_margin * n**-0.25 / largest for n in counts]

    def row(z, y):
        moved = [scale * (x - margins[y] if i == y else x) for i, x in enumerate(z)]
        return -softmax(moved)[y].log()

    return by_row(row, logits, labels)


def ghm(logits, targets, bins):
    lengths = [
        abs(sigmoid(z).item() - y)
        for z, y in zip(logits.reshape(-1), targets.reshape(-1).tolist(), strict=True)
    ]
    where = [min(math.floor(g * bins), bins - 1) for g in lengths]
    count = {b: where.count(b) for b in where}
    weight = torch.tensor([len(where) / (count[b] * len(count)) for b in where], dtype=logits.dtype)

    def element(z, y):
        return -y * sigmoid(z).log() - (1 - y) * sigmoid(-z).log()

    return weight.view(logits.shape) * by_element(element, logits, targets)


def unified_circle(scores, targets):
    """log(1 + sum over pairs of e^{s_i − s_j}), i wrong and j right, without a threshold class."""

    def row(s, y):
        total = 0 * s[0]
        for i, wrong in enumerate(y):
            for j, right in enumerate(y):
                if not wrong and right:
                    total = total + (s[i] - s[j]).exp()
        return (1 + total).log()

    return by_row(row, scores, targets)


def softened_softmax(logits, labels, sharpness):
    """The author's unsound form for several classes: −softmax(−K z)_y log softmax(z)_y."""

    def row(z, y):
        return -softmax(-sharpness * z)[y] * softmax(z)[y].log()

    return by_row(row, logits, labels)
