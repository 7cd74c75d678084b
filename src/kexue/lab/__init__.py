"""One experiment per system: a claim, a number, a picture and an honest verdict."""

__all__: list[str] = []
