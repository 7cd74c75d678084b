"""Plain texts for language models: the passages and descriptions that other tasks ask about."""

from kexue.data.mini.reading import cmrc2018
from kexue.data.mini.source import Source, Split
from kexue.data.mini.topics import iflytek

__all__ = ["mini_texts"]


def mini_texts(split: Split, size: int = 2000, *, seed: int = 0) -> list[str]:
    """Texts of a hundred or two hundred characters; no text is in two splits.

    Args:
        split: train, dev or test.
        size: how many texts, half of them passages and half descriptions.
        seed: same seed, same texts.

    Raises:
        ValueError: the size is below 2.

    Example:
        >>> texts = mini_texts("dev", 10)
        >>> len(texts), min(map(len, texts)) > 20
        (10, True)
    """
    if size < 2:
        raise ValueError(f"size must be at least 2 texts, got {size}")
    source = Source(seed, "texts", split)
    half = size // 2
    passages = dict.fromkeys(row["context"] for row in cmrc2018(source, 4 * (size - half)))
    descriptions = dict.fromkeys(row["sentence"] for row in iflytek(source, 2 * half))
    texts = [*list(passages)[: size - half], *list(descriptions)[:half]]
    source.random.shuffle(texts)
    return texts
