"""Whole networks: the built-in tiny encoder, and loading of pretrained encoders with a strict table."""

__all__: list[str] = []
