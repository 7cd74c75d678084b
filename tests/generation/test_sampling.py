"""Drawing tokens: the distribution that is drawn from, and rows that end."""

import pytest
import torch

from kexue.generation.sampling import next_token, sample


def drawn(logits, n=20_000, **options):
    """Frequencies of n draws from one row of logits."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor(logits).expand(n, -1)
    ids = next_token(rows, generator=generator, **options)
    return torch.bincount(ids, minlength=len(logits)) / n


def test_tokens_are_drawn_from_the_softmax():
    logits = [0.0, 1.0, 2.0, -1.0]
    wanted = torch.tensor(logits).softmax(-1)
    torch.testing.assert_close(drawn(logits), wanted, atol=0.012, rtol=0)


def test_a_temperature_divides_the_logits():
    logits = [0.0, 1.0, 2.0, -1.0]
    wanted = (torch.tensor(logits) / 0.5).softmax(-1)
    torch.testing.assert_close(drawn(logits, temperature=0.5), wanted, atol=0.012, rtol=0)


def test_temperature_zero_takes_the_most_probable_token_and_the_lower_id_of_equals():
    logits = torch.tensor([[1.0, 5.0, 5.0, 2.0], [9.0, 0.0, 0.0, 0.0]])
    assert next_token(logits, temperature=0.0).tolist() == [1, 0]


def test_top_k_keeps_exactly_k_tokens_with_their_relative_weights():
    logits = [0.0, 3.0, 1.0, 2.0, 2.0]
    found = drawn(logits, top_k=2)
    assert (found > 0).tolist() == [False, True, False, True, False]  # of equals the lower id
    wanted = torch.tensor([3.0, 2.0]).softmax(-1)
    torch.testing.assert_close(found[[1, 3]], wanted, atol=0.012, rtol=0)


@pytest.mark.parametrize(("top_p", "kept"), [(0.05, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3)])
def test_top_p_keeps_the_fewest_tokens_that_reach_p(top_p, kept):
    logits = torch.tensor([0.1, 0.5, 0.1, 0.3]).log().tolist()
    assert int((drawn(logits, top_p=top_p) > 0).sum()) == kept


def test_top_p_one_keeps_everything():
    logits = [0.0, -8.0]
    assert (drawn(logits, top_p=1.0, n=200_000) > 0).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\]"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        next_token(torch.zeros(1, 3), **options)


class Counter:
    """Says that the token after i is i + 1 mod 10, and counts what it has read."""

    def __init__(self):
        self.read = []

    def new_cache(self):
        return []

    def __call__(self, ids, cache):
        cache.append(ids.shape[1])
        self.read.append(ids.shape[1])
        logits = torch.full((*ids.shape, 10), -torch.inf)
        return logits.scatter(2, (ids.unsqueeze(2) + 1) % 10, 0.0)


def test_the_model_reads_the_prompt_once_and_then_one_token_at_a_time():
    model = Counter()
    tokens = sample(model, torch.tensor([[4, 5, 6], [0, 1, 2]]), 4)
    assert tokens.tolist() == [[7, 8, 9, 0], [3, 4, 5, 6]]
    assert model.read == [3, 1, 1, 1]


def test_a_row_that_ended_stays_ended_and_all_ended_stops():
    tokens = sample(Counter(), torch.tensor([[6], [4]]), 20, end=8)
    assert tokens.tolist() == [[7, 8, 8, 8], [5, 6, 7, 8]]


def test_the_same_generator_draws_the_same_tokens():
    class Noisy(Counter):
        def __call__(self, ids, cache):
            return torch.zeros(*ids.shape, 1000)

    draws = [
        sample(Noisy(), torch.zeros(1, 1).long(), 20, generator=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_an_empty_prompt_is_refused_and_no_tokens_are_no_tokens():
    with pytest.raises(ValueError, match="at least one token"):
        sample(Counter(), torch.zeros(1, 0).long(), 3)
    assert sample(Counter(), torch.zeros(2, 1).long(), 0).shape == (2, 0)
