"""Names of vocabulary entries that a person can read, and what kind of entry each is.

Byte-level BPE (GPT-2, Llama 3, Qwen) spells every byte as one of 256 printable characters; they are
turned back: `Ġthe` is shown as `␣the`, `æĺİ` as `明`, and bytes that are no whole character as
`<E6><98>`. Control characters, and those that turn the direction of a line, are shown by number:
`\\n`, `\\u202e`.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

__all__ = ["byte_level", "readable", "token_kinds", "token_names"]

UNUSED = re.compile(
    r"[\[<]\|?(unused|extra_id|reserved|placeholder|dummy|extra)[\w-]*\|?[\]>]"
    r"|madeupword\d+|<\|reserved_special_token_\d+\|>",
    re.IGNORECASE,
)
SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _letters() -> dict[str, int]:
    """The character that stands for each byte, as GPT-2 chose them."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


LETTERS = _letters()


def readable(token: str, byte_level: bool = False) -> str:
    """A token as a person would write it.

    Args:
        token: as the tokenizer spells it.
        byte_level: its characters stand for bytes.

    Example:
        >>> readable("Ġthe", byte_level=True), readable("æĺİ", byte_level=True)
        ('␣the', '明')
        >>> readable("æĺ", byte_level=True), readable("a\\u202eb\\n")
        ('<E6><98>', 'a\\\\u202eb\\\\n')
    """
    if byte_level and all(letter in LETTERS for letter in token):
        token = bytes(LETTERS[letter] for letter in token).decode("utf-8", "surrogateescape")
        token = re.sub("[\udc80-\udcff]+", _bytes, token)
    return "".join(map(_shown, token)) or "(empty)"


def token_names(tokenizer: Any, count: int) -> list[str]:
    """The names of entries 0 … count − 1; `(none 7)` for rows without a token."""
    known = min(count, len(tokenizer))
    tokens: Sequence[str | None] = tokenizer.convert_ids_to_tokens(list(range(known)))
    level = byte_level(tokenizer)
    names = [f"(none {n})" if t is None else readable(t, level) for n, t in enumerate(tokens)]
    return [*names, *(f"(none {number})" for number in range(known, count))]


def token_kinds(tokenizer: Any, count: int) -> list[str]:
    """ "", "special", "unused" or, for rows without a token, "padding"."""
    known = min(count, len(tokenizer))
    special = set(tokenizer.all_special_ids)
    kinds = []
    for number, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(known)))):
        if token is None:
            kinds.append("padding")
        elif UNUSED.fullmatch(token):
            kinds.append("unused")
        else:
            kinds.append("special" if number in special else "")
    return kinds + ["padding"] * (count - known)


def byte_level(tokenizer: Any) -> bool:
    """Whether the characters of its tokens stand for bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hasattr(tokenizer, "byte_decoder")
    return "ByteLevel" in f"{backend.decoder!r}"


def _shown(letter: str) -> str:
    if letter == " ":
        return "␣"
    if letter in SHORT:
        return SHORT[letter]
    if unicodedata.category(letter)[0] in "CZ":
        number = ord(letter)
        return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    return letter


def _bytes(found: re.Match[str]) -> str:
    return "".join(f"<{ord(letter) - 0xDC00:02X}>" for letter in found[0])
