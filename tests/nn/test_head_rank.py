"""The key size that a pattern needs, and the best pattern of a smaller one."""

from itertools import pairwise

import pytest
import torch

from kexue.nn.head_rank import centred_log_attention, low_rank_attention, required_key_size

F64 = torch.float64
P3 = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]], dtype=F64)


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_the_worked_numbers():
    sigma = torch.linalg.svdvals(centred_log_attention(P3))
    wanted = torch.tensor([1.8395492689924064, 0.8515008534168451, 0.0], dtype=F64)
    torch.testing.assert_close(sigma, wanted, rtol=0, atol=1e-10)
    assert sigma[2] < 1e-15
    assert required_key_size(P3) == 2
    rows = torch.tensor(
        [
            [0.3867650130391881, 0.40349584734855526, 0.20973913961225676],
            [0.38465155581209515, 0.4004669911401529, 0.21488145304775197],
            [0.10772258999676564, 0.09377833672648905, 0.7984990732767452],
        ],
        dtype=F64,
    )
    torch.testing.assert_close(low_rank_attention(P3, 1), rows, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
@pytest.mark.parametrize("shape", [(10, 10), (6, 20), (20, 6)])
def test_no_pattern_of_a_head_needs_more_than_its_key_size(size, shape):
    for seed in range(10):
        Q, K = draw(shape[0], size, seed=seed), draw(shape[1], size, seed=seed + 100)
        c = draw(shape[0], 1, seed=seed + 200)
        needed = required_key_size((Q @ K.T + 3 * c).softmax(-1))
        assert needed == min(size, shape[0], shape[1] - 1)  # almost surely all of it


@pytest.mark.parametrize("n", [1, 2, 3, 10, 40])
def test_a_size_below_n_is_always_enough_and_uniform_attention_needs_none(n):
    assert required_key_size(torch.full((n, n), 1 / n, dtype=F64)) == 0
    assert required_key_size(draw(n, n).softmax(-1)) == n - 1


def test_a_row_for_all_queries_needs_size_one():
    """The same pattern at every query is Q = 1, K = log p."""
    assert required_key_size(draw(1, 12).softmax(-1).expand(9, -1)) == 1


def test_one_key_size_less_cannot_give_the_pattern():
    """The converse: every product Q Kᵀ of that size misses the centred logits."""
    P = (draw(8, 3) @ draw(3, 8, seed=1)).softmax(-1)
    assert required_key_size(P) == 3
    assert (low_rank_attention(P, 2) - P).abs().max() > 1e-3
    torch.testing.assert_close(low_rank_attention(P, 3), P, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(12, 12), (5, 12), (12, 5)])
def test_the_error_in_centred_logits_is_the_tail_of_the_singular_values(shape):
    P = draw(*shape).softmax(-1)
    centred = centred_log_attention(P)
    sigma = torch.linalg.svdvals(centred)
    errors = []
    for r in range(14):
        error = (centred_log_attention(low_rank_attention(P, r)) - centred).norm()
        torch.testing.assert_close(error, sigma[r:].norm(), rtol=0, atol=1e-10)
        errors.append(error)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(errors))
    r = int(required_key_size(P))
    torch.testing.assert_close(low_rank_attention(P, r), P, rtol=0, atol=1e-10)


def test_no_drawn_product_comes_nearer_than_the_truncation():
    P = draw(12, 12).softmax(-1)
    centred = centred_log_attention(P)
    best = (centred_log_attention(low_rank_attention(P, 4)) - centred).norm()
    start = [draw(12, 4, seed=s).mul(0.5).requires_grad_() for s in (1, 2)]
    search = torch.optim.LBFGS(start, max_iter=500, line_search_fn="strong_wolfe")

    def distance():
        search.zero_grad()
        product = start[0] @ start[1].T
        error = (product - product.mean(-1, keepdim=True) - centred).norm()
        error.backward()
        return error

    search.step(distance)
    found = distance().item()
    assert best.item() - 1e-9 <= found <= best.item() * 1.001


def test_maps_of_many_heads_are_measured_together():
    P = (draw(2, 3, 9, 4) @ draw(2, 3, 4, 9, seed=1)).softmax(-1)
    assert required_key_size(P).tolist() == [[4, 4, 4], [4, 4, 4]]
    assert low_rank_attention(P, 4).shape == P.shape


def test_rounding_of_the_dtype_does_not_count_as_rank():
    P = (draw(64, 8) @ draw(8, 64, seed=1)).softmax(-1)
    assert required_key_size(P.float()) == 8
    assert required_key_size(P, 1.0) == 0  # no singular value is above the largest


def test_masked_keys_are_left_out():
    keys = torch.tensor([True, True, False, True, False])
    P = torch.zeros(6, 5, dtype=F64)
    P[:, keys] = draw(6, 3).softmax(-1)
    assert required_key_size(P, keys=keys) == 2
    with pytest.raises(ValueError, match="leave masked keys out with keys="):
        required_key_size(P)
    with pytest.raises(ValueError, match="no visible key"):
        required_key_size(P, keys=torch.zeros(5, dtype=torch.bool))


def test_numbers_that_are_no_attention_are_refused():
    with pytest.raises(ValueError, match="P must be positive"):
        required_key_size(torch.tensor([[0.5, float("nan")]]))
    with pytest.raises(ValueError, match="r must not be negative, got -1"):
        low_rank_attention(P3, -1)
