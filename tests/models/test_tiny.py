"""The built-in encoder: reads any Chinese text, offsets exact, from scratch by a seed."""

import pytest
import torch

from kexue.models.loading import load_encoder, load_tokenizer
from kexue.models.tiny import CHARACTER_RANGES, SPECIAL_TOKENS, tiny_encoder, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def test_special_tokens_come_first_and_padding_is_zero():
    assert TOKENIZER.convert_ids_to_tokens(range(6)) == list(SPECIAL_TOKENS)
    assert TOKENIZER.pad_token_id == 0


def test_every_character_of_the_ranges_is_an_entry_of_its_own():
    for first, last in CHARACTER_RANGES:
        for code in range(first, last + 1):
            character = chr(code)
            if character.isspace() or len(character.lower()) > 1:
                continue
            tokens = TOKENIZER.tokenize(character)
            assert tokens == [character.lower()] or tokens == ["[UNK]"]
            assert tokens != ["[UNK]"] or character.lower() not in TOKENIZER.get_vocab()


@pytest.mark.parametrize("text", ["中文字", "《ＡＢＣ》，。", "a1%[]_", "㐀", "😀"])
def test_common_characters_are_known_and_rare_ones_are_not(text):
    known = "[UNK]" not in TOKENIZER.tokenize(text)
    assert known == (text not in ("㐀", "😀"))


def test_real_texts_hold_hardly_an_unknown_character(real_clue):
    from kexue.tasks.clue import load_clue

    texts = [e.texts[0] for e in load_clue("iflytek", real_clue, "dev")[:200]]
    ids = [i for text in texts for i in TOKENIZER(text, add_special_tokens=False)["input_ids"]]
    assert ids.count(TOKENIZER.unk_token_id) / len(ids) < 0.01


def test_pairs_get_token_type_zero_throughout():
    both = TOKENIZER("甲", "乙")
    assert TOKENIZER.convert_ids_to_tokens(both["input_ids"]) == [
        "[CLS]",
        "甲",
        "[SEP]",
        "乙",
        "[SEP]",
    ]
    assert set(both.get("token_type_ids", [0])) == {0}


def test_the_blank_of_chid_is_one_token():
    assert TOKENIZER.tokenize("他[unused1]了") == ["他", "[unused1]", "了"]


def test_the_tokenizer_saved_and_loaded_cuts_the_same(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "GPU 涨价了，ＡＢ😀！"
    assert loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert len(loaded) == len(TOKENIZER)
    assert loaded.pad_token_id == 0


def test_the_seed_decides_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in tiny_encoder(50, hidden_size=64).parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("hidden_size", [32, 64, 128, 192])
def test_the_encoder_has_the_width_and_depth_asked_for_and_no_pooler(hidden_size):
    encoder = tiny_encoder(50, hidden_size=hidden_size, layers=3)
    ids = torch.arange(6, 12)[None]
    assert encoder(input_ids=ids).last_hidden_state.shape == (1, 6, hidden_size)
    assert encoder.config.num_hidden_layers == 3
    assert encoder.pooler is None


def test_tiny_by_name_is_the_built_in_pair():
    torch.manual_seed(0)
    encoder, table = load_encoder("tiny", vocabulary_size=len(TOKENIZER))
    assert load_tokenizer("tiny").get_vocab() == TOKENIZER.get_vocab()
    assert encoder.get_input_embeddings().num_embeddings == len(TOKENIZER)
    assert table.share == 1
    assert table.total == sum(p.numel() for p in encoder.parameters())
