"""Slow and obvious: Fisher information sample by sample, and the largest entries by sorting."""

import torch


def naive_fisher(model, samples, loss):
    """Mean of squared gradients, one sample and one backward pass at a time."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for sample in samples:
        model.zero_grad()
        loss(model, sample).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] += p.grad**2
    model.zero_grad()
    return {name: value / len(samples) for name, value in total.items()}


def naive_topk(fisher, keep):
    """Sort every entry of every tensor; equal ones in their order."""
    entries = [
        (-value, name, index)
        for name, tensor in fisher.items()
        for index, value in enumerate(tensor.flatten().tolist())
    ]
    entries.sort(key=lambda entry: entry[0])  # a stable sort
    masks = {name: torch.zeros(t.numel(), dtype=torch.bool) for name, t in fisher.items()}
    for _, name, index in entries[:keep]:
        masks[name][index] = True
    return {name: mask.view_as(fisher[name]) for name, mask in masks.items()}
