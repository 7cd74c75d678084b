"""The multi-label cross-entropy: the claims of S17 and S01, sections 4 and 5, one test each."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kexue.losses import flatten_spans, multilabel_cross_entropy
from naive.multilabel import naive_dense, naive_multilabel_cross_entropy

# torch's own compiler uses what torch deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

INF = torch.inf
WORKED = [1, -2, 0.5, 3, -1.5]
LOW = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape, seed=0, scale=1.0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * scale


def random_index(sets, classes, width, seed=0):
    """Positives with duplicates and padding, in any order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, classes, (*sets, width), generator=generator)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def sparse(scores, positives, **options):
    return multilabel_cross_entropy(scores, positive_index=torch.tensor(positives), **options)


def value_and_grad(loss_of, scores):
    scores = scores.detach().clone().requires_grad_()
    loss = loss_of(scores)
    return loss.detach(), torch.autograd.grad(loss.sum(), scores)[0]


class TestWorkedNumbers:
    def test_five_scores_two_positives(self):
        assert sparse(double(WORKED), [0, 3]).item() == pytest.approx(1.4500172119912655, abs=1e-10)

    def test_clue_example(self):
        scores = double([1, -1, 0.5, 0, -2, 2])
        assert sparse(scores, [5]).item() == pytest.approx(2.0541238232618144, abs=1e-10)

    @pytest.mark.parametrize("targets", [[1, 0, 0, 1, 0], [True, False, False, True, False]])
    def test_dense_labels_give_the_same(self, targets):
        loss = multilabel_cross_entropy(double(WORKED), torch.tensor(targets))
        assert loss.item() == pytest.approx(1.4500172119912655, abs=1e-10)

    def test_threshold_of_0_4(self):
        for loss in (
            sparse(double(WORKED), [0, 3], threshold=0.4),
            multilabel_cross_entropy(double(WORKED), double([1, 0, 0, 1, 0]), threshold=0.4),
            multilabel_cross_entropy(double(WORKED), double([1, 0, 0, 1, 0]).bool(), threshold=0.4),
        ):
            assert loss.item() == pytest.approx(1.3368092661544173, abs=1e-10)

    @pytest.mark.parametrize(("score", "loss"), [(10, 2.0461818057208245), (20, 2.046136408882761)])
    def test_a_confident_positive_among_a_thousand_negatives(self, score, loss):
        scores = torch.full((1001,), -5.0, dtype=torch.float64)
        scores[7] = score
        assert sparse(scores, [7]).item() == pytest.approx(loss, abs=1e-10)

    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("score", [12.0, 15.0, 20.0, 100.0])
    def test_a_confident_positive_costs_nothing_extra_in_low_precision(self, dtype, score):
        scores = torch.full((1001,), -5.0, dtype=dtype)  # -5 and these scores are exact in all
        scores[7] = score
        expected = math.log1p(1000 * math.exp(-5)) + math.log1p(math.exp(-score))
        assert sparse(scores, [7]).item() == pytest.approx(expected, rel=1e-6)


class TestAgainstTheNaiveTwin:
    @settings(max_examples=60, deadline=None)
    @given(
        classes=st.integers(1, 12),
        width=st.integers(0, 6),
        seed=st.integers(0, 9999),
        scale=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    )
    def test_sparse_and_dense_values_and_gradients_are_exact(self, classes, width, seed, scale):
        scores = normal(2, 3, classes, seed=seed, scale=scale)
        index = random_index((2, 3), classes, width, seed)
        dense = naive_dense(index, classes)
        expected = value_and_grad(lambda s: naive_multilabel_cross_entropy(s, dense), scores)
        for loss_of in (
            lambda s: multilabel_cross_entropy(s, positive_index=index, reduction="none"),
            lambda s: multilabel_cross_entropy(s, dense, reduction="none"),
            lambda s: multilabel_cross_entropy(s, dense.bool(), reduction="none"),
            lambda s: multilabel_cross_entropy(s, dense.double(), reduction="none"),
        ):
            torch.testing.assert_close(
                value_and_grad(loss_of, scores), expected, rtol=1e-12, atol=1e-12
            )

    def test_soft_targets_are_exact(self):
        scores, targets = normal(4, 6), normal(4, 6, seed=1).sigmoid()
        targets[0, 0], targets[1, 2] = 0, 1
        torch.testing.assert_close(
            value_and_grad(
                lambda s: multilabel_cross_entropy(s, targets, reduction="none"), scores
            ),
            value_and_grad(lambda s: naive_multilabel_cross_entropy(s, targets), scores),
            rtol=1e-12,
            atol=1e-12,
        )

    def test_minus_infinity_drops_out_with_zero_gradient(self):
        scores, index = normal(3, 6), torch.tensor([[0, 5], [1, -1], [-1, -1]])
        scores[:, 2], scores[0, 3], scores[2] = -INF, -INF, -INF
        dense = naive_dense(index, 6)
        expected = naive_multilabel_cross_entropy(scores, dense)
        for loss_of in (
            lambda s: multilabel_cross_entropy(s, positive_index=index, reduction="none"),
            lambda s: multilabel_cross_entropy(s, dense, reduction="none"),
            lambda s: multilabel_cross_entropy(s, dense.double(), reduction="none"),
        ):
            loss, grad = value_and_grad(loss_of, scores)
            torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
            assert (grad[scores.isneginf()] == 0).all()
            assert grad.isfinite().all()

    def test_float32_sparse_equals_float64_dense(self):
        scores, index = normal(4, 5000, scale=4.0), random_index((4,), 5000, 9)
        exact = value_and_grad(
            lambda s: multilabel_cross_entropy(s, naive_dense(index, 5000)), scores
        )
        value, grad = value_and_grad(
            lambda s: multilabel_cross_entropy(s, positive_index=index), scores.float()
        )
        torch.testing.assert_close(value.double(), exact[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(grad.double(), exact[1], rtol=1e-4, atol=1e-7)


class TestProperties:
    def test_no_positives_leave_the_negative_part(self):
        scores = normal(7)
        expected = torch.cat([scores, double([0])]).logsumexp(0)
        torch.testing.assert_close(sparse(scores, [-1, -1]), expected, rtol=1e-12, atol=0)

    def test_an_index_without_columns_means_no_positives(self):
        scores = normal(2, 7)
        empty = torch.empty(2, 0, dtype=torch.long)
        assert torch.equal(
            multilabel_cross_entropy(scores, positive_index=empty),
            sparse(scores, [[-1], [-1]]),
        )

    def test_all_positive_leaves_the_positive_part(self):
        scores = normal(4)
        expected = torch.cat([-scores, double([0])]).logsumexp(0)
        torch.testing.assert_close(sparse(scores, [2, 0, 3, 1]), expected, rtol=1e-12, atol=0)

    def test_duplicates_count_once(self):
        once, twice = [
            value_and_grad(lambda s, p=p: sparse(s, p), double(WORKED))
            for p in ([0, 3, -1, -1], [3, 0, 3, 0])
        ]
        torch.testing.assert_close(once, twice, rtol=0, atol=0)

    def test_any_padding_value_outside_the_classes_may_be_named(self):
        expected = sparse(double(WORKED), [0, 3])
        for padding in (-100, 5, 99):
            loss = sparse(double(WORKED), [padding, 0, 3, padding], ignore_index=padding)
            assert torch.equal(loss, expected)

    @pytest.mark.parametrize(("negatives", "positives"), [(5, 0), (0, 5), (3, 2), (100, 1)])
    def test_equal_scores_cost_the_logs_of_the_counts(self, negatives, positives):
        loss = sparse(
            torch.zeros(negatives + positives, dtype=torch.float64),
            [*range(positives), -1],
        )
        assert loss.item() == pytest.approx(math.log1p(negatives) + math.log1p(positives))

    def test_perfect_scores_cost_nothing(self):
        assert sparse(double([INF, -INF, 800, -800]), [0, 2]).item() == 0

    def test_nearly_perfect_scores_keep_their_tiny_loss(self):
        loss = sparse(torch.tensor([30.0, -30.0]), [0])  # 1 + e^-30 is 1 in float32
        assert loss.item() == pytest.approx(2 * math.exp(-30), rel=1e-6)

    @settings(max_examples=80, deadline=None)
    @given(
        dtype=st.sampled_from([*LOW, torch.float64]),
        scale=st.sampled_from([0.0, 1e-3, 1.0, 10.0, 30.0, 1000.0]),
        offset=st.sampled_from([-1000.0, -20.0, 0.0, 20.0, 1000.0]),
        seed=st.integers(0, 999),
    )
    def test_never_negative_and_never_nan(self, dtype, scale, offset, seed):
        scores = (normal(3, 50, seed=seed, scale=scale) + offset).to(dtype)
        index = random_index((3,), 50, 4, seed)
        for loss_of in (
            lambda s: multilabel_cross_entropy(s, positive_index=index, reduction="none"),
            lambda s: multilabel_cross_entropy(s, naive_dense(index, 50), reduction="none"),
        ):
            loss, grad = value_and_grad(loss_of, scores)
            assert (loss >= 0).all()
            assert loss.isfinite().all()
            assert grad.isfinite().all()

    @settings(max_examples=50, deadline=None)
    @given(seed=st.integers(0, 999), classes=st.integers(2, 20))
    def test_gradient_is_negative_on_positives_and_positive_on_negatives(self, seed, classes):
        scores, index = normal(3, classes, seed=seed), random_index((3,), classes, 3, seed)
        _, grad = value_and_grad(
            lambda s: multilabel_cross_entropy(s, positive_index=index), scores
        )
        positive = naive_dense(index, classes).bool()
        assert (grad[positive] < 0).all()
        assert (grad[~positive] > 0).all()

    @settings(max_examples=50, deadline=None)
    @given(seed=st.integers(0, 999))
    def test_gradients_sum_to_less_than_one_on_either_side(self, seed):
        scores, index = normal(9, seed=seed, scale=3.0), random_index((), 9, 3, seed)
        _, grad = value_and_grad(
            lambda s: multilabel_cross_entropy(s, positive_index=index), scores
        )
        positive = naive_dense(index, 9).bool()
        assert grad[~positive].sum() < 1
        assert grad[positive].sum() > -1

    @settings(max_examples=50, deadline=None)
    @given(seed=st.integers(0, 999), positive=st.integers(0, 8))
    def test_one_positive_bounds_softmax_cross_entropy(self, seed, positive):
        scores = normal(1, 9, seed=seed, scale=3.0)
        softmax = F.cross_entropy(scores, torch.tensor([positive]))
        assert sparse(scores, [[positive]]) >= softmax

    def test_one_negative_and_one_positive_are_two_binary_cross_entropies(self):
        scores = double([0.7, -1.3])
        expected = F.binary_cross_entropy_with_logits(scores, double([1, 0]), reduction="sum")
        torch.testing.assert_close(sparse(scores, [0]), expected, rtol=1e-12, atol=0)

    @settings(max_examples=30, deadline=None)
    @given(order=st.permutations(range(5)))
    def test_the_order_of_classes_does_not_matter(self, order):
        permuted = double(WORKED)[order]
        loss = sparse(permuted, [order.index(0), order.index(3)])
        torch.testing.assert_close(loss, sparse(double(WORKED), [0, 3]), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("shift", [-30.0, 0.25, 30.0])
    def test_threshold_and_scores_may_move_together(self, shift):
        scores, index = normal(2, 9), torch.tensor([[1, 8], [0, -1]])
        moved = value_and_grad(
            lambda s: multilabel_cross_entropy(s, positive_index=index, threshold=shift),
            scores + shift,
        )
        unmoved = value_and_grad(
            lambda s: multilabel_cross_entropy(s, positive_index=index), scores
        )
        torch.testing.assert_close(moved, unmoved, rtol=1e-12, atol=1e-13)

    def test_padding_classes_with_minus_infinity_changes_nothing(self):
        scores, index = normal(2, 6), torch.tensor([[1, 5], [0, -1]])
        padded = F.pad(scores, (0, 4), value=-INF)
        torch.testing.assert_close(
            multilabel_cross_entropy(padded, positive_index=index),
            multilabel_cross_entropy(scores, positive_index=index),
            rtol=1e-12,
            atol=0,
        )


class TestReduction:
    def test_mean_counts_sets_and_not_classes(self):
        scores, index = normal(2, 3, 7), random_index((2, 3), 7, 2)
        each = multilabel_cross_entropy(scores, positive_index=index, reduction="none")
        assert each.shape == (2, 3)
        torch.testing.assert_close(
            multilabel_cross_entropy(scores, positive_index=index), each.mean()
        )

    def test_sums_and_counts_of_parts_give_the_mean_of_the_whole(self):
        scores, index = normal(5, 3, 7), random_index((5, 3), 7, 2)
        parts = [
            multilabel_cross_entropy(s, positive_index=p, reduction="sum_and_count")
            for s, p in zip(scores.split([1, 4]), index.split([1, 4]), strict=True)
        ]
        total = sum(loss for loss, _ in parts) / sum(count for _, count in parts)
        torch.testing.assert_close(
            total, multilabel_cross_entropy(scores, positive_index=index), rtol=1e-12, atol=0
        )

    def test_sum_is_the_mean_times_the_count(self):
        scores, index = normal(5, 7), random_index((5,), 7, 2)
        total = multilabel_cross_entropy(scores, positive_index=index, reduction="sum")
        torch.testing.assert_close(
            total, 5 * multilabel_cross_entropy(scores, positive_index=index)
        )

    def test_weights_per_set_reach_the_gradient(self):
        scores, index = normal(3, 6), random_index((3,), 6, 2)
        weight = double([2.0, 0.0, -1.0])
        _, plain = value_and_grad(
            lambda s: multilabel_cross_entropy(s, positive_index=index, reduction="none"), scores
        )
        _, weighted = value_and_grad(
            lambda s: weight * multilabel_cross_entropy(s, positive_index=index, reduction="none"),
            scores,
        )
        torch.testing.assert_close(weighted, weight[:, None] * plain, rtol=1e-12, atol=0)

    def test_the_mean_over_no_sets_is_zero(self):
        scores = torch.zeros(0, 4, requires_grad=True)
        loss = multilabel_cross_entropy(scores, positive_index=torch.zeros(0, 2, dtype=torch.long))
        loss.backward()
        assert loss.item() == 0
        assert scores.grad.shape == (0, 4)


class TestPrecisionAndGraph:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_scores_give_float32_losses_and_their_own_gradients(self, dtype):
        scores, index = normal(4, 300, scale=5.0).to(dtype), random_index((4,), 300, 3)
        exact = value_and_grad(
            lambda s: multilabel_cross_entropy(s, positive_index=index), scores.double()
        )
        with torch.autocast("cpu", dtype=dtype):
            loss, grad = value_and_grad(
                lambda s: multilabel_cross_entropy(s, positive_index=index), scores
            )
        assert (loss.dtype, grad.dtype) == (torch.float32, dtype)
        torch.testing.assert_close(loss.double(), exact[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(grad.double(), exact[1], rtol=0.01, atol=1e-4)

    def test_autograd_agrees_with_finite_differences(self):
        scores, index = normal(2, 5).requires_grad_(), torch.tensor([[0, 3, 3], [-1, 1, -1]])
        assert torch.autograd.gradcheck(
            lambda s: multilabel_cross_entropy(s, positive_index=index, threshold=0.3), [scores]
        )

    def test_dense_labels_can_be_differentiated_twice(self):
        scores, targets = normal(2, 5).requires_grad_(), torch.tensor([[1, 0, 0, 1, 0]] * 2)
        assert torch.autograd.gradgradcheck(
            lambda s: multilabel_cross_entropy(s, targets), [scores]
        )

    def test_the_sparse_form_refuses_a_second_derivative(self):
        scores = double(WORKED).requires_grad_()
        with pytest.raises(RuntimeError, match=r"cannot be differentiated twice .* dense targets"):
            torch.autograd.grad(sparse(scores, [0, 3]), scores, create_graph=True)

    def test_a_second_backward_through_a_kept_graph_gives_the_same(self):
        scores = double(WORKED).requires_grad_()
        loss = sparse(scores, [0, 3])
        first = torch.autograd.grad(loss, scores, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(loss, scores), first, rtol=0, atol=0)

    def test_inputs_are_not_written_to(self):
        scores, index = double(WORKED), torch.tensor([3, 0, -1, 3])
        before = scores.clone(), index.clone()
        multilabel_cross_entropy(scores, positive_index=index)
        assert torch.equal(scores, before[0])
        assert torch.equal(index, before[1])

    def test_scores_need_not_be_contiguous(self):
        scores, index = normal(7, 4), random_index((4,), 7, 3)
        torch.testing.assert_close(
            multilabel_cross_entropy(scores.T, positive_index=index),
            multilabel_cross_entropy(scores.T.contiguous(), positive_index=index),
        )

    def test_int32_positives_work(self):
        index = torch.tensor([0, 3], dtype=torch.int32)
        loss = multilabel_cross_entropy(double(WORKED), positive_index=index)
        assert loss.item() == pytest.approx(1.4500172119912655, abs=1e-10)


class TestFlattenSpans:
    def test_cells_are_numbered_as_flatten_numbers_them(self):
        scores = normal(2, 3, 5, 5)
        spans = torch.tensor([[0, 4], [2, 3], [4, 4]]).expand(2, 3, 3, 2)
        cells = scores.flatten(-2).gather(-1, flatten_spans(spans, 5))
        assert torch.equal(cells, scores[:, :, [0, 2, 4], [4, 3, 4]])

    def test_padding_stays_minus_one(self):
        spans = torch.tensor([[[1, 2], [-1, -1]]])
        assert flatten_spans(spans, 4).tolist() == [[6, -1]]

    @pytest.mark.parametrize("span", [[0, 4], [4, 0], [-1, 2], [2, -1], [-2, -2]])
    def test_a_span_outside_the_table_is_named(self, span):
        with pytest.raises(ValueError, match=r"span .* at \(0, 1\) lies outside 0 … 3"):
            flatten_spans(torch.tensor([[[0, 0], span]]), 4)

    @pytest.mark.compiled
    @pytest.mark.parametrize("shape", [(2,), (2, 3)])
    def test_a_last_axis_other_than_two_is_refused(self, shape):
        with pytest.raises(ValueError, match="index needs shape"):
            flatten_spans(torch.zeros(shape, dtype=torch.long), 4)


class TestBadInput:
    @pytest.mark.parametrize("bad", [5, 99, -2])
    def test_a_positive_out_of_range_is_named(self, bad):
        with pytest.raises(ValueError, match=rf"example \(1, 0\): positive {bad} is outside 0 … 4"):
            sparse(torch.zeros(2, 1, 5), [[[0, -1]], [[bad, 2]]])

    def test_a_masked_positive_is_named(self):
        scores = torch.tensor([WORKED, [0, -INF, 0, 0, 0]])
        with pytest.raises(ValueError, match=r"example \(1,\): positive 1 is masked"):
            sparse(scores, [[0, 3], [2, 1]])

    @pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
    def test_a_dense_positive_on_a_masked_class_is_named(self, dtype):
        scores = torch.tensor([WORKED, [0, -INF, 0, 0, 0]])
        targets = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]).to(dtype)
        with pytest.raises(
            ValueError, match=r"example \(1,\): target .* of class 1 is on a masked"
        ):
            multilabel_cross_entropy(scores, targets)

    @pytest.mark.parametrize("target", [1.5, -0.1, math.nan])
    def test_a_soft_target_outside_the_unit_interval_is_named(self, target):
        with pytest.raises(ValueError, match=r"example \(0,\): .* of class 1 is outside \[0, 1\]"):
            multilabel_cross_entropy(torch.zeros(1, 2), torch.tensor([[0.5, target]]))

    def test_dense_and_sparse_labels_together_are_refused(self):
        with pytest.raises(ValueError, match="either targets or positive_index, got both"):
            multilabel_cross_entropy(
                torch.zeros(1, 2), torch.zeros(1, 2), positive_index=torch.zeros(1, 1).long()
            )

    def test_no_labels_are_refused(self):
        with pytest.raises(ValueError, match="either targets or positive_index, got neither"):
            multilabel_cross_entropy(torch.zeros(1, 2))

    def test_a_padding_value_that_is_a_class_is_refused(self):
        with pytest.raises(ValueError, match="ignore_index 0 is one of the 5 classes"):
            sparse(double(WORKED), [0, 3], ignore_index=0)

    def test_scores_without_classes_are_refused(self):
        with pytest.raises(ValueError, match=r"last axis of classes, got shape \(3, 0\)"):
            multilabel_cross_entropy(torch.zeros(3, 0), torch.zeros(3, 0))

    @pytest.mark.compiled  # the shape hook of the other run speaks first
    def test_labels_of_another_shape_are_refused(self):
        with pytest.raises(ValueError, match=r"targets \(2, 4\) and scores \(2, 5\)"):
            multilabel_cross_entropy(torch.zeros(2, 5), torch.zeros(2, 4))
        with pytest.raises(ValueError, match=r"positive_index \(3, 1\) and scores \(2, 5\)"):
            multilabel_cross_entropy(torch.zeros(2, 5), positive_index=torch.zeros(3, 1).long())

    @pytest.mark.compiled
    def test_a_threshold_tensor_is_refused_because_its_gradient_would_be_lost(self):
        with pytest.raises(TypeError, match="pass scores - threshold"):
            sparse(double(WORKED), [0, 3], threshold=torch.tensor(0.4))

    @pytest.mark.compiled
    def test_an_unknown_reduction_is_refused(self):
        with pytest.raises(ValueError, match="got 'average'"):
            sparse(double(WORKED), [0, 3], reduction="average")


class TestCompiled:
    @pytest.mark.compiled
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_the_sparse_form_is_one_graph_with_the_same_gradients(self, backend, dtype):
        scores, index = normal(2, 3, 50).to(dtype), random_index((2, 3), 50, 4)

        def loss_of(scores):
            return multilabel_cross_entropy(scores, positive_index=index, threshold=0.25)

        compiled = torch.compile(loss_of, fullgraph=True, backend=backend)
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
        torch.testing.assert_close(
            value_and_grad(compiled, scores),
            value_and_grad(loss_of, scores),
            rtol=tolerance,
            atol=tolerance,
        )

    @pytest.mark.compiled
    @pytest.mark.parametrize("kind", [torch.long, torch.float64])
    def test_the_dense_form_is_one_graph_with_the_same_gradients(self, kind):
        scores, targets = normal(2, 3, 50), (normal(2, 3, 50, seed=1) > 1).to(kind)

        def loss_of(scores):
            return multilabel_cross_entropy(scores, targets)

        compiled = torch.compile(loss_of, fullgraph=True)
        torch.testing.assert_close(
            value_and_grad(compiled, scores), value_and_grad(loss_of, scores), rtol=0, atol=1e-12
        )

    @pytest.mark.compiled
    def test_span_tables_and_span_labels_are_one_graph(self):
        table, spans = normal(2, 3, 6, 6), torch.tensor([[0, 4], [2, 3], [-1, -1]])
        spans = spans.expand(2, 3, 3, 2)

        def loss_of(table):
            index = flatten_spans(spans, table.shape[-1])
            return multilabel_cross_entropy(table.flatten(-2), positive_index=index)

        compiled = torch.compile(loss_of, fullgraph=True)
        torch.testing.assert_close(
            value_and_grad(compiled, table), value_and_grad(loss_of, table), rtol=0, atol=1e-12
        )
