"""Slow and obvious: EM and F1 of CMRC 2018, written from the description of the official script.

F1 comes from the longest common *substring* of segments: a Chinese character is a segment, so is
a word of other letters and digits; the official punctuation counts for nothing.
"""

OFFICIAL_PUNCTUATION = [
    *"-:_*^/\\~`+=",
    *"，。：？！“”；’《》",
    *"·、「」（）－～『』",
]


def is_chinese(character):
    return "\u4e00" <= character <= "\u9fa5"


def naive_segments(text):
    found, word = [], ""
    for character in text.lower().strip():
        if character in OFFICIAL_PUNCTUATION:
            continue
        if character.isalnum() and not is_chinese(character):
            word += character
            continue
        if word:
            found.append(word)
            word = ""
        if not character.isspace():
            found.append(character)
    return found + ([word] if word else [])


def naive_f1(prediction, answer):
    a, b = naive_segments(prediction), naive_segments(answer)
    common = 0
    for i in range(len(a)):
        for j in range(i + 1, len(a) + 1):
            for k in range(len(b)):
                if b[k : k + j - i] == a[i:j]:
                    common = max(common, j - i)
    if common == 0:
        return 0.0
    precision, recall = common / len(a), common / len(b)
    return 2 * precision * recall / (precision + recall)


def naive_exact_match(prediction, answer):
    def bare(text):
        return [c for c in text.lower().strip() if c not in OFFICIAL_PUNCTUATION]

    return bare(prediction) == bare(answer)
