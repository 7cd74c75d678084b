"""Whole networks: the built-in tiny encoder, and pretrained ones, loaded strictly."""

__all__: list[str] = []
