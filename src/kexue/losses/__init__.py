"""What is minimised: losses as plain functions of tensors."""

__all__: list[str] = []
