"""Tokens out: sampling and chat."""

__all__: list[str] = []
