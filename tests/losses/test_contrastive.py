"""From embeddings to contrastive losses: pairs, chunks, groups, modules (S03)."""

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.losses.contrastive import in_batch, log_odds_of_pairs, pair_scores, two_views, unit
from kexue.losses.flat_nce import FlatNCELoss, InfoNCELoss, flat_nce_loss, info_nce_loss
from naive.flat_nce import naive_flat_nce, naive_info_nce, naive_pair_scores, naive_two_views

N, D, TAU = 5, 4, 0.3
LOSSES = ((InfoNCELoss, naive_info_nce), (FlatNCELoss, naive_flat_nce))
GROUPS = torch.tensor([7, 1, 7, 2, 3])


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def gradients(loss, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    value = loss(*inputs)
    value.backward()
    return value.detach(), [x.grad for x in inputs]


class TestAgainstTheNaiveTwin:
    @pytest.mark.parametrize(("module", "naive"), LOSSES)
    @pytest.mark.parametrize("groups", [None, GROUPS])
    @pytest.mark.parametrize("chunk_size", [None, 1, 3, 10])
    def test_two_views(self, module, naive, groups, chunk_size):
        loss = module(TAU, reduction="sum", chunk_size=chunk_size)
        _, (mine,) = gradients(lambda x: loss(x, groups=groups), draw(2 * N, D))

        def slow(x):
            return naive(*naive_two_views(x, TAU, groups)).sum()

        _, (theirs,) = gradients(slow, draw(2 * N, D))
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)
        values = naive_info_nce(*naive_two_views(draw(2 * N, D), TAU, groups)).sum()
        torch.testing.assert_close(loss(draw(2 * N, D), groups=groups), values, rtol=1e-12, atol=0)

    @pytest.mark.parametrize(("module", "naive"), LOSSES)
    @pytest.mark.parametrize("chunk_size", [None, 2])
    def test_in_batch_with_a_mask(self, module, naive, chunk_size):
        ignore = torch.zeros(N, N, dtype=torch.bool)
        ignore[0, 2] = ignore[3, 1] = True
        loss = module(TAU, "in_batch", reduction="sum", chunk_size=chunk_size)

        def fast(a, b):
            return loss(a, b, ignore=ignore)

        def slow(a, b):
            return naive(naive_pair_scores(a, b, TAU), torch.arange(N), ignore).sum()

        inputs = (draw(N, D), draw(N, D, seed=1))
        (_, mine), (_, theirs) = gradients(fast, *inputs), gradients(slow, *inputs)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)

    @pytest.mark.parametrize("chunk_size", [None, 3])
    @pytest.mark.parametrize("report", ["infonce", "log_xi", "flat"])
    def test_the_module_is_the_loss_of_all_scores(self, report, chunk_size):
        module = FlatNCELoss(TAU, report=report, chunk_size=chunk_size)

        def dense(x):
            pairs = two_views(x)
            scores, ignore = pair_scores(pairs, TAU)
            return flat_nce_loss(scores, pairs.target, ignore=ignore, report=report)

        value, (mine,) = gradients(module, draw(2 * N, D))
        expected, (theirs,) = gradients(dense, draw(2 * N, D))
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-14)

    @pytest.mark.parametrize("chunk_size", [None, 2])
    def test_gradcheck(self, chunk_size):
        def log_xi(a, b):
            return log_odds_of_pairs(in_batch(a, b), TAU, chunk_size=chunk_size)

        inputs = (draw(N, D).requires_grad_(), draw(N, D, seed=1).requires_grad_())
        assert torch.autograd.gradcheck(log_xi, inputs)

    def test_the_value_is_that_of_cross_entropy_over_all_but_the_anchor_itself(self):
        x = draw(2 * N, D)
        z = F.normalize(x, dim=1)
        scores = (z @ z.T / TAU).fill_diagonal_(-torch.inf)
        expected = F.cross_entropy(scores, (torch.arange(2 * N) + N) % (2 * N))
        torch.testing.assert_close(InfoNCELoss(TAU)(x), expected, rtol=1e-13, atol=0)


class TestChunks:
    def test_a_kept_graph_gives_the_same_gradient_twice(self):
        for chunk_size in (None, 3):
            x = draw(2 * N, D).requires_grad_()
            loss = InfoNCELoss(TAU, chunk_size=chunk_size)(x)
            first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
            assert first.equal(second)

    def test_differentiating_twice_is_refused_and_possible_through_the_scores(self):
        x = draw(2 * N, D).requires_grad_()
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            torch.autograd.grad(InfoNCELoss(TAU)(x), x, create_graph=True)

        def dense(x):
            pairs = two_views(x)
            scores, ignore = pair_scores(pairs, TAU)
            return info_nce_loss(scores, pairs.target, ignore=ignore)

        assert torch.autograd.gradgradcheck(dense, x)

    def test_no_tensor_of_all_scores_is_ever_made(self):
        from torch.utils._python_dispatch import TorchDispatchMode

        largest = 0

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                nonlocal largest
                out = func(*args, **(kwargs or {}))
                if isinstance(out, torch.Tensor):
                    largest = max(largest, out.numel())
                return out

        rows, chunk = 512, 16
        x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with Watch():
            FlatNCELoss(chunk_size=chunk)(x, groups=torch.arange(rows // 2)).backward()
        assert largest == chunk * rows

    def test_float32_gradients_agree_with_double_at_low_temperature(self):
        exact, rough = draw(64, 16), draw(64, 16).float()
        for chunk_size in (None, 7):
            loss = FlatNCELoss(0.02, chunk_size=chunk_size)
            (_, (a,)), (_, (b,)) = gradients(loss, exact), gradients(loss, rough)
            assert (a - b).norm() < 2e-5 * a.norm()

    def test_pairs_that_are_all_but_equal_keep_their_loss_and_gradient_in_float32(self):
        """Orthogonal pairs at temperature 0.05: a loss of about 62 e^−20, under float32's grain."""
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64, generator=generator))[0]
        x = torch.cat((basis, basis + 1e-3 * draw(32, 32)))
        exact, (slope,) = gradients(InfoNCELoss(0.05), x)
        value, (mine,) = gradients(InfoNCELoss(0.05), x.float())
        assert value.item() == pytest.approx(exact.item(), rel=1e-4)
        assert (mine - slope).norm() < 1e-4 * slope.norm()

        def plain(x):
            z = F.normalize(x, dim=1)
            scores = (z @ z.T / 0.05).fill_diagonal_(-torch.inf)
            return (scores.logsumexp(1) - scores[range(64), (torch.arange(64) + 32) % 64]).mean()

        value, (theirs,) = gradients(plain, x.float())
        assert abs(value.item() / exact.item() - 1) > 0.1
        assert (theirs - slope).norm() > 10 * (mine - slope).norm()


class TestPrecisionOfInputs:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("module", [InfoNCELoss, FlatNCELoss])
    def test_half_embeddings_are_compared_in_float32(self, module, dtype):
        x = draw(2 * N, D).to(dtype)
        value, (grad,) = gradients(module(0.05), x)
        exact, (slope,) = gradients(module(0.05), x.double())
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.item(), rel=1e-5)
        bound = 2 * torch.finfo(dtype).eps
        assert (grad.double() - slope).norm() < bound * slope.norm()

    @pytest.mark.parametrize("chunk_size", [None, 3])
    def test_autocast_does_not_reach_the_scores(self, chunk_size):
        loss = FlatNCELoss(0.05, chunk_size=chunk_size)
        value, (grad,) = gradients(loss, draw(2 * N, D).float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast, (other,) = gradients(loss, draw(2 * N, D).float())
            scores, _ = pair_scores(two_views(draw(2 * N, D).float()))
        assert value == cast
        assert grad.equal(other)
        assert scores.dtype == torch.float32

    def test_gradients_survive_a_scaler(self):
        scale = 2.0**16
        for loss in (FlatNCELoss(0.05), InfoNCELoss(0.05)):
            _, (plain,) = gradients(loss, draw(2 * N, D).float())
            _, (scaled,) = gradients(lambda x, loss=loss: scale * loss(x), draw(2 * N, D).float())
            torch.testing.assert_close(scaled / scale, plain, rtol=1e-6, atol=1e-9)


class TestUnitVectors:
    def test_length_one_and_a_gradient_across(self):
        x = draw(3, D).requires_grad_()
        torch.testing.assert_close(unit(x), F.normalize(x, dim=-1), rtol=1e-14, atol=0)
        assert torch.autograd.gradcheck(unit, x)

    def test_a_zero_vector_stays_zero_and_gets_no_gradient(self):
        x = draw(2 * N, D)
        x[3] = 0
        value, (grad,) = gradients(FlatNCELoss(0.1), x)
        assert value.isfinite()
        assert grad.isfinite().all()
        assert grad[3].eq(0).all()
        assert grad.abs().max() < 100

    def test_the_length_of_an_embedding_does_not_matter(self):
        x = draw(2 * N, D)
        longer = x * torch.arange(1, 2 * N + 1)[:, None]
        torch.testing.assert_close(InfoNCELoss()(longer), InfoNCELoss()(x), rtol=1e-12, atol=0)


class TestModules:
    @pytest.mark.parametrize("module", [InfoNCELoss, FlatNCELoss])
    def test_in_batch_is_one_direction_only(self, module):
        a, b = draw(N, D), draw(N, D, seed=1)
        loss = module(TAU, "in_batch")
        assert abs(loss(a, b) - loss(b, a)) > 1e-3

    def test_views_may_be_swapped(self):
        x = draw(2 * N, D)
        torch.testing.assert_close(
            FlatNCELoss()(x), FlatNCELoss()(x.roll(N, 0)), rtol=1e-13, atol=0
        )

    def test_sum_and_count_and_none(self):
        x = draw(2 * N, D)
        total, count = FlatNCELoss(reduction="sum_and_count")(x)
        assert count == 2 * N
        torch.testing.assert_close(total / count, FlatNCELoss()(x), rtol=1e-14, atol=0)
        assert FlatNCELoss(reduction="none")(x).shape == (2 * N,)

    def test_a_module_has_no_state_and_can_be_pickled(self):
        loss = FlatNCELoss(0.1, "in_batch", report="flat", chunk_size=2)
        assert loss.state_dict() == {}
        copy = pickle.loads(pickle.dumps(loss))
        assert copy(draw(N, D), draw(N, D, seed=1)) == 1
        assert repr(loss) == "FlatNCELoss(temperature=0.1, pairing='in_batch')"

    @pytest.mark.parametrize("module", [InfoNCELoss, FlatNCELoss])
    def test_training_pulls_pairs_together(self, module):
        """A linear encoder learns to drop the coordinates that are noise."""
        torch.manual_seed(0)
        encoder = nn.Linear(8, 4, bias=False)
        optimizer = torch.optim.Adam(encoder.parameters(), lr=0.02)
        generator = torch.Generator().manual_seed(0)
        losses = []
        for _ in range(150):
            kept = torch.randn(8, 4, generator=generator).repeat(2, 1)
            noise = torch.randn(16, 4, generator=generator)
            loss = module(0.2)(encoder(torch.cat((kept, noise), dim=1)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
        weight = encoder.weight.detach().square().sum(0)
        assert weight[:4].sum() > 5 * weight[4:].sum()

    def test_gathering_without_processes_is_no_gathering(self):
        x = draw(2 * N, D)
        assert FlatNCELoss(gather_distributed=True)(x) == FlatNCELoss()(x)

    def test_an_empty_batch_costs_nothing(self):
        x = torch.zeros(0, D, requires_grad=True)
        loss = FlatNCELoss()(x)
        loss.backward()
        assert loss == 0
        assert x.grad.shape == (0, D)


class TestErrors:
    @pytest.mark.parametrize("bad", [0.0, -0.1, float("nan"), float("inf")])
    def test_a_temperature_that_is_not_positive_is_refused(self, bad):
        with pytest.raises(ValueError, match="temperature must be positive and finite, got"):
            FlatNCELoss(bad)
        with pytest.raises(ValueError, match="temperature must be positive and finite, got"):
            pair_scores(two_views(draw(4, D)), bad)

    def test_an_odd_number_of_views_is_refused(self):
        with pytest.raises(ValueError, match=r"shape \(2N, D\), .* got \(3, 4\)"):
            FlatNCELoss()(draw(3, D))

    def test_one_pair_has_no_negatives(self):
        with pytest.raises(ValueError, match="row 0 has no negative left among 2 candidates"):
            FlatNCELoss()(draw(2, D))
        with pytest.raises(ValueError, match="row 0 has no negative left among 1 candidates"):
            FlatNCELoss(pairing="in_batch")(draw(1, D), draw(1, D))

    @pytest.mark.parametrize("chunk_size", [None, 1, 2])
    def test_an_anchor_whose_group_is_the_whole_batch_is_named(self, chunk_size):
        groups = torch.tensor([1, 1, 1])
        with pytest.raises(ValueError, match="row 0 has no negative"):
            FlatNCELoss(chunk_size=chunk_size)(draw(6, D), groups=groups)
        ignore = torch.zeros(3, 3, dtype=torch.bool)
        ignore[2] = True
        with pytest.raises(ValueError, match="row 2 has no negative"):
            FlatNCELoss(0.1, "in_batch", chunk_size=chunk_size)(
                draw(3, D), draw(3, D, seed=1), ignore=ignore
            )

    def test_nan_and_infinite_embeddings_are_named(self):
        for bad in (float("nan"), float("inf")):
            a, b = draw(N, D), draw(N, D, seed=1)
            a[3, 0] = bad
            with pytest.raises(ValueError, match="row 3 has a score that is NaN or infinite"):
                FlatNCELoss(pairing="in_batch")(a, b)

    def test_inputs_that_do_not_fit_the_pairing_are_refused(self):
        x = draw(4, D)
        with pytest.raises(ValueError, match='"two_views" takes one tensor of stacked views'):
            FlatNCELoss()(x, x)
        with pytest.raises(ValueError, match='"in_batch" takes anchor and positive'):
            FlatNCELoss(pairing="in_batch")(x)

    @pytest.mark.parametrize("chunk_size", [0, -4])
    def test_a_chunk_must_hold_something(self, chunk_size):
        with pytest.raises(ValueError, match=f"chunk_size must be at least 1, got {chunk_size}"):
            FlatNCELoss(chunk_size=chunk_size)(draw(4, D))

    def test_groups_are_one_per_pair(self):
        with pytest.raises(ValueError, match=r"one number per pair, shape \(2,\), got \(4,\)"):
            FlatNCELoss()(draw(4, D), groups=torch.zeros(4, dtype=torch.long))

    @pytest.mark.compiled
    def test_anchor_and_positive_of_different_shapes_are_refused(self):
        with pytest.raises(ValueError, match=r"shape \(N, D\).* got \(4, 4\) and \(3, 4\)"):
            FlatNCELoss(pairing="in_batch")(draw(4, D), draw(3, D))

    def test_a_mask_of_another_shape_is_refused(self):
        with pytest.raises(ValueError, match=r"ignore must have shape \(4, 4\), got \(4, 3\)"):
            FlatNCELoss()(draw(4, D), ignore=torch.zeros(4, 3, dtype=torch.bool))

    @pytest.mark.compiled
    def test_unknown_pairings_reports_and_reductions_are_refused(self):
        with pytest.raises(ValueError, match='pairing must be "two_views" or "in_batch"'):
            FlatNCELoss(pairing="both")
        with pytest.raises(ValueError, match="report must be"):
            FlatNCELoss(report="loss")
        with pytest.raises(ValueError, match="reduction must be"):
            FlatNCELoss(reduction="average")
