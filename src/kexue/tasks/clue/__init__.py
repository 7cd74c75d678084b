"""The eleven CLUE tasks (S01), one file each."""

__all__: list[str] = []
