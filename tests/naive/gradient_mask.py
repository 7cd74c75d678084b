"""Slow and obvious: ChildTuning entry by entry, and the AdamW of its authors' code."""

import torch


def naive_sgd(theta, gradients, masks, keep_prob, lr, momentum=0.0, *, update=False):
    """Lists of numbers through SGD steps; `update` masks the change instead of the gradient."""
    theta, history, path = list(theta), [0.0] * len(theta), []
    for gradient, mask in zip(gradients, masks, strict=True):
        for i in range(len(theta)):
            factor = mask[i] / keep_prob
            g = gradient[i] if update else gradient[i] * factor
            history[i] = momentum * history[i] + g
            change = -lr * history[i]
            theta[i] += change * factor if update else change
        path.append(list(theta))
    return path


def naive_masked_sum(gradient, mask, keep_prob):
    """One tensor of any shape, entry by entry."""
    out = gradient.clone().flatten()
    for i, keep in enumerate(mask.flatten().tolist()):
        out[i] = out[i] / keep_prob if keep else 0.0
    return out.view_as(gradient)


class NaiveAdamW(torch.optim.Optimizer):
    """AdamW with ε inside the bias correction and the decay after the step, on all entries."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                t = state["t"] = state.get("t", 0) + 1
                state["m"] = b1 * state.get("m", 0) + (1 - b1) * p.grad
                state["v"] = b2 * state.get("v", 0) + (1 - b2) * p.grad**2
                size = group["lr"] * (1 - b2**t) ** 0.5 / (1 - b1**t)
                p.sub_(size * state["m"] / (state["v"].sqrt() + group["eps"]))
                p.sub_(group["lr"] * group["decay"] * p)
