"""The closed form as the article writes it: loops, an inverse, every class by itself."""

import numpy as np

__all__ = ["binary", "covariance", "probabilities", "softmax_layer"]


def covariance(x, y, classes):
    """Total covariance plus the overall mean's square minus those of the classes' means."""
    mean = x.mean(axis=0)
    total = sum(np.outer(row - mean, row - mean) for row in x) / len(x)
    found = total + np.outer(mean, mean)
    for k in range(classes):
        own = x[y == k]
        found -= len(own) / len(x) * np.outer(own.mean(axis=0), own.mean(axis=0))
    return found


def softmax_layer(x, y, classes, shrinkage=0.0):
    """Weight and bias row by row."""
    sigma = covariance(x, y, classes)
    sigma = (1 - shrinkage) * sigma + shrinkage * np.trace(sigma) / len(sigma) * np.eye(len(sigma))
    inverse = np.linalg.inv(sigma)
    weight, bias = [], []
    for k in range(classes):
        own = x[y == k]
        mean = own.mean(axis=0)
        weight.append(mean @ inverse)
        bias.append(np.log(len(own) / len(x)) - mean @ inverse @ mean / 2)
    return np.array(weight), np.array(bias)


def binary(x, y):
    """Weight and bias of the logistic regression of class 1 against class 0."""
    inverse = np.linalg.inv(covariance(x, y, 2))
    zero, one = x[y == 0].mean(axis=0), x[y == 1].mean(axis=0)
    weight = (one - zero) @ inverse
    bias = (zero @ inverse @ zero - one @ inverse @ one) / 2
    return weight, bias + np.log((y == 1).sum() / (y == 0).sum())


def probabilities(x, weight, bias):
    """The softmax of the logits, row by row."""
    logits = x @ weight.T + bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)
