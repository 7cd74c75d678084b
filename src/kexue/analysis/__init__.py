"""What a network or a score table hides."""

__all__: list[str] = []
