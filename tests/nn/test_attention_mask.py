"""Masks of attention: what is refused, which pairs are visible, and rows that see nothing."""

import pytest
import torch

from kexue.nn.attention_mask import check_attention_mask, masked_softmax, visible_pairs


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=noise, dtype=torch.float64)


def test_no_mask_and_a_boolean_mask_of_the_right_shape_pass() -> None:
    check_attention_mask(None, 2, 3)
    check_attention_mask(torch.ones(2, 3, dtype=torch.bool), 2, 3)


@pytest.mark.parametrize(
    ("mask", "error", "says"),
    [
        (torch.ones(2, 3, dtype=torch.int64), TypeError, r"torch.int64: pass mask.bool\(\)"),
        (torch.zeros(2, 3), TypeError, "torch.float32: pass mask == 0"),
        (torch.ones(2, 4, dtype=torch.bool), ValueError, r"\(2, 3\), got \(2, 4\)"),
        (torch.ones(3, dtype=torch.bool), ValueError, r"\(2, 3\), got \(3,\)"),
    ],
)
def test_another_dtype_or_shape_is_refused_with_the_way_out(
    mask: torch.Tensor, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        check_attention_mask(mask, 2, 3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("q_len", "offset"), [(5, 0), (2, 3), (1, 4)])
def test_pairs_are_those_of_the_definition(
    causal: bool, masked: bool, q_len: int, offset: int
) -> None:
    mask = torch.tensor([[True, True, False, True, True], [False] * 2 + [True] * 3])
    pairs = visible_pairs(q_len, 5, mask if masked else None, causal, offset)
    for b in range(2):
        for i in range(q_len):
            for j in range(5):
                wanted = (not masked or bool(mask[b, j])) and (not causal or j <= offset + i)
                got = True if pairs is None else bool(pairs.expand(2, -1, -1)[b, i, j])
                assert got == wanted


def test_softmax_gives_hidden_keys_no_weight_and_the_rest_their_share() -> None:
    scores = double(4, 6)
    visible = torch.tensor([True, False, True, True, False, True])
    weights = masked_softmax(scores, visible.expand(4, 6))
    shown = scores[:, visible].softmax(dim=-1)
    assert torch.equal(weights[:, ~visible], torch.zeros(4, 2, dtype=torch.float64))
    torch.testing.assert_close(weights[:, visible], shown, rtol=1e-14, atol=0)


def test_a_row_without_visible_key_is_zero_and_its_gradient_too() -> None:
    scores = double(2, 3).requires_grad_()
    visible = torch.tensor([[False] * 3, [True, True, False]])
    weights = masked_softmax(scores, visible)
    assert torch.equal(weights[0], torch.zeros(3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad((weights * double(2, 3, seed=1)).sum(), scores)
    assert gradient.isfinite().all()
    assert torch.equal(gradient[0], torch.zeros(3, dtype=torch.float64))
    assert gradient[1, :2].abs().min() > 0


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_hidden_scores_hold_does_not_matter(poison: float) -> None:
    scores = double(1, 4)
    visible = torch.tensor([[True, True, False, True]])
    poisoned = torch.where(visible, scores, torch.full_like(scores, poison))
    assert torch.equal(masked_softmax(poisoned, visible), masked_softmax(scores, visible))


def test_half_scores_are_weighed_in_float32() -> None:
    scores = double(3, 5).to(torch.bfloat16)
    weights = masked_softmax(scores)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, scores.float().softmax(-1))
