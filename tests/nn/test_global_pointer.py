"""GlobalPointer and SpanPointer: the claims of S17 and S01, sections 4 and 5, one test each."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue.nn import GlobalPointer, SpanPointer, best_span, span_cross_entropy, span_scores
from naive.global_pointer import naive_global_pointer, naive_span_scores

# torch's own compiler uses what torch deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

INF = torch.inf
QUERY = [[-1, -0.5, 0, 0.5], [-0.5, 0.5, 1.5, -1], [0, 1.5, -0.5, 1], [0.5, -1, 1, -0.5]]
KEY = [[1, -0.5, 0.5, -1], [0.5, 0, -0.5, -1], [0, 0.5, 1, -1], [-0.5, 1, 0, -1]]


def vectors(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def worked(rows):
    return torch.tensor(rows, dtype=torch.float64)[None, None]


def lengths_to_mask(lengths, length):
    return torch.arange(length)[None, :] < torch.tensor(lengths)[:, None]


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = GlobalPointer(hidden_size=6, num_types=3, head_size=4).double()
    torch.nn.init.normal_(head.projection.weight)
    torch.nn.init.normal_(head.projection.bias)
    return head


@pytest.fixture
def pointer():
    torch.manual_seed(0)
    return SpanPointer(hidden_size=6, head_size=4).double()


class TestSpanScores:
    def test_worked_numbers_with_rope(self):
        expected = worked(
            [
                [-0.625, -0.4914969288389591, 0.0343923762815021, -0.1616875033998299],
                [-INF, 0, 1.4251591201888778, 0.4725061180013205],
                [-INF, -INF, -0.375, -0.4127998484437306],
                [-INF, -INF, -INF, -0.375],
            ]
        )
        scores = span_scores(worked(QUERY), worked(KEY))
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-10)

    def test_worked_numbers_without_rope(self):
        scores = span_scores(worked(QUERY), worked(KEY), rope=False)
        expected = torch.tensor([-0.625, -0.5, -0.375, -0.25], dtype=torch.float64)
        torch.testing.assert_close(scores[0, 0, 0], expected, rtol=0, atol=1e-10)

    @settings(max_examples=30, deadline=None)
    @given(shift=st.integers(-3000, 3000), length=st.integers(1, 9), seed=st.integers(0, 99))
    def test_shifting_all_positions_changes_nothing(self, shift, length, seed):
        q, k = vectors(2, 2, length, 6, seed=seed), vectors(2, 2, length, 6, seed=seed + 1)
        shifted = span_scores(q, k, positions=torch.arange(length) + shift)
        torch.testing.assert_close(shifted, span_scores(q, k), rtol=0, atol=1e-9)

    def test_without_rope_permuting_tokens_permutes_scores(self):
        q, k = vectors(2, 3, 5, 4), vectors(2, 3, 5, 4, seed=1)
        order = torch.tensor([3, 0, 4, 1, 2])
        options = {"rope": False, "upper_triangular": False}
        permuted = span_scores(q[:, :, order], k[:, :, order], **options)
        expected = span_scores(q, k, **options)[:, :, order][:, :, :, order]
        torch.testing.assert_close(permuted, expected, rtol=0, atol=1e-12)

    def test_with_rope_order_matters(self):
        q, k = vectors(1, 1, 5, 4), vectors(1, 1, 5, 4, seed=1)
        order = torch.tensor([3, 0, 4, 1, 2])
        permuted = span_scores(q[:, :, order], k[:, :, order], upper_triangular=False)
        unmoved = span_scores(q, k, upper_triangular=False)[:, :, order][:, :, :, order]
        assert (permuted - unmoved).abs().max() > 0.1

    @pytest.mark.parametrize("rope", [True, False])
    @pytest.mark.parametrize("upper_triangular", [True, False])
    def test_equals_the_naive_twin(self, rope, upper_triangular):
        q, k = vectors(2, 2, 4, 6), vectors(2, 2, 4, 6, seed=1)
        mask = torch.tensor([[True, True, True, True], [True, False, True, False]])
        options = {"rope": rope, "upper_triangular": upper_triangular}
        scores = span_scores(q, k, mask, **options)
        expected = naive_span_scores(q, k, mask.tolist(), **options)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("upper_triangular", [True, False])
    def test_exactly_the_forbidden_cells_are_minus_infinity(self, upper_triangular):
        mask = torch.tensor([[False, True, True, False, True]])
        scores = span_scores(
            vectors(1, 2, 5, 4), vectors(1, 2, 5, 4), mask, upper_triangular=upper_triangular
        )
        for m in range(5):
            for n in range(5):
                allowed = bool(mask[0, m] and mask[0, n]) and (n >= m or not upper_triangular)
                assert (scores[0, :, m, n].isfinite() == allowed).all()

    def test_the_inputs_are_not_written_to(self):
        q, k = vectors(1, 2, 5, 4), vectors(1, 2, 5, 4, seed=1)
        before = q.clone(), k.clone()
        span_scores(q, k, rope=False)
        assert torch.equal(q, before[0])
        assert torch.equal(k, before[1])


class TestGlobalPointer:
    @pytest.mark.parametrize("rope", [True, False])
    @pytest.mark.parametrize("upper_triangular", [True, False])
    def test_values_and_gradients_equal_the_naive_twin(self, head, rope, upper_triangular):
        head.rope, head.upper_triangular = rope, upper_triangular
        hidden = vectors(2, 4, 6)
        mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
        weight, bias = head.projection.weight, head.projection.bias
        scores = head(hidden, mask)
        twin = naive_global_pointer(
            hidden, weight, bias, 3, mask.tolist(), rope=rope, upper_triangular=upper_triangular
        )
        torch.testing.assert_close(scores, twin, rtol=0, atol=1e-12)
        pull = vectors(2, 3, 4, 4, seed=5)
        cells = scores.isfinite()
        grads = torch.autograd.grad((scores[cells] * pull[cells]).sum(), [weight, bias])
        expected = torch.autograd.grad((twin[cells] * pull[cells]).sum(), [weight, bias])
        torch.testing.assert_close(grads, expected, rtol=0, atol=1e-12)

    def test_no_mask_means_all_visible(self, head):
        hidden = vectors(2, 4, 6)
        everything = torch.ones(2, 4, dtype=torch.bool)
        assert torch.equal(head(hidden), head(hidden, everything))

    @settings(max_examples=30, deadline=None)
    @given(length=st.integers(1, 6), padding=st.integers(1, 5))
    def test_padding_never_changes_visible_scores(self, length, padding):
        torch.manual_seed(0)
        head = GlobalPointer(6, 3, 4).double()
        hidden = vectors(2, length, 6)
        rubbish = torch.full((2, padding, 6), torch.nan, dtype=torch.float64)
        padded = head(
            torch.cat([hidden, rubbish], 1), lengths_to_mask([length] * 2, length + padding)
        )
        visible = padded[:, :, :length, :length]
        torch.testing.assert_close(visible, head(hidden), rtol=0, atol=1e-12)
        assert padded[:, :, length:].isneginf().all()
        assert padded[:, :, :, length:].isneginf().all()

    def test_a_fully_masked_row_is_minus_infinity_everywhere(self, head):
        scores = head(vectors(1, 3, 6), torch.zeros(1, 3, dtype=torch.bool))
        assert scores.isneginf().all()

    def test_kernel_starts_as_a_truncated_normal_of_sd_0_02(self):
        torch.manual_seed(0)
        head = GlobalPointer(256, 10)
        weight = head.projection.weight
        assert weight.abs().max() <= 0.04
        assert weight.std().item() == pytest.approx(0.02 * 0.8796, rel=0.01)  # cut at two sd
        assert (head.projection.bias == 0).all()

    def test_without_bias_there_is_one_parameter(self):
        assert [n for n, _ in GlobalPointer(8, 2, bias=False).named_parameters()] == [
            "projection.weight"
        ]

    def test_parameters_per_type_are_two_d_times_the_hidden_size(self):
        count = sum(p.numel() for p in GlobalPointer(768, 1, bias=False).parameters())
        assert count == 98304

    def test_state_dict_round_trip_keeps_the_scores(self, head):
        other = GlobalPointer(6, 3, 4).double()
        other.load_state_dict(head.state_dict())
        hidden = vectors(2, 4, 6)
        assert torch.equal(other(hidden), head(hidden))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_scores_are_close_and_masked_exactly(self, head, dtype):
        head = head.float()
        hidden, mask = vectors(2, 7, 6, dtype=torch.float32), lengths_to_mask([7, 4], 7)
        with torch.autocast("cpu", dtype=dtype):
            scores = head(hidden, mask)
        exact = head(hidden, mask)
        assert scores.dtype == dtype
        assert torch.equal(scores.isneginf(), exact.isneginf())
        torch.testing.assert_close(scores.float(), exact, rtol=0.05, atol=0.3)

    def test_an_odd_head_size_with_rope_is_refused(self):
        with pytest.raises(ValueError, match=r"head_size must be even with rope .*got 5"):
            GlobalPointer(8, 2, head_size=5)

    def test_an_odd_head_size_without_rope_works(self):
        assert GlobalPointer(8, 2, head_size=5, rope=False)(torch.zeros(1, 3, 8)).shape == (
            (1, 2, 3, 3)
        )

    @pytest.mark.parametrize("name", ["hidden_size", "num_types", "head_size"])
    def test_a_size_that_is_not_positive_is_refused(self, name):
        sizes = {"hidden_size": 8, "num_types": 2, "head_size": 4, name: 0}
        with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
            GlobalPointer(**sizes)

    def test_an_integer_mask_is_refused(self, head):
        with pytest.raises(TypeError):
            head(vectors(1, 3, 6), torch.ones(1, 3, dtype=torch.long))

    @pytest.mark.compiled
    def test_an_integer_mask_is_refused_with_the_way_out(self, head):
        with pytest.raises(TypeError, match=r"pass attention_mask.bool\(\)"):
            head(vectors(1, 3, 6), torch.ones(1, 3, dtype=torch.long))

    @pytest.mark.compiled
    def test_compiles_as_one_graph_with_the_same_gradients(self, head):
        hidden, mask = vectors(2, 5, 6).requires_grad_(), lengths_to_mask([5, 3], 5)
        scores = head(hidden, mask)
        compiled = torch.compile(head, fullgraph=True)(hidden, mask)
        torch.testing.assert_close(compiled, scores, rtol=0, atol=1e-12)
        cells = scores.isfinite()
        grad = torch.autograd.grad(compiled[cells].square().sum(), hidden)
        expected = torch.autograd.grad(scores[cells].square().sum(), hidden)
        torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12)


TABLE = [[1, 2, -1], [-INF, 0.5, 0], [-INF, -INF, -2]]


class TestSpanPointer:
    def test_worked_span_cross_entropy(self):
        table = torch.tensor([TABLE], dtype=torch.float64)
        loss = span_cross_entropy(table, torch.tensor([[0, 1]]))
        assert loss.item() == pytest.approx(0.5846972262824712, abs=1e-10)

    def test_scores_are_those_of_a_one_type_global_pointer_without_bias(self, pointer):
        hidden, mask = vectors(2, 5, 6), lengths_to_mask([5, 3], 5)
        weight = next(pointer.parameters())
        assert len(list(pointer.parameters())) == 1
        zeros = torch.zeros(len(weight), dtype=torch.float64)
        twin = naive_global_pointer(hidden, weight, zeros, 1, mask.tolist()).squeeze(1)
        torch.testing.assert_close(pointer(hidden, mask), twin, rtol=0, atol=1e-12)

    @settings(max_examples=30, deadline=None)
    @given(shift=st.floats(-50, 50), seed=st.integers(0, 99))
    def test_loss_ignores_a_constant_added_to_all_visible_logits(self, shift, seed):
        scores = span_scores(vectors(2, 1, 5, 4, seed=seed), vectors(2, 1, 5, 4, seed=seed + 1))
        scores, target = scores.squeeze(1), torch.tensor([[0, 0], [1, 4]])
        torch.testing.assert_close(
            span_cross_entropy(scores + shift, target),
            span_cross_entropy(scores, target),
            rtol=0,
            atol=1e-12,
        )

    def test_masked_cells_have_zero_probability_and_no_gradient(self, pointer):
        scores = pointer(vectors(2, 5, 6), lengths_to_mask([5, 3], 5)).detach().requires_grad_()
        span_cross_entropy(scores, torch.tensor([[1, 4], [0, 2]])).backward()
        masked = scores.isneginf()
        assert (scores.flatten(1).softmax(1).view_as(scores)[masked] == 0).all()
        assert (scores.grad[masked] == 0).all()

    def test_gradient_is_the_softmax_minus_the_answer(self, pointer):
        scores = pointer(vectors(2, 5, 6)).detach().requires_grad_()
        span_cross_entropy(scores, torch.tensor([[1, 4], [0, 0]]), reduction="sum").backward()
        expected = scores.detach().flatten(1).softmax(1).view_as(scores).clone()
        expected[0, 1, 4] -= 1
        expected[1, 0, 0] -= 1
        torch.testing.assert_close(scores.grad, expected, rtol=0, atol=1e-12)

    def test_the_cls_target_is_allowed_when_only_cls_is_visible(self, pointer):
        mask = torch.tensor([[True, False, False]])
        loss = span_cross_entropy(pointer(vectors(1, 3, 6), mask), torch.tensor([[0, 0]]))
        assert loss.item() == 0

    def test_reductions_agree(self, pointer):
        scores, target = pointer(vectors(3, 5, 6)), torch.tensor([[0, 0], [1, 4], [2, 2]])
        each = span_cross_entropy(scores, target, reduction="none")
        assert each.shape == (3,)
        total = span_cross_entropy(scores, target, reduction="sum")
        torch.testing.assert_close(total, each.sum())
        torch.testing.assert_close(span_cross_entropy(scores, target), each.mean())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_loss_of_half_precision_scores_is_float32(self, dtype):
        scores = torch.tensor([TABLE]).to(dtype)
        with torch.autocast("cpu", dtype=dtype):
            loss = span_cross_entropy(scores, torch.tensor([[0, 1]]))
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(0.5846972262824712, abs=1e-6)

    @pytest.mark.parametrize("target", [(0, 5), (-1, 2), (7, 7)])
    def test_a_target_outside_the_table_is_named(self, target):
        with pytest.raises(ValueError, match=r"row 1: target .* lies outside the table"):
            span_cross_entropy(torch.zeros(2, 5, 5), torch.tensor([[0, 0], target]))

    @pytest.mark.parametrize("target", [(2, 1), (1, 3)])
    def test_a_target_on_a_masked_cell_is_named(self, pointer, target):
        scores = pointer(vectors(2, 4, 6), lengths_to_mask([4, 3], 4))
        with pytest.raises(ValueError, match=r"row 1: target .* is a masked cell; use \(0, 0\)"):
            span_cross_entropy(scores, torch.tensor([[0, 0], target]))

    @pytest.mark.compiled
    def test_an_unknown_reduction_is_refused(self):
        with pytest.raises(ValueError, match="got 'average'"):
            span_cross_entropy(torch.zeros(1, 2, 2), torch.tensor([[0, 0]]), reduction="average")

    def test_state_dict_round_trip_keeps_the_scores(self, pointer):
        other = SpanPointer(6, 4).double()
        other.load_state_dict(pointer.state_dict())
        hidden = vectors(2, 4, 6)
        assert torch.equal(other(hidden), pointer(hidden))

    def test_autocast_loss_is_close_and_reaches_the_parameters(self, pointer):
        pointer = pointer.float()
        hidden, target = vectors(2, 7, 6, dtype=torch.float32), torch.tensor([[1, 2], [0, 0]])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = span_cross_entropy(pointer(hidden, lengths_to_mask([7, 4], 7)), target)
        exact = span_cross_entropy(pointer(hidden, lengths_to_mask([7, 4], 7)), target)
        torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
        loss.backward()
        assert pointer.table.projection.weight.grad.isfinite().all()

    @pytest.mark.compiled
    def test_model_and_loss_compile_as_one_graph(self, pointer):
        hidden, mask = vectors(2, 5, 6), lengths_to_mask([5, 3], 5)
        target = torch.tensor([[1, 4], [0, 2]])

        def loss(hidden, mask, target):
            return span_cross_entropy(pointer(hidden, mask), target)

        compiled = torch.compile(loss, fullgraph=True)(hidden, mask, target)
        torch.testing.assert_close(compiled, loss(hidden, mask, target), rtol=0, atol=1e-12)

    @pytest.mark.compiled
    def test_the_decoder_compiles_as_one_graph(self, pointer):
        scores = pointer(vectors(2, 5, 6), lengths_to_mask([5, 1], 5)).detach()
        compiled = torch.compile(best_span, fullgraph=True)(scores)
        torch.testing.assert_close(compiled, best_span(scores))


class TestBestSpan:
    def test_row_zero_and_column_zero_are_forbidden(self):
        scores = torch.tensor([[[9.0, 9, 9], [9, 0.5, 0.25], [9, 0.75, -2]]])
        start, end, logit = best_span(scores)
        assert (start.item(), end.item(), logit.item()) == (2, 1, 0.75)

    @settings(max_examples=50, deadline=None)
    @given(length=st.integers(2, 8), seed=st.integers(0, 999))
    def test_equals_a_search_over_all_cells(self, length, seed):
        scores = span_scores(vectors(1, 1, length, 4, seed=seed), vectors(1, 1, length, 4))[0]
        start, end, logit = best_span(scores)
        best = max(
            (scores[0, m, n].item(), m, n) for m in range(1, length) for n in range(m, length)
        )
        assert best == (logit.item(), start.item(), end.item())

    def test_one_visible_context_token_is_enough_for_an_answer(self):
        scores = torch.full((1, 4, 4), -INF)
        scores[0, 0, 0], scores[0, 3, 3] = 100, -100
        assert [x.item() for x in best_span(scores)] == [3, 3, -100]

    @pytest.mark.parametrize("length", [1, 2, 4])
    def test_no_visible_context_means_no_answer(self, length):
        scores = torch.full((2, length, length), -INF)
        scores[:, 0, 0] = 5
        start, end, logit = best_span(scores)
        assert start.tolist() == end.tolist() == [0, 0]
        assert logit.tolist() == [-math.inf, -math.inf]

    def test_rows_are_decoded_independently(self):
        scores = vectors(4, 6, 6)
        together = best_span(scores)
        for row in range(4):
            alone = best_span(scores[row : row + 1])
            assert all(
                torch.equal(a, t[row : row + 1]) for a, t in zip(alone, together, strict=True)
            )
