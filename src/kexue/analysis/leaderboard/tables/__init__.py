"""Tables that come along: superglue, superglue-diagnostics and glue.

Every file says in its first lines where its rows are from.
"""

from pathlib import Path

__all__ = ["BUILT_IN", "built_in"]

BUILT_IN = ("superglue", "superglue-diagnostics", "glue")


def built_in(name: str) -> Path:
    """The CSV file of a built-in table.

    Raises:
        ValueError: there is no such table.

    Example:
        >>> built_in("glue").name
        'glue.csv'
    """
    if name not in BUILT_IN:
        raise ValueError(f"no built-in table {name!r}; there are {', '.join(BUILT_IN)}")
    return Path(__file__).with_name(f"{name}.csv")
