"""Slow and obvious: one token at a time goes from the longest piece (S01, 2.2)."""


def naive_truncation(lengths, budget):
    """How much of each piece stays; on ties the first piece loses."""
    kept = list(lengths)
    while sum(kept) > budget:
        longest = 0
        for i in range(len(kept)):
            if kept[i] > kept[longest]:
                longest = i
        kept[longest] -= 1
    return kept
