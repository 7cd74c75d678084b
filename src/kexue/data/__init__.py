"""Bytes in, batches out: corpora, cached features, batches, built-in look-alike data."""

__all__: list[str] = []
