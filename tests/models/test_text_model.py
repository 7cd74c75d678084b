"""The last layer for [CLS] alone, and training on a CPU: exact, or equal in distribution."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    ErnieConfig,
    ErnieModel,
    RobertaConfig,
    RobertaModel,
    RoFormerConfig,
    RoFormerModel,
)

from kexue.models.cpu_training import prepare_for_cpu
from kexue.models.text_model import TextModel
from kexue.nn import SequenceHead
from kexue.nn.dropout import BitDropout

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
BERT_LIKE = {
    "bert": (BertConfig, BertModel, {}),
    "roberta": (RobertaConfig, RobertaModel, {}),
    "electra": (ElectraConfig, ElectraModel, {"embedding_size": 16}),
    "ernie": (ErnieConfig, ErnieModel, {}),
    "roformer": (RoFormerConfig, RoFormerModel, {"embedding_size": 16}),
}


def encoder_of(kind, **options):
    config, model, extra = BERT_LIKE[kind]
    torch.manual_seed(0)
    return model(config(**SIZES, **extra, **options)).double()


@pytest.fixture
def rows():
    ids = torch.randint(5, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    ids[1, 5:] = 1
    return ids, mask


def gradients(model, scores):
    model.zero_grad()
    scores.square().sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", BERT_LIKE)
def test_computing_the_last_layer_for_the_first_token_changes_neither_scores_nor_gradients(
    kind, rows
):
    encoder = encoder_of(kind).eval()
    model = TextModel(encoder, SequenceHead(16, 4).double())
    ids, mask = rows
    short = model(ids, mask)
    found = gradients(model, short)
    states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    whole = model.head(states, mask.bool())
    assert model.first_token.applies
    torch.testing.assert_close(short, whole, rtol=0, atol=1e-14)
    expected = gradients(model, whole)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12)


def test_the_encoder_by_itself_still_gives_all_states(rows):
    encoder = encoder_of("bert").eval()
    model = TextModel(encoder, SequenceHead(16, 4).double())
    ids, mask = rows
    before = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    model(ids, mask)
    after = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert after.shape == (3, 9, 16)
    assert torch.equal(before, after)


def test_with_padding_on_the_left_the_first_visible_token_is_read():
    encoder = encoder_of("bert").eval()
    model = TextModel(encoder, SequenceHead(16, 4).double())
    ids = torch.tensor([[0, 7, 8, 9], [5, 6, 7, 8]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(
        model(ids, mask), model.head(states, mask.bool()), rtol=0, atol=1e-14
    )


def test_gradient_checkpointing_trains_with_the_same_gradients(rows):
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = TextModel(encoder_of("bert", **none), SequenceHead(16, 4).double()).train()
    ids, mask = rows
    expected = gradients(model, model(ids, mask))
    enable = "activation_checkpointing_enable"  # its name since transformers 5.20
    enable = enable if hasattr(model.encoder, enable) else "gradient_checkpointing_enable"
    getattr(model.encoder, enable)()
    assert model.first_token.checkpointed
    found = gradients(model, model(ids, mask))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12)


def test_a_decoder_is_left_as_it_is():
    model = TextModel(encoder_of("bert", is_decoder=True), SequenceHead(16, 4))
    assert not model.first_token.applies


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_a_head_that_reads_all_tokens_gets_all_tokens(pooling, rows):
    encoder = encoder_of("bert").eval()
    model = TextModel(encoder, SequenceHead(16, 4, pooling=pooling).double())
    ids, mask = rows
    states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(model(ids, mask), model.head(states, mask.bool()))


def test_an_encoder_of_another_build_is_left_as_it_is(rows):
    config = DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    encoder = DistilBertModel(config).double().eval()
    model = TextModel(encoder, SequenceHead(16, 4).double())
    ids, mask = rows
    states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert not model.first_token.applies
    assert torch.equal(model(ids, mask), model.head(states, mask.bool()))


def test_a_copy_of_the_model_shortens_its_own_encoder(rows):
    model = TextModel(encoder_of("bert").eval(), SequenceHead(16, 4).double())
    twin = copy.deepcopy(model)
    ids, mask = rows
    torch.testing.assert_close(twin(ids, mask), model(ids, mask), rtol=0, atol=0)
    assert twin.first_token is not model.first_token


@pytest.mark.parametrize("kind", ["bert", "roberta", "ernie", "electra"])
def test_without_dropout_short_attention_equals_torch_s_own_in_values_and_gradients(kind, rows):
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    plain = encoder_of(kind, **none).train()
    fast = copy.deepcopy(plain)
    prepare_for_cpu(fast)
    assert fast.config._attn_implementation == "kexue_cpu"
    ids, mask = rows
    a = plain(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    b = fast(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    expected, found = gradients(plain, a), gradients(fast, b)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=2e-5)


def test_the_dropout_of_every_layer_is_replaced_and_no_name_changes():
    encoder = encoder_of("bert")
    names = list(encoder.state_dict())
    rates = [m.p for m in encoder.modules() if isinstance(m, nn.Dropout)]
    prepare_for_cpu(encoder)
    assert [m.p for m in encoder.modules() if isinstance(m, BitDropout)] == rates
    assert not any(isinstance(m, nn.Dropout) for m in encoder.modules())
    assert list(encoder.state_dict()) == names


def test_an_encoder_in_evaluation_stays_in_evaluation(rows):
    encoder = encoder_of("bert").eval()
    ids, mask = rows
    before = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    prepare_for_cpu(encoder)
    with torch.no_grad():
        after = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(before, after, rtol=0, atol=1e-12)


def test_dropout_in_short_attention_keeps_the_mean_of_its_output():
    torch.manual_seed(0)
    from kexue.models.cpu_training import short_attention

    q, k, v = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64)
    still, _ = short_attention(nn.Module(), q, k, v, None, dropout=0.0)
    q.requires_grad_()
    draws = torch.stack(
        [short_attention(nn.Module(), q, k, v, None, dropout=0.2)[0] for _ in range(4000)]
    ).detach()
    error = 5 * draws.std(0) / 4000**0.5
    assert ((draws.mean(0) - still).abs() <= error + 1e-6).all()


def test_a_row_that_sees_nothing_gives_zeros_and_finite_gradients():
    from kexue.models.cpu_training import short_attention

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 3, 4, requires_grad=True)
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[..., 1, :2] = True
    output, _ = short_attention(nn.Module(), q, k, v, mask)
    assert not output[:, [0, 2]].any()
    assert output[:, 1].all()
    (gradient,) = torch.autograd.grad(output.square().sum(), q)
    assert gradient.isfinite().all()
