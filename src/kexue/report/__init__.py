"""Run folders and self-contained HTML pages."""

__all__: list[str] = []
