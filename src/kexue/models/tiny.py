"""The built-in encoder: small, from scratch, with a character vocabulary of its own.

Two layers, 128 wide, and one vocabulary entry for every character of the CJK, Latin and
punctuation ranges, so that any Chinese text can be read without downloading anything. It is there
for demonstrations, tests and debugging; its scores say nothing about what a pretrained encoder
would reach.
"""

from collections.abc import Iterable
from typing import Any

__all__ = ["CHARACTER_RANGES", "SPECIAL_TOKENS", "tiny_encoder", "tiny_tokenizer"]

SPECIAL_TOKENS = ("[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

CHARACTER_RANGES = (
    (0x0021, 0x007E),  # printable ASCII
    (0x00A1, 0x017F),  # Latin letters with marks
    (0x0391, 0x03C9),  # Greek, for units and formulas
    (0x2010, 0x2027),  # dashes, quotation marks, ellipsis
    (0x2030, 0x205E),
    (0x3000, 0x303F),  # CJK punctuation
    (0x4E00, 0x9FFF),  # CJK unified ideographs
    (0xFF01, 0xFF5E),  # full-width forms
)


def tiny_tokenizer(characters: Iterable[str] | None = None) -> Any:
    """One token per character, white space dropped, letters lower-cased; offsets are exact.

    Args:
        characters: the vocabulary behind the special tokens; default all of `CHARACTER_RANGES`.

    Example:
        >>> tiny_tokenizer().tokenize("GPU 涨价了")
        ['g', 'p', 'u', '涨', '价', '了']
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if characters is None:
        characters = (chr(c) for first, last in CHARACTER_RANGES for c in range(first, last + 1))
    characters = [c for c in characters if c == c.lower() and not c.isspace()]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:0 [SEP]:0",
        special_tokens=[(t, vocabulary[t]) for t in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        extra_special_tokens=["[unused1]"],
        model_max_length=512,
    )


def tiny_encoder(vocabulary_size: int, *, hidden_size: int = 128, layers: int = 2) -> Any:
    """A BERT of two layers with random weights, drawn from torch's current seed.

    Args:
        vocabulary_size: rows of the embedding table.
        hidden_size: width; heads are 64 wide, the feed-forward layer four times the width.
        layers: depth.

    Returns:
        A `transformers.BertModel` without pooler.
    """
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden_size // 64),
        intermediate_size=4 * hidden_size,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    return BertModel(config, add_pooling_layer=False)
