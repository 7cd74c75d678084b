"""What a run refuses before it starts, and what it tells of its predictions."""

import numpy as np
import pytest
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from kexue.data.features import FeatureTable
from kexue.tasks.clue import make_task
from kexue.tasks.clue.run import fits_positions

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def lengths(*values):
    made = FeatureTable.__new__(FeatureTable)
    made.lengths = np.array(values)
    return made


def bert(positions):
    return BertModel(BertConfig(**SIZES, max_position_embeddings=positions))


def test_padding_counts_against_the_encoder_s_positions():
    task = make_task("cmrc2018", max_length=256)
    fits_positions(bert(144), task, lengths(20, 130))
    with pytest.raises(ValueError, match=r"130 tokens, padded to 144; the encoder has 140"):
        fits_positions(bert(140), task, lengths(20, 130))


def test_a_row_is_not_padded_beyond_the_task_s_own_length():
    fits_positions(bert(130), make_task("cmrc2018", max_length=130), lengths(130))


def test_roberta_counts_its_positions_from_the_padding_id():
    encoder = RobertaModel(RobertaConfig(**SIZES, max_position_embeddings=66, pad_token_id=1))
    task = make_task("tnews", max_length=64)
    fits_positions(encoder, task, lengths(64))
    with pytest.raises(ValueError, match="the encoder has 64 positions"):
        fits_positions(encoder, task, lengths(65))
