"""Bytes in, batches out: corpora, cached features, length-bucketed batches, built-in look-alike data."""

__all__: list[str] = []
