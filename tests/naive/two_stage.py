"""The article's two stages, line by line: chunks shuffled, then a line of each chunk per round."""


def naive_two_stages(lines, size, rng, remedy=False):
    """The lines in the order of the output.

    Args:
        lines: a list.
        size: lines of a chunk; the last one may be shorter.
        rng: a `random.Random`.
        remedy: leave a short last chunk out of a round with the chance 1 − (its lines left) /
            (lines left of each other chunk).
    """
    chunks = [list(lines[start : start + size]) for start in range(0, len(lines), size)]
    for chunk in chunks:
        rng.shuffle(chunk)
    out = []
    while any(chunks):
        alive = [chunk for chunk in chunks if chunk]
        last = chunks[-1]
        if remedy and last and len(alive) > 1 and rng.random() >= len(last) / len(alive[0]):
            alive.remove(last)
        rng.shuffle(alive)
        out += [chunk.pop() for chunk in alive]
    return out
