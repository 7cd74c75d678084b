"""Sampling at one perplexity, alone and inside `generate`."""

import pytest
import torch

from kexue.generation.entropy_processor import EntropyLogitsProcessor


def perplexity(scores):
    return torch.special.entr(scores.double().softmax(-1)).sum(-1).exp()


@pytest.fixture(scope="module")
def model():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    return GPT2LMHeadModel(config).eval()


def generate(model, processor, **options):
    torch.manual_seed(1)
    return model.generate(
        torch.tensor([[5, 6, 7], [8, 9, 10]]),
        attention_mask=torch.ones(2, 3, dtype=torch.long),
        logits_processor=[processor],
        max_new_tokens=6,
        min_new_tokens=6,
        top_k=0,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )


@pytest.mark.parametrize("wanted", [2.0, 9.0])
def test_every_step_of_generate_has_the_perplexity(model, wanted):
    found = generate(model, EntropyLogitsProcessor(wanted), do_sample=True)
    assert found.sequences.shape == (2, 9)
    for scores in found.scores:
        torch.testing.assert_close(
            perplexity(scores), torch.full((2,), wanted).double(), rtol=1e-4, atol=0
        )


def test_perplexity_one_is_greedy_search(model):
    greedy = generate(model, lambda ids, scores: scores, do_sample=False)
    sampled = generate(model, EntropyLogitsProcessor(1.0), do_sample=True)
    assert torch.equal(greedy.sequences, sampled.sequences)


def test_forbidden_tokens_stay_forbidden_and_a_single_one_stays_certain():
    scores = torch.tensor([[1.0, 0.5, -torch.inf, 0.0], [-torch.inf, 3.0, -torch.inf, -torch.inf]])
    q = EntropyLogitsProcessor(8.0)(None, scores).softmax(-1)
    third = 1 / 3
    torch.testing.assert_close(q, torch.tensor([[third, third, 0.0, third], [0.0, 1.0, 0.0, 0.0]]))


def test_what_is_very_unlikely_is_not_forbidden():
    scores = torch.tensor([[0.0, -0.1, -900.0, -torch.inf], [1.0, 0.0, -1e6, 0.5]])
    found = EntropyLogitsProcessor(1.2)(None, scores)
    assert (found.isinf() == scores.isinf()).all()
    assert (found.argsort(descending=True) == scores.argsort(descending=True)).all()
    torch.testing.assert_close(found.logsumexp(-1), torch.zeros(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("do_sample", [True, False])
def test_beams_and_padding_keep_finite_scores(model, do_sample):
    torch.manual_seed(1)
    found = model.generate(
        torch.tensor([[0, 0, 5, 6], [1, 2, 3, 8]]),
        attention_mask=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
        logits_processor=[EntropyLogitsProcessor(1.01)],
        do_sample=do_sample,
        num_beams=3,
        max_new_tokens=5,
        output_scores=True,
        return_dict_in_generate=True,
        **({"top_k": 0} if do_sample else {}),
    )
    assert found.sequences_scores.isfinite().all()
    assert torch.stack(found.scores).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_stays(dtype):
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = EntropyLogitsProcessor(5.0)(None, scores)
    assert found.dtype == dtype
    assert perplexity(found) == pytest.approx([5.0] * 3, rel=0.03)


def test_the_power_can_be_limited_so_that_a_sure_step_stays_sure():
    sure, wide = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.2, 0.1, 0.0]])
    only_sharpen = EntropyLogitsProcessor(2.0, min_gamma=1.0)
    torch.testing.assert_close(only_sharpen(None, sure).softmax(-1), sure.softmax(-1))
    assert perplexity(only_sharpen(None, wide)) == pytest.approx(2.0, rel=1e-4)
    capped = EntropyLogitsProcessor(1.0, max_gamma=3.0)
    torch.testing.assert_close(capped(None, wide).softmax(-1), (3 * wide).softmax(-1))


def test_senseless_options_are_refused():
    with pytest.raises(ValueError, match=r"perplexity must be at least 1, got 0\.5"):
        EntropyLogitsProcessor(0.5)
    with pytest.raises(ValueError, match=r"min_gamma <= max_gamma, got inf and None"):
        EntropyLogitsProcessor(2.0, min_gamma=float("inf"))
    with pytest.raises(ValueError, match=r"min_gamma <= max_gamma, got 3\.0 and 2\.0"):
        EntropyLogitsProcessor(2.0, min_gamma=3.0, max_gamma=2.0)
