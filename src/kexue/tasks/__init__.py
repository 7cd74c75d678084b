"""A job on data with a score, one folder or file per job."""

__all__: list[str] = []
