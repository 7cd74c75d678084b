"""Sequence and choice heads: the claims of S01, sections 2, 4 and 5, one test each."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kexue.nn import ChoiceHead, SequenceHead, pool

# torch's own compiler uses what torch deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

POOLINGS = ["first", "avg", "max"]


def vectors(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def choice_head(weight, pooling="first"):
    head = ChoiceHead(len(weight), pooling).double()
    head.scorer.weight.data = torch.tensor([weight], dtype=torch.float64)
    return head


class TestPool:
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_equals_a_loop_over_visible_tokens(self, pooling):
        hidden = vectors(3, 5, 4)
        mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 1]]).bool()
        expected = []
        for row in range(3):
            visible = [hidden[row, l] for l in range(5) if mask[row, l]]
            if pooling == "first":
                expected.append(visible[0])
            elif pooling == "avg":
                expected.append(sum(visible) / len(visible))
            else:
                expected.append(torch.stack(visible).max(dim=0).values)
        torch.testing.assert_close(
            pool(hidden, mask, pooling), torch.stack(expected), rtol=0, atol=1e-12
        )

    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_no_mask_means_all_visible(self, pooling):
        hidden = vectors(3, 5, 4)
        everything = torch.ones(3, 5, dtype=torch.bool)
        assert torch.equal(pool(hidden, None, pooling), pool(hidden, everything, pooling))

    @settings(max_examples=30, deadline=None)
    @given(
        pooling=st.sampled_from(POOLINGS),
        length=st.integers(1, 6),
        before=st.integers(0, 3),
        after=st.integers(0, 3),
    )
    def test_padding_on_either_side_never_changes_the_result(self, pooling, length, before, after):
        hidden = vectors(2, length, 4)
        rubbish = torch.full((2, 1, 4), torch.nan, dtype=torch.float64)
        padded = torch.cat([rubbish.expand(2, before, 4), hidden, rubbish.expand(2, after, 4)], 1)
        mask = torch.zeros(2, before + length + after, dtype=torch.bool)
        mask[:, before : before + length] = True
        torch.testing.assert_close(
            pool(padded, mask, pooling), pool(hidden, None, pooling), rtol=0, atol=1e-12
        )

    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_a_fully_masked_row_pools_to_zeros_with_zero_gradient(self, pooling):
        hidden = vectors(2, 3, 4).requires_grad_()
        mask = torch.tensor([[False, False, False], [True, True, False]])
        pooled = pool(hidden, mask, pooling)
        pooled.sum().backward()
        assert (pooled[0] == 0).all()
        assert pooled.isfinite().all()
        assert (hidden.grad[0] == 0).all()
        assert hidden.grad.isfinite().all()

    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_masked_tokens_get_no_gradient(self, pooling):
        hidden, mask = vectors(1, 4, 3).requires_grad_(), torch.tensor([[True, True, False, False]])
        pool(hidden, mask, pooling).sum().backward()
        assert (hidden.grad[0, 2:] == 0).all()
        assert hidden.grad.sum().item() == pytest.approx(3, abs=1e-12)

    def test_avg_of_bfloat16_is_summed_in_float32(self):
        hidden = torch.ones(1, 1000, 1, dtype=torch.bfloat16)  # bfloat16 cannot count beyond 256
        pooled = pool(hidden, None, "avg")
        assert pooled.dtype == torch.bfloat16
        assert pooled.item() == 1

    def test_a_batch_without_tokens_is_refused(self):
        with pytest.raises(ValueError, match=r"no tokens to pool, its shape is \(2, 0, 3\)"):
            pool(torch.zeros(2, 0, 3))

    def test_an_integer_mask_is_refused(self):
        with pytest.raises(TypeError):
            pool(torch.zeros(2, 4, 3), torch.ones(2, 4, dtype=torch.long))

    @pytest.mark.compiled
    def test_an_integer_mask_is_refused_with_the_way_out(self):
        with pytest.raises(TypeError, match=r"pass attention_mask.bool\(\)"):
            pool(torch.zeros(2, 4, 3), torch.ones(2, 4, dtype=torch.long))

    @pytest.mark.compiled
    def test_an_unknown_pooling_is_refused(self):
        with pytest.raises(ValueError, match="got 'mean'"):
            pool(torch.zeros(2, 4, 3), None, "mean")

    @pytest.mark.compiled
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_compiles_as_one_graph(self, pooling):
        hidden = vectors(2, 3, 4)
        mask = torch.tensor([[False, False, False], [True, True, False]])
        compiled = torch.compile(pool, fullgraph=True)(hidden, mask, pooling)
        torch.testing.assert_close(compiled, pool(hidden, mask, pooling), rtol=0, atol=1e-12)


class TestSequenceHead:
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_scores_are_linear_in_the_pooled_vector(self, pooling):
        head = SequenceHead(4, 3, pooling).double()
        torch.nn.init.normal_(head.classifier.bias)
        hidden, mask = vectors(2, 5, 4), torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
        expected = pool(hidden, mask, pooling) @ head.classifier.weight.T + head.classifier.bias
        torch.testing.assert_close(head(hidden, mask), expected, rtol=0, atol=1e-12)

    def test_training_and_evaluation_agree_because_there_is_no_dropout(self):
        head, hidden = SequenceHead(4, 3).double(), vectors(2, 5, 4)
        assert torch.equal(head.train()(hidden), head.eval()(hidden))

    def test_kernel_starts_as_a_truncated_normal_of_sd_0_02(self):
        torch.manual_seed(0)
        head = SequenceHead(768, 119)
        assert head.classifier.weight.abs().max() <= 0.04
        assert head.classifier.weight.std().item() == pytest.approx(0.02 * 0.8796, rel=0.01)
        assert (head.classifier.bias == 0).all()

    def test_a_fully_masked_row_scores_the_bias(self):
        head = SequenceHead(4, 3, "max").double()
        torch.nn.init.normal_(head.classifier.bias)
        scores = head(vectors(1, 5, 4), torch.zeros(1, 5, dtype=torch.bool))
        torch.testing.assert_close(scores[0], head.classifier.bias)

    def test_state_dict_round_trip_keeps_the_scores(self):
        head, other, hidden = SequenceHead(4, 3), SequenceHead(4, 3), torch.randn(2, 5, 4)
        other.load_state_dict(head.state_dict())
        assert torch.equal(other(hidden), head(hidden))

    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_autocast_scores_are_close(self, pooling):
        head, hidden = SequenceHead(16, 3, pooling), vectors(2, 5, 16, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = head(hidden)
        assert scores.dtype == torch.bfloat16
        torch.testing.assert_close(scores.float(), head(hidden), rtol=0.05, atol=0.01)

    @pytest.mark.parametrize("name", ["hidden_size", "num_classes"])
    def test_a_size_that_is_not_positive_is_refused(self, name):
        with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
            SequenceHead(**{"hidden_size": 4, "num_classes": 2, name: 0})

    @pytest.mark.compiled
    def test_an_unknown_pooling_is_refused(self):
        with pytest.raises(ValueError, match="got 'cls'"):
            SequenceHead(4, 2, "cls")

    @pytest.mark.compiled
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_compiles_as_one_graph_with_the_same_gradients(self, pooling):
        head, mask = SequenceHead(4, 3, pooling).double(), torch.tensor([[True, True, False]] * 2)
        hidden = vectors(2, 3, 4).requires_grad_()
        scores, compiled = head(hidden, mask), torch.compile(head, fullgraph=True)(hidden, mask)
        torch.testing.assert_close(compiled, scores, rtol=0, atol=1e-12)
        grad = torch.autograd.grad(compiled.square().sum(), hidden)
        expected = torch.autograd.grad(scores.square().sum(), hidden)
        torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12)


class TestChoiceHead:
    def test_worked_choice_cross_entropy(self):
        rows = torch.tensor([0.2, 1.1, -0.3, 0.4], dtype=torch.float64).view(4, 1, 1)
        scores = choice_head([1.0])(rows, None, 4)
        loss = F.cross_entropy(scores, torch.tensor([1]))
        assert loss.item() == pytest.approx(0.765352452912079, abs=1e-10)

    def test_rows_of_one_question_stand_side_by_side(self):
        rows = torch.arange(6.0, dtype=torch.float64).view(6, 1, 1)
        assert choice_head([1.0])(rows, None, 3).tolist() == [[0, 1, 2], [3, 4, 5]]

    @settings(max_examples=30, deadline=None)
    @given(shifts=st.lists(st.floats(-20, 20), min_size=2, max_size=2), answer=st.integers(0, 3))
    def test_loss_ignores_a_constant_per_question(self, shifts, answer):
        head, rows = choice_head([1.0, 0.0]), vectors(8, 1, 2)
        moved = rows.clone()
        moved[:, 0, 0] += torch.tensor(shifts, dtype=torch.float64).repeat_interleave(4)
        target = torch.tensor([answer, 0])
        torch.testing.assert_close(
            F.cross_entropy(head(moved, None, 4), target),
            F.cross_entropy(head(rows, None, 4), target),
            rtol=0,
            atol=1e-12,
        )

    @settings(max_examples=30, deadline=None)
    @given(order=st.permutations(range(4)), pooling=st.sampled_from(POOLINGS))
    def test_permuting_choices_permutes_scores_and_keeps_the_loss(self, order, pooling):
        head, rows = choice_head([0.5, -1.0, 2.0], pooling), vectors(8, 5, 3)
        scores = head(rows, None, 4)
        permuted = head(rows.view(2, 4, 5, 3)[:, order].flatten(0, 1), None, 4)
        torch.testing.assert_close(permuted, scores[:, order], rtol=0, atol=1e-12)
        target = torch.tensor([order.index(1), order.index(3)])
        torch.testing.assert_close(
            F.cross_entropy(permuted, target), F.cross_entropy(scores, torch.tensor([1, 3]))
        )

    def test_the_order_of_questions_does_not_matter(self):
        head, rows = choice_head([0.5, -1.0, 2.0]), vectors(8, 5, 3)
        swapped = head(rows.roll(4, dims=0), None, 4)
        torch.testing.assert_close(swapped.flip(0), head(rows, None, 4), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("num_choices", [3, 0, -1, 16])
    def test_rows_that_do_not_divide_are_refused(self, num_choices):
        with pytest.raises(ValueError, match=f"8 rows do not divide .* {num_choices} choices"):
            ChoiceHead(3)(torch.zeros(8, 5, 3), None, num_choices)

    def test_kernel_starts_as_a_truncated_normal_of_sd_0_02(self):
        torch.manual_seed(0)
        weight = ChoiceHead(100_000).scorer.weight
        assert weight.abs().max() <= 0.04
        assert weight.std().item() == pytest.approx(0.02 * 0.8796, rel=0.01)

    def test_state_dict_round_trip_keeps_the_scores(self):
        head, other, rows = ChoiceHead(4), ChoiceHead(4), torch.randn(4, 5, 4)
        other.load_state_dict(head.state_dict())
        assert torch.equal(other(rows, None, 2), head(rows, None, 2))

    def test_a_size_that_is_not_positive_is_refused(self):
        with pytest.raises(ValueError, match="hidden_size must be positive, got 0"):
            ChoiceHead(0)

    @pytest.mark.compiled
    def test_compiles_as_one_graph(self):
        head, rows = choice_head([0.5, -1.0, 2.0], "avg"), vectors(8, 5, 3)
        compiled = torch.compile(head, fullgraph=True)(rows, None, 4)
        torch.testing.assert_close(compiled, head(rows, None, 4), rtol=0, atol=1e-12)
