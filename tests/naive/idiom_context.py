"""Slow and obvious: the text around a blank of CHID, cut one character at a time (S01, 2.3)."""


def naive_context(left, right, max_length):
    """Texts left and right of a blank; between two texts of one side lies another blank.

    Budget = max_length − 8 − 4 · (other blanks that are still there). As long as the characters
    exceed it, the longer side (the right one on ties) loses the character at its far end; a piece
    of which at most one character remains goes as a whole, and the blank beside it with it.
    """
    left, right = list(left), list(right)
    while left or right:
        left_characters = len("".join(left))
        right_characters = len("".join(right))
        other_blanks = 0
        for side in (left, right):
            if len(side) > 1:
                other_blanks += len(side) - 1
        if left_characters + right_characters <= max_length - 8 - 4 * other_blanks:
            break
        if left_characters > right_characters or not right:
            if len(left[0]) > 1:
                left[0] = left[0][1:]
            else:
                left.pop(0)
        else:
            if len(right[-1]) > 1:
                right[-1] = right[-1][:-1]
            else:
                right.pop()
    return left, right


def naive_assignment(scores):
    """The injective map of rows to columns with the largest total, by trying them all."""
    from itertools import permutations

    rows, columns = len(scores), len(scores[0])
    return max(
        permutations(range(columns), rows), key=lambda m: sum(scores[r][c] for r, c in enumerate(m))
    )
