"""The report on the heads of a model: ours and Hugging Face's."""

import pytest
import torch
from torch import nn

from kexue.analysis.head_rank import effective_rank, head_rank_report
from kexue.nn.talking_heads_attention import TalkingHeadsAttention
from kexue.nn.wide_key import WideKeyAttention


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Stack(nn.Module):
    """Two layers with a residual, as a user would write it."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, attention_mask=None):
        for layer in self.layers:
            x = x + layer(x, attention_mask=attention_mask)
        return x


def test_equal_singular_values_have_their_number_as_effective_rank():
    sigma = torch.tensor([[3.0, 3.0, 3.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(effective_rank(sigma), torch.tensor([3.0, 1.0]))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_no_head_shows_more_than_its_key_size(causal, size):
    torch.manual_seed(0)
    layer = WideKeyAttention(16, 4, size, causal=causal)
    with torch.no_grad():
        layer.query.weight.mul_(3)
    report = head_rank_report(layer, {"x": draw(3, 24, 16)})
    assert [head.head for head in report] == [0, 1, 2, 3]
    for head in report:
        assert 0 < head.effective <= size + 0.01  # maps are float32
        assert 0 < head.size_for_99 <= size
        assert head.full == (12 if causal else 23)
        assert head.texts == 3


def test_talking_heads_have_more_rank_than_their_key_size():
    torch.manual_seed(0)
    plain = WideKeyAttention(32, 8)
    talking = TalkingHeadsAttention(32, 8, init="normal")
    talking.load_state_dict(plain.state_dict(), strict=False)
    x = {"x": draw(2, 40, 32)}
    assert max(head.effective for head in head_rank_report(plain, x)) <= 4.01
    assert min(head.size_for_99 for head in head_rank_report(talking, x)) > 4


def test_every_layer_of_a_network_is_reported_by_its_name():
    torch.manual_seed(0)
    model = Stack(WideKeyAttention(16, 2), TalkingHeadsAttention(16, 4))
    report = head_rank_report(model, {"x": draw(2, 9, 16)})
    assert [(head.layer, head.head) for head in report] == [
        *(("layers.0", i) for i in range(2)),
        *(("layers.1", i) for i in range(4)),
    ]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_padding_is_left_out(causal, left):
    torch.manual_seed(0)
    layer = TalkingHeadsAttention(16, 4, causal=causal)
    x = draw(2, 10, 16)
    padded = nn.functional.pad(x, (0, 0, 5, 0) if left else (0, 0, 0, 5), value=float("nan"))
    mask = torch.arange(15).expand(2, -1)
    mask = mask >= 5 if left else mask < 10
    wanted = head_rank_report(layer, {"x": x})
    found = head_rank_report(layer, {"x": padded, "attention_mask": mask})
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.effective == pytest.approx(theirs.effective, rel=1e-4)
        assert (mine.full, mine.size_for_99) == (theirs.full, theirs.size_for_99)


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = Stack(WideKeyAttention(16, 2, dropout=0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (head_rank_report(model, {"x": draw(2, 9, 16)}) for _ in range(2))
    assert first == second  # dropout was off
    assert model.training
    assert not model.layers[0]._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def bert():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=8,
        intermediate_size=32,
        initializer_range=0.5,
        max_position_embeddings=32,
    )
    return BertModel(config)


def test_a_bert_with_heads_of_four_has_no_rank_above_four(bert):
    ids = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 12:] = 0
    before = bert.config._attn_implementation
    report = head_rank_report(bert, {"input_ids": ids, "attention_mask": mask})
    assert [(head.layer, head.head) for head in report] == [
        (layer, head) for layer in "01" for head in range(8)
    ]
    assert all(head.full == (11 + 19) / 2 for head in report)
    assert all(head.effective > 1 and head.size_for_99 <= 4 for head in report)
    assert bert.config._attn_implementation == before


def test_a_causal_language_model_is_measured_below_the_diagonal():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=50,
            n_positions=32,
            n_embd=16,
            n_layer=1,
            n_head=8,
            initializer_range=0.5,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    ids = torch.randint(50, (2, 21), generator=torch.Generator().manual_seed(0))
    report = head_rank_report(model, {"input_ids": ids})
    assert len(report) == 8
    assert all(head.size_for_99 <= 2 and head.full == 10 for head in report)


def test_what_gives_no_weights_is_refused():
    with pytest.raises(ValueError, match="no attention weights found"):
        head_rank_report(nn.Linear(4, 4), {"input": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match="three tokens"):
        head_rank_report(WideKeyAttention(4, 2), {"x": torch.zeros(1, 1, 4)})
