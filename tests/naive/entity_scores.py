"""Slow and obvious: the two scores of CLUENER, written from their descriptions (S01, 2.4)."""


def naive_string_macro_f1(texts, gold, told, labels):
    """Official: per type, sets of entity strings per sentence; unweighted mean of the F1."""
    total = 0.0
    for kind in labels:
        right = wrong = missed = 0
        for text, gold_entities, told_entities in zip(texts, gold, told, strict=True):
            g = {text[s:e] for k, s, e in gold_entities if k == kind}
            t = {text[s:e] for k, s, e in told_entities if k == kind}
            for mention in t:
                if mention in g:
                    right += 1
                else:
                    wrong += 1
            for mention in g:
                if mention not in t:
                    missed += 1
        precision = right / (right + wrong) if right + wrong else 0.0
        recall = right / (right + missed) if right + missed else 0.0
        if precision + recall:
            total += 2 * precision * recall / (precision + recall)
    return 100 * total / len(labels)


def naive_position_micro_f1(gold, told):
    """The author's: (type, start, end) over all sentences and types together."""
    right = sum(1 for g, t in zip(gold, told, strict=True) for entity in t if entity in g)
    all_told = sum(len(set(t)) for t in told)
    all_gold = sum(len(set(g)) for g in gold)
    if right == 0:
        return 0.0
    precision, recall = right / all_told, right / all_gold
    return 100 * 2 * precision * recall / (precision + recall)
