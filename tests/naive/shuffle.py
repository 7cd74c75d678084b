"""The shuffle as it is defined: all records in a list, sorted by numpy's Philox words."""

from itertools import pairwise

from numpy.random import Philox


def key(seed, number):
    """The first two words of Philox4x64-10; numpy adds one to the counter before it begins."""
    words = Philox(key=seed, counter=(number - 1) % 2**256).random_raw(2)
    return int(words[0]), int(words[1])


def records(content, delimiter=b"\n"):
    """Records of one file, each with its delimiter; the last one's is completed."""
    found, at = [], 0
    while (end := content.find(delimiter, at)) >= 0:
        found.append(content[at : end + len(delimiter)])
        at = end + len(delimiter)
    if at < len(content):
        rest = content[at:]
        begun = max(k for k in range(len(delimiter)) if rest.endswith(delimiter[:k]))
        found.append(rest + delimiter[begun:])
    return found


def shuffled(contents, seed, *, delimiter=b"\n", header=0):
    """Header of the first file that has one, and the records of all files in order."""
    head, rows = b"", []
    for content in contents:
        lines = records(content, delimiter)
        head = head or b"".join(lines[:header])
        rows += lines[header:]
    keys = [key(seed, number) for number in range(len(rows))]
    return head, [rows[i] for i in sorted(range(len(rows)), key=keys.__getitem__)]


def parts(rows, *, lines_per_file=None, files=None):
    """Records of each of several outputs."""
    if lines_per_file is not None:
        starts = range(0, max(len(rows), 1), lines_per_file)
        return [rows[start : start + lines_per_file] for start in starts]
    edges = [len(rows) * j // files for j in range(files + 1)]
    return [rows[a:b] for a, b in pairwise(edges)]
