"""The loop: fit, objectives and their wrappers, checkpoints, tracking."""

__all__: list[str] = []
