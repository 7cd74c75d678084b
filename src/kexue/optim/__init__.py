"""How it is minimised: optimizers and tricks of the gradient for any torch.optim.Optimizer."""

__all__: list[str] = []
