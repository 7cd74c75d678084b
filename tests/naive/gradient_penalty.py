"""Slow twins of S15: one sample at a time, every gradient in full."""

import copy

import torch


def input_squares(function, x):
    """||∂f(x_i)/∂x_i||² by one backward pass per sample."""
    squares = []
    for row in x:
        row = row.detach()[None].requires_grad_()
        (grad,) = torch.autograd.grad(function(row).sum(), row)
        squares.append(grad.square().sum())
    return torch.stack(squares)


def parameter_squares(model, samples, loss):
    """||∂f_i/∂theta||² with each sample alone in its batch; samples are (x, y) with one row."""
    squares = []
    for x, y in samples:
        params = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss(model(x), y).sum(), params, allow_unused=True)
        squares.append(sum(g.square().sum() for g in grads if g is not None))
    return torch.stack(squares)


def penalised_gradients(model, loss_of, coef, names=None):
    """Gradients of L + coef ||∇L||² by finite differences of the value in float64."""
    model = copy.deepcopy(model).double()

    def value():
        chosen = [p for n, p in model.named_parameters() if names is None or n in names]
        loss = loss_of(model)
        grads = torch.autograd.grad(loss, chosen)
        return (loss + coef * sum(g.square().sum() for g in grads)).item()

    found, h = {}, 1e-5
    for name, p in model.named_parameters():
        grad = torch.zeros_like(p)
        flat, out = p.data.view(-1), grad.view(-1)
        for k in range(flat.numel()):
            old = flat[k].item()
            flat[k] = old + h
            up = value()
            flat[k] = old - h
            out[k] = (up - value()) / (2 * h)
            flat[k] = old
        found[name] = grad
    return found
