"""Slow twins for exposure bias: Python whole numbers, one token after the other."""

import torch

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def mixed(x):
    x %= WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def number(key, row, index, stream, bits=31):
    """What token `index` of a row draws from a stream."""
    row_key = mixed(int(key) + (row + 1) * GOLDEN)
    return mixed(row_key + (4 * index + stream + 1) * GOLDEN) >> (64 - bits)


def target_places(labels, labels_of):
    """Positions of a row whose input is a token that had to be predicted before."""
    if labels_of == "own":
        return [t for t in range(1, len(labels)) if labels[t] != -100]
    return [t for t in range(1, len(labels)) if labels[t - 1] != -100]


def random_replace(
    inputs, labels, mask=None, *, key, p_sequence, p_token, pool="target", protect=(),
    labels_of="next", sequence=None, sequence_mask=None, weights=None,
):  # fmt: skip
    """Rows of lists in, rows of lists out."""
    out = []
    for b, (x, y) in enumerate(zip(inputs, labels, strict=True)):
        x, places, switch = list(x), target_places(y, labels_of), number(key, b, 0, 0)
        gold = list(x)
        asked = y[1:] if labels_of == "own" else y
        if weights is not None:
            ids = None
        elif pool == "target":
            ids = [t for t in asked if t != -100 and t not in protect]
        else:
            row = gold if sequence is None else sequence[b]
            keep = [True] * len(row) if sequence_mask is None else sequence_mask[b]
            ids = [t for t, k in zip(row, keep, strict=True) if k and t not in protect]
        for i, t in enumerate(places, start=1):
            if gold[t] in protect or (mask is not None and not mask[b][t]):
                continue
            if switch >= round(p_sequence * 2**31):
                continue
            if number(key, b, i, 1) >= round(p_token * 2**31):
                continue
            if ids is None:
                level, total = number(key, b, i, 2, 53) / 2**53, 0.0
                for token, weight in enumerate(weights):
                    total += weight / sum(weights)
                    if level < total:
                        x[t] = token
                        break
            else:
                x[t] = ids[number(key, b, i, 2) * len(ids) // 2**31]
        out.append(x)
    return out


def mixed_inputs(inputs, labels, words, *, key, gold_rate, labels_of="next"):
    """Scheduled sampling with the word predicted at every position given."""
    out = []
    for b, (x, y) in enumerate(zip(inputs, labels, strict=True)):
        x = list(x)
        for i, t in enumerate(target_places(y, labels_of), start=1):
            if number(key, b, i, 0) >= round(gold_rate * 2**31):
                x[t] = words[b][t - 1]
        out.append(x)
    return out


def greedy(forward, inputs, labels, labels_of="next"):
    """Token by token, the whole row anew for each: predictions at every position."""
    ids = inputs.clone()
    for t in range(1, ids.shape[1]):
        said = forward(ids).argmax(-1)[:, t - 1]
        for b in range(len(ids)):
            if t in target_places(labels[b].tolist(), labels_of):
                ids[b, t] = said[b]
    return forward(ids).argmax(-1)


def beam_search(conditional, length, width):
    """The best sequences of a table of conditionals: prefix → {token: probability}."""
    beams = [((), 1.0)]
    for _ in range(length):
        longer = [
            ((*prefix, token), p * q)
            for prefix, p in beams
            for token, q in conditional[prefix].items()
        ]
        beams = sorted(longer, key=lambda one: -one[1])[:width]
    return beams


class Causal(torch.nn.Module):
    """A tiny causal model: a GRU, or with a source a UniLM-like attention over it."""

    def __init__(self, vocabulary, seed=0, width=12):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.table = torch.nn.Embedding(vocabulary, width)
            self.rnn = torch.nn.GRU(width, width, batch_first=True)
            self.out = torch.nn.Linear(width, vocabulary)
        self.double()

    def forward(self, ids=None, embeddings=None):
        return 5 * self.out(self.rnn(self.table(ids) if embeddings is None else embeddings)[0])
