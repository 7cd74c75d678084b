"""What networks are made of: layers and heads as plain PyTorch modules."""

__all__: list[str] = []
