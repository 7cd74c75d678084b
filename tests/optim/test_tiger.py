"""Tiger: the claims of S29, one test each."""

import io
import math

import pytest
import torch
from pytorch_optimizer import Tiger as PeerTiger
from torch import nn

from kexue.optim.lion import Lion
from kexue.optim.runaway import runaway_rows
from kexue.optim.tiger import AUTHOR_EXACT, VISION, Tiger
from kexue.tensor_loop import Loop
from naive.tiger import naive_tiger

KINDS = ("matrix", "embedding", "bias", "gain", "shift")
THETA = [[0.2, -0.1], [0.05, 0.3]]
G1, G2 = [[1.0, -2.0], [0.5, 0.0]], [[-3.0, 1.0], [0.0, 0.2]]
G3, G4 = [[0.4, 0.4], [-1.0, 0.1]], [[-0.2, 0.6], [0.3, -0.7]]
NAN, INF = math.nan, math.inf


@pytest.fixture(params=["compiled loop", "torch"])
def path(request, monkeypatch):
    """Both ways through float32 on a CPU; without a compiler they are the same."""
    if request.param == "torch":
        monkeypatch.setattr(Loop, "takes", lambda self, *tensors: False)
    return request.param


def normal(*shape, seed=0, dtype=torch.float64, scale=1.0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * scale


def parameter(values, dtype=torch.float64):
    if isinstance(values, torch.Tensor):
        return nn.Parameter(values.detach().clone())
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def tiger(x, kind="matrix", **options):
    return Tiger([{"params": [x], "kind": kind}], **options)


def run(optimizer, x, gradients):
    """Each micro-gradient in turn; all values of x."""
    values = []
    for g in gradients:
        x.grad = None if g is None else torch.as_tensor(g, dtype=x.dtype)
        optimizer.step()
        values.append(x.detach().clone())
    return values


def momentum(optimizer, x):
    return optimizer.state[x]["exp_avg"]


def close(a, b, tolerance=1e-12):
    expected = torch.as_tensor(b, dtype=a.dtype)
    torch.testing.assert_close(a, expected, rtol=0, atol=tolerance, equal_nan=True)


class TestWorkedNumbers:
    options = {"lr": 0.01, "beta": 0.9, "weight_decay": 0.01, "min_rms": 0.0}

    def test_matrix(self):
        x = parameter(THETA)
        optimizer = tiger(x, **self.options)
        assert x.detach().square().mean().sqrt().item() == pytest.approx(0.188745860882, abs=1e-12)
        first, second = run(optimizer, x, [G1, G2])
        close(first, [[0.198108766474, -0.098110653933], [0.048111597662, 0.299994337624]])
        close(second, [[0.199983768275, -0.096230086987], [0.046231970061, 0.298109977842]])
        close(momentum(optimizer, x), [[-0.21, -0.08], [0.045, 0.02]])

    def test_embedding(self):
        x = parameter(THETA)
        second = run(tiger(x, "embedding", **self.options), x, [G1, G2])[1]
        close(second, [[0.199978713272, -0.096849616885], [0.045699228129, 0.297839016693]])

    def test_gain_with_a_nan(self):
        x = parameter([1.0, 0.5])
        optimizer = tiger(x, "gain", **self.options)
        values = run(optimizer, x, [[1.0, -1.0], [NAN, 1.0], [2.0, 0.1]])
        for value, expected in zip(
            values, ([0.995, 0.505], [0.99505, 0.50995], [0.99005, 0.51495]), strict=True
        ):
            close(value, expected)
        close(momentum(optimizer, x), [0.29, -0.08])

    def test_accumulation_over_two(self):
        x = parameter(THETA)
        values = run(tiger(x, accum_steps=2, **self.options), x, [G1, G2, G3, G4])
        expected = [[0.203761143028, -0.099990065506], [0.049991949847, 0.299982528146]]
        close(values[3], expected)


def gradients_with_accidents(steps, shape, seed):
    """Micro-gradients of which some are missing, not finite, or zero in some rows."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for t in range(steps):
        g = torch.randn(shape, dtype=torch.float64, generator=generator)
        g[torch.rand(shape[0], generator=generator) < 0.4] = 0
        fate = torch.rand((), generator=generator).item()
        if fate < 0.15:
            g[0, 0] = (NAN, INF, -INF)[t % 3]
        found.append(None if 0.15 < fate < 0.25 else g)
    return found


@pytest.mark.parametrize("nan_decay", ["deferred", "author"])
@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
class TestAgainstTheNaiveTwin:
    def check(self, dtype, tolerance, kind, k, lazy, nan_decay):
        for seed in range(4):
            gradients = gradients_with_accidents(18, (5, 3), seed)
            if nan_decay == "author":  # there every tensor always has a gradient
                gradients = [torch.ones(5, 3) if g is None else g for g in gradients]
            start = normal(5, 3, seed=seed)
            start[4] = 0
            options = {"lr": 0.05, "beta": 0.8, "weight_decay": 0.3, "nan_decay": nan_decay}
            if kind not in ("matrix", "embedding"):
                options["weight_decay"] = 0.01
            x = parameter(start.to(dtype))
            optimizer = tiger(x, kind, accum_steps=k, lazy_embeddings=lazy, **options)
            values = run(optimizer, x, gradients)
            rows = [None if g is None else g.tolist() for g in gradients]
            naive, m = naive_tiger(start.tolist(), rows, kind=kind, k=k, lazy=lazy, **options)
            close(torch.stack(values), naive, tolerance)
            close(momentum(optimizer, x), m, tolerance)

    def test_every_value_agrees(self, kind, k, lazy, nan_decay):
        self.check(torch.float64, 1e-12, kind, k, lazy, nan_decay)

    def test_every_value_agrees_in_float32(self, path, kind, k, lazy, nan_decay):
        self.check(torch.float32, 3e-6, kind, k, lazy, nan_decay)


class TestTheFormula:
    def test_with_a_constant_step_it_is_lion_with_equal_betas_bit_for_bit(self, path):
        start = normal(300, 300, dtype=torch.float32)
        x, y = parameter(start), parameter(start)
        ours = tiger(x, lr=0.003, beta=0.9, weight_decay=0.1, scale=1.0)
        lion = Lion([y], lr=0.003, betas=(0.9, 0.9), weight_decay=0.1)
        for seed in range(5):
            g = normal(300, 300, dtype=torch.float32, seed=seed + 1)
            run(ours, x, [g]), run(lion, y, [g])
        assert torch.equal(x, y)
        assert torch.equal(momentum(ours, x), lion.state[y]["exp_avg"])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_bias_is_the_peers_tiger_at_half_the_rate(self, dtype):
        start = normal(40, dtype=dtype)
        x, y = parameter(start), parameter(start)
        ours = tiger(x, "bias", lr=0.01)
        peer = PeerTiger([y], lr=0.005, weight_decay=0.0)
        for seed in range(20):
            g = normal(40, seed=seed + 1, dtype=dtype)
            run(ours, x, [g]), run(peer, y, [g])
        close(x.detach(), y.detach(), 2e-16 if dtype == torch.float64 else 1e-7)

    def test_with_a_constant_step_it_is_the_peers_tiger(self):
        start = normal(20, 20)
        x, y = parameter(start), parameter(start)
        ours, peer = tiger(x, scale=1.0), PeerTiger([y])
        for seed in range(20):
            g = normal(20, 20, seed=seed + 1)
            run(ours, x, [g]), run(peer, y, [g])
        close(x.detach(), y.detach(), 2e-16 * 20)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("factor", "exact"), [(2.0**-20, True), (2.0**9, True), (1e-3, False)])
    def test_the_scale_of_the_loss_does_not_matter(self, kind, factor, exact):
        values = []
        for scale in (1.0, factor):
            x = parameter(normal(6, 4))
            gradients = [scale * normal(6, 4, seed=s) for s in range(12)]
            values.append(torch.stack(run(tiger(x, kind, accum_steps=2), x, gradients)))
        assert torch.equal(*values) if exact else torch.allclose(*values, rtol=0, atol=1e-14)

    @pytest.mark.parametrize(("kind", "a"), [("matrix", 7.3), ("embedding", None)])
    def test_scaled_weights_take_the_scaled_path(self, kind, a):
        """The whole tensor by one factor; the rows of an embedding each by its own."""
        factor = a or torch.tensor([[0.1], [1.0], [30.0], [2.0], [5.0], [7.0]], dtype=torch.float64)
        gradients = [normal(6, 4, seed=s) for s in range(1, 9)]
        x, y = parameter(normal(6, 4)), parameter(normal(6, 4) * factor)
        plain, scaled = (
            torch.stack(run(tiger(z, kind, weight_decay=0.0, min_rms=0.0), z, gradients))
            for z in (x, y)
        )
        torch.testing.assert_close(scaled, plain * factor, rtol=1e-12, atol=0)

    def test_with_decay_the_path_scales_only_if_decay_is_divided(self):
        gradients = [normal(6, 4, seed=s) for s in range(1, 9)]
        ends = {}
        for decay in (0.1, 0.1 / 7.3):
            y = parameter(normal(6, 4) * 7.3)
            ends[decay] = run(tiger(y, weight_decay=decay, lr=0.05), y, gradients)[-1] / 7.3
        x = parameter(normal(6, 4))
        plain = run(tiger(x, weight_decay=0.1, lr=0.05), x, gradients)[-1]
        torch.testing.assert_close(ends[0.1 / 7.3], plain, rtol=1e-12, atol=0)
        assert (ends[0.1] - plain).abs().max() > 1e-3

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_step_has_the_length_that_its_kind_says(self, kind):
        x, g, lr, decay = parameter(normal(6, 4)), normal(6, 4, seed=1), 0.01, 0.2
        before = x.detach().clone()
        optimizer = tiger(x, kind, lr=lr, weight_decay=decay)
        run(optimizer, x, [g])
        square = before.square()
        rms = {"matrix": square.mean().sqrt(), "embedding": square.mean(1, keepdim=True).sqrt()}
        eta = lr * rms.get(kind, torch.tensor(0.5, dtype=torch.float64))
        if kind not in rms:
            decay = 0.0
        expected = eta * (momentum(optimizer, x).sign() + decay * before).abs()
        close((x.detach() - before).abs(), expected, 1e-15)

    def test_an_entry_without_momentum_only_decays(self):
        x = parameter([[0.5, 0.5]])
        run(tiger(x, lr=0.1, weight_decay=0.0), x, [[[0.0, 1.0]]])
        assert x.tolist() == [[0.5, 0.45]]

    def test_biases_and_gains_do_not_decay_unless_their_group_says_so(self):
        groups = [{"params": [parameter([1.0])], "kind": kind} for kind in KINDS]
        groups.append({"params": [parameter([1.0])], "kind": "bias", "weight_decay": 0.001})
        optimizer = Tiger(groups, weight_decay=0.02)
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        assert decays == [0.02, 0.02, 0.0, 0.0, 0.0, 0.001]

    def test_a_zero_matrix_moves_unless_the_floor_is_zero(self, path):
        for floor, length in ((1e-3, 1e-5), (0.0, 0.0)):
            x = parameter(torch.zeros(4, 3))
            run(tiger(x, lr=0.01, min_rms=floor), x, [torch.ones(4, 3)])
            close(x.detach(), torch.full((4, 3), -length), 1e-11)

    @pytest.mark.parametrize("lazy", [True, False])
    def test_a_padding_row_of_zeros_stays_zero(self, path, lazy):
        for floor, gradient in ((0.0, 1.0), (1e-3, 0.0)):
            x = parameter(torch.cat([torch.zeros(1, 3), torch.ones(3, 3)]))
            g = torch.ones(4, 3)
            g[0] = gradient
            run(tiger(x, "embedding", min_rms=floor, lazy_embeddings=lazy), x, [g] * 5)
            assert (x[0] == 0).all()
            assert (x[1:] < 1).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_descends_and_with_maximize_climbs(self, kind):
        for maximize, sign in ((False, -1), (True, 1)):
            x = parameter([[1.0, 2.0]])
            run(tiger(x, kind, lr=0.1, weight_decay=0.0, maximize=maximize), x, [[[1.0, 1.0]]])
            assert ((x - torch.tensor([[1.0, 2.0]])) * sign > 0).all()

    def test_presets_are_the_authors(self):
        x = parameter([[1.0, 1.0]])
        group = tiger(x, **AUTHOR_EXACT, **VISION).param_groups[0]
        assert (group["min_rms"], group["lazy_embeddings"], group["nan_decay"]) == (
            0,
            False,
            "author",
        )
        assert (group["beta"], group["lr"], group["weight_decay"]) == (0.945, 1e-3, 0.01)
        assert tiger(x).param_groups[0]["beta"] == pytest.approx((0.95 + 0.98) / 2)

    @pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0), (1,), (2, 3, 4)])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("k", [1, 2])
    def test_every_shape_is_taken(self, path, shape, kind, k):
        x = parameter(torch.ones(shape))
        values = run(tiger(x, kind, accum_steps=k, lr=0.1), x, [torch.ones(shape)] * 2 * k)
        assert values[-1].isfinite().all()
        assert (values[-1] < 1).all()

    @pytest.mark.parametrize("kind", ["matrix", "embedding"])
    @pytest.mark.parametrize("k", [1, 2])
    def test_strides_do_not_matter(self, kind, k):
        gradients = [normal(6, 4, dtype=torch.float32, seed=s) for s in range(4)]
        x = parameter(normal(6, 4, dtype=torch.float32))
        y = nn.Parameter(x.detach().T.contiguous().T)
        run(tiger(x, kind, accum_steps=k), x, gradients)
        optimizer = tiger(y, kind, accum_steps=k)
        for g in gradients:
            y.grad = g.T.contiguous().T
            optimizer.step()
        assert not y.is_contiguous()
        close(y.detach(), x.detach(), 1e-6)

    def test_the_learning_rate_may_be_a_tensor(self, path):
        for kind in KINDS:
            x, y = (parameter(normal(6, 4, dtype=torch.float32)) for _ in range(2))
            gradients = [normal(6, 4, seed=s) for s in range(4)]
            run(tiger(x, kind, lr=0.01, accum_steps=2), x, gradients)
            run(tiger(y, kind, lr=torch.tensor(0.01), accum_steps=2), y, gradients)
            close(x.detach(), y.detach(), 1e-6)


class TestAccumulation:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("k", [2, 4])
    def test_k_micro_steps_are_one_step_on_the_mean_gradient(self, kind, k):
        x, y = parameter(normal(6, 4)), parameter(normal(6, 4))
        hidden, plain = tiger(x, kind, accum_steps=k), tiger(y, kind)
        for group in range(10):
            gradients = [normal(6, 4, seed=100 * group + s) for s in range(k)]
            run(hidden, x, gradients), run(plain, y, [sum(gradients) / k])
            close(x.detach(), y.detach())
            close(momentum(hidden, x), momentum(plain, y))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_moves_inside_a_group(self, kind, dtype):
        x = parameter(normal(6, 4).to(dtype))
        start = x.detach().clone()
        optimizer = tiger(x, kind, accum_steps=3, lr=0.1, stochastic_rounding=True)
        values = run(optimizer, x, [normal(6, 4, seed=s) for s in range(6)])
        assert torch.equal(values[0], start)
        assert torch.equal(values[1], start)
        assert not torch.equal(values[2], start)
        assert torch.equal(values[3], values[2])
        assert torch.equal(values[4], values[2])

    def test_a_tensor_without_gradient_in_the_last_micro_batch_gets_its_update(self):
        for order in ([G1, None], [None, G1]):
            x = parameter(THETA)
            run(tiger(x, accum_steps=2), x, order)
            y = parameter(THETA)
            run(tiger(y), y, [double(G1) / 2])
            close(x.detach(), y.detach())

    @pytest.mark.parametrize("k", [1, 3])
    def test_a_tensor_without_gradient_is_neither_moved_nor_shrunk(self, k):
        x, y = parameter(THETA), parameter(THETA)
        optimizer = Tiger([x, y], accum_steps=k)
        for _ in range(6):
            y.grad = double(G1)
            optimizer.step()
        assert x.tolist() == THETA
        assert x not in optimizer.state
        assert y.tolist() != THETA

    def test_the_rate_of_the_closing_micro_step_counts(self):
        x = parameter([1.0])
        optimizer = tiger(x, "bias", accum_steps=3)
        for lr in (5.0, 7.0, 0.1):
            optimizer.param_groups[0]["lr"] = lr
            run(optimizer, x, [[1.0]])
        assert x.item() == 0.95

    @pytest.mark.parametrize("kind", ["matrix", "embedding"])
    def test_a_saved_state_goes_on_in_the_middle_of_a_group(self, kind):
        gradients = [normal(6, 4, seed=s, dtype=torch.float32) for s in range(8)]
        for g in gradients[::2]:
            g[2] = 0
        x = parameter(normal(6, 4, dtype=torch.float32))
        optimizer = tiger(x, kind, accum_steps=3)
        run(optimizer, x, gradients[:4])
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        y = parameter(x.detach())
        resumed = tiger(y, kind, accum_steps=3)
        resumed.load_state_dict(torch.load(buffer, weights_only=True))
        assert resumed.state[y]["open"].dtype == torch.bool
        assert resumed.param_groups[0]["position"] == 1
        run(optimizer, x, gradients[4:]), run(resumed, y, gradients[4:])
        assert torch.equal(x, y)

    def test_parameters_added_in_the_middle_of_a_group_move_with_the_others(self):
        x, y = parameter(THETA), parameter(THETA)
        optimizer = tiger(x, accum_steps=3)
        run(optimizer, x, [G1])
        optimizer.add_param_group({"params": [y], "kind": "bias"})
        for step in (2, 3):
            y.grad = double(G2)
            run(optimizer, x, [G1])
            assert (y.tolist() != THETA) == (x.tolist() != THETA) == (step == 3)

    def test_the_group_size_may_change_between_groups(self):
        x, y = parameter(THETA), parameter(THETA)
        optimizer, plain = tiger(x), tiger(y)
        run(optimizer, x, [G1]), run(plain, y, [G1])
        optimizer.param_groups[0]["accum_steps"] = 2
        run(optimizer, x, [G2, G3]), run(plain, y, [(double(G2) + double(G3)) / 2])
        close(x.detach(), y.detach())

    @pytest.mark.parametrize("k", [1, 3])
    def test_in_backward_gives_the_same_and_frees_every_gradient(self, k):
        def train(in_backward):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.LayerNorm(8)).double()
            optimizer = Tiger(model, lr=0.01, accum_steps=k)
            handle = optimizer.step_in_backward(model) if in_backward else None
            for seed in range(2 * k):
                ids = torch.randint(20, (4, 5), generator=torch.Generator().manual_seed(seed))
                (model(ids) * normal(8, seed=seed)).sum().backward()
                if in_backward:
                    assert all(p.grad is None for p in model.parameters())
                optimizer.step()
                optimizer.zero_grad()
            if handle:
                handle.remove()
            return torch.cat([p.detach().flatten() for p in model.parameters()])

        assert torch.equal(train(True), train(False))

    def test_state_is_one_number_per_weight(self):
        model = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 64), nn.LayerNorm(64))
        optimizer = Tiger(model, accum_steps=4)
        model(torch.arange(100)).sum().backward()
        optimizer.step()
        tensors = [t for state in optimizer.state.values() for t in state.values()]
        size = sum(t.numel() * t.element_size() for t in tensors)
        weights = sum(p.numel() for p in model.parameters())
        assert size / weights == pytest.approx(4.0, abs=0.02)


class TestGradientsThatAreNotFinite:
    @pytest.mark.parametrize("bad", [NAN, INF, -INF])
    @pytest.mark.parametrize("kind", KINDS)
    def test_one_such_entry_shrinks_its_tensor_alone(self, path, kind, bad):
        x, y, z = (parameter(normal(4, 3, dtype=torch.float32)) for _ in range(3))
        both, alone = Tiger([{"params": [x, y], "kind": kind}]), tiger(z, kind)
        before = x.detach().clone()
        g = normal(4, 3, seed=1, dtype=torch.float32)
        x.grad, y.grad = g.clone(), g.clone()
        x.grad[2, 1] = bad
        both.step(), run(alone, z, [g])
        centre = 1.0 if kind == "gain" else 0.0
        close(x.detach(), (before - centre) * 0.99 + centre, 1e-6)
        assert torch.equal(y, z)
        assert (momentum(both, x) == 0).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_n_such_steps_shrink_n_times(self, kind):
        x = parameter(THETA)
        value = run(tiger(x, kind, shrink=0.9), x, [[[NAN, 1.0], [1.0, 1.0]]] * 7)[-1]
        centre = 1.0 if kind == "gain" else 0.0
        close(value, centre + (double(THETA) - centre) * 0.9**7)

    @pytest.mark.parametrize("kind", ["matrix", "gain", "embedding"])
    def test_deferred_decay_weighs_the_past_by_beta_once(self, kind):
        x = parameter(normal(2, 2))
        optimizer = tiger(x, kind, accum_steps=3, beta=0.9)
        run(optimizer, x, [G1, G2, G3])
        old = momentum(optimizer, x).clone()
        run(optimizer, x, [[[NAN, 1.0], [0.0, 1.0]], G3, G4])
        close(momentum(optimizer, x), 0.9 * old + 0.1 / 3 * (double(G3) + double(G4)))

    def test_a_group_without_a_finite_gradient_leaves_the_momentum_alone(self):
        x = parameter(THETA)
        optimizer = tiger(x, accum_steps=2)
        run(optimizer, x, [G1, G2])
        old, value = momentum(optimizer, x).clone(), x.detach().clone()
        run(optimizer, x, [[[NAN, 1.0], [0.0, 1.0]]] * 2)
        assert torch.equal(momentum(optimizer, x), old)
        close(x.detach(), value * 0.99**2)

    def test_the_authors_rule_loses_the_decay_of_a_group_that_begins_badly(self):
        bad = [[NAN, 1.0], [0.0, 1.0]]
        x = parameter(THETA)
        optimizer = tiger(x, accum_steps=2, beta=0.9, nan_decay="author")
        run(optimizer, x, [G1, G2])
        old = momentum(optimizer, x).clone()
        run(optimizer, x, [bad, G3])
        close(momentum(optimizer, x), old + 0.05 * double(G3))

    @pytest.mark.parametrize("nan_decay", ["deferred", "author"])
    def test_a_bad_end_drops_the_update_but_keeps_the_momentum(self, nan_decay):
        x = parameter(THETA)
        optimizer = tiger(x, accum_steps=2, beta=0.9, nan_decay=nan_decay)
        run(optimizer, x, [G1, [[NAN, 1.0], [0.0, 1.0]]])
        close(x.detach(), double(THETA) * 0.99)
        close(momentum(optimizer, x), 0.05 * double(G1))

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_skip_trains_on_the_other_micro_batches(self, place):
        gradients = [G1, G2, G3]
        gradients[place] = [[NAN, 1.0], [0.0, 1.0]]
        x, y = parameter(THETA), parameter(THETA)
        run(tiger(x, accum_steps=3, nonfinite="skip"), x, gradients)
        gradients[place] = None
        run(tiger(y, accum_steps=3), y, gradients)
        assert torch.equal(x, y)
        assert x.tolist() != THETA

    def test_raise_names_the_tensor(self):
        model = nn.Linear(2, 2)
        optimizer = Tiger(model, nonfinite="raise")
        model.weight.grad = torch.full((2, 2), NAN)
        with pytest.raises(FloatingPointError, match=r"gradient of weight of shape \(2, 2\)"):
            optimizer.step()

    @pytest.mark.parametrize("nonfinite", ["shrink", "skip"])
    @pytest.mark.parametrize("nan_decay", ["deferred", "author"])
    @pytest.mark.parametrize("kind", ["matrix", "embedding", "gain"])
    @pytest.mark.parametrize("k", [1, 3])
    def test_accelerators_take_the_same_way_without_reading_back(
        self, monkeypatch, k, kind, nan_decay, nonfinite
    ):
        """`update_where_finite` is what they run; here it runs on the CPU."""
        gradients = gradients_with_accidents(18, (5, 3), seed=3)
        ends = []
        for forced in (False, True):
            if forced:
                monkeypatch.setattr(Loop, "takes", lambda self, *tensors: False)
                monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
            x = parameter(normal(5, 3))
            optimizer = tiger(x, kind, accum_steps=k, nan_decay=nan_decay, nonfinite=nonfinite)
            run(optimizer, x, gradients)
            ends.append((x.detach(), momentum(optimizer, x)))
        for a, b in zip(*ends, strict=True):
            close(a, b)


class TestRareTokens:
    def rare(self, lazy, steps, **options):
        """A table whose first row is hit once, then never again; the others always."""
        x = parameter(normal(4, 3, scale=0.02))
        optimizer = tiger(x, "embedding", lazy_embeddings=lazy, **options)
        for step in range(steps):
            g = normal(4, 3, seed=step)
            if step:
                g[0] = 0
            run(optimizer, x, [g])
        return x.detach(), optimizer.state[x]["exp_avg"]

    def test_a_lazy_row_keeps_its_value_and_its_momentum(self):
        (early, m1), (late, m2) = self.rare(True, 1), self.rare(True, 300)
        assert torch.equal(early[0], late[0])
        assert torch.equal(m1[0], m2[0])
        assert not torch.equal(early[1:], late[1:])

    def test_without_lazy_rows_it_runs_to_the_sign_over_lambda(self):
        x, m = self.rare(False, 4000, lr=0.02, weight_decay=0.1)
        close(x[0], -m[0].sign() / 0.1, 1e-6)
        assert x[1:].abs().max() < 9

    def test_the_audit_finds_it_and_nothing_else(self):
        table = nn.Embedding(4, 3).double()
        with torch.no_grad():
            table.weight.copy_(self.rare(False, 4000, lr=0.02, weight_decay=0.1)[0])
        found = runaway_rows(nn.Sequential(table), 0.1, share=0.95)
        assert [(one.table, one.row, one.share) for one in found] == [("0", 0, 1.0)]
        with torch.no_grad():
            table.weight.copy_(self.rare(True, 50)[0])
        assert runaway_rows(table) == []
        with pytest.raises(ValueError, match="positive weight_decay"):
            runaway_rows(table, 0.0)

    def test_the_momentum_of_an_idle_row_never_reaches_zero(self):
        """14 subnormal units are where rounding holds it at β = 0.965."""
        m = torch.tensor([1e-3])
        for _ in range(6000):
            m.mul_(0.965)
        assert m.item() in (14 * 2.0**-149, 0.0)  # zero where subnormals are flushed

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_a_row_forgets_at_its_own_first_gradient_of_a_group(self, k):
        x = parameter(normal(3, 2))
        optimizer = tiger(x, "embedding", accum_steps=k, beta=0.9)
        run(optimizer, x, [normal(3, 2, seed=s) for s in range(k)])
        old = momentum(optimizer, x).clone()
        gradients = torch.zeros(k, 3, 2, dtype=torch.float64)
        gradients[-1, 0] = 1.0  # row 0 is hit in the last micro-batch, row 1 in all, row 2 never
        gradients[:, 1] = 2.0
        run(optimizer, x, list(gradients))
        expected = torch.stack([0.9 * old[0] + 0.1 / k, 0.9 * old[1] + 0.2, old[2]])
        close(momentum(optimizer, x), expected)


class TestHalfPrecision:
    table = {
        (2e-3, torch.float16): (1.000, 1.000), (2e-3, torch.bfloat16): (0.566, 0.678),
        (1e-3, torch.float16): (0.998, 1.016), (1e-3, torch.bfloat16): (0.304, 0.368),
        (1e-4, torch.float16): (0.304, 0.432), (1e-4, torch.bfloat16): (0.039, 0.056),
        (1e-5, torch.float16): (0.020, 0.020), (1e-5, torch.bfloat16): (0.003, 0.003),
    }  # fmt: skip

    @pytest.mark.parametrize(("alpha", "dtype"), list(table))
    def test_steps_below_the_grid_are_lost_by_rounding(self, alpha, dtype):
        """10^6 weights N(0, 0.02²): the share that moves, the mean step against the exact one."""
        start = normal(1_000_000, dtype=torch.float32, scale=0.02).to(dtype)
        x = parameter(start)
        g = normal(1_000_000, dtype=torch.float32, seed=1).to(dtype)
        optimizer = tiger(x, lr=alpha, weight_decay=0.0, min_rms=0.0)
        run(optimizer, x, [g])
        moved, step = (x != start), alpha * start.float().square().mean().sqrt()
        mean = ((start.float() - x.detach().float()) * g.float().sign()).mean() / step
        share, relative = self.table[alpha, dtype]
        assert moved.float().mean().item() == pytest.approx(share, abs=0.002)
        assert mean.item() == pytest.approx(relative, abs=0.01)

    def test_rounding_at_random_keeps_the_mean_step(self):
        start = normal(1_000_000, dtype=torch.float32, scale=0.02).bfloat16()
        x = parameter(start)
        g = normal(1_000_000, dtype=torch.float32, seed=1).bfloat16()
        run(tiger(x, lr=1e-4, weight_decay=0.0, stochastic_rounding=True), x, [g])
        step = 1e-4 * start.float().square().mean().sqrt()
        mean = ((start.float() - x.detach().float()) * g.float().sign()).mean() / step
        assert mean.item() == pytest.approx(1.0, abs=0.02)

    @pytest.mark.parametrize("kind", ["matrix", "embedding"])
    @pytest.mark.parametrize("k", [1, 2])
    def test_the_momentum_may_be_bfloat16(self, kind, k):
        x, y = parameter(normal(64, 8).float()), parameter(normal(64, 8).float())
        low = tiger(x, kind, accum_steps=k, momentum_dtype=torch.bfloat16)
        full = tiger(y, kind, accum_steps=k)
        gradients = [normal(64, 8, seed=s) for s in range(4)]
        run(low, x, gradients), run(full, y, gradients)
        assert momentum(low, x).dtype == torch.bfloat16
        torch.testing.assert_close(momentum(low, x).float(), momentum(full, y), rtol=0.1, atol=2e-3)
        assert (x - y).abs().max() <= 0.01  # a sign here and there
        again = tiger(parameter(x.detach()), kind, momentum_dtype=torch.bfloat16)
        buffer = io.BytesIO()
        torch.save(low.state_dict(), buffer)
        buffer.seek(0)
        again.load_state_dict(torch.load(buffer, weights_only=True))
        assert next(iter(again.state.values()))["exp_avg"].dtype == torch.bfloat16

    def test_double_weights_may_have_a_lower_momentum(self):
        for dtype in (torch.float32, torch.bfloat16):
            x = parameter(normal(4, 4))
            optimizer = tiger(x, momentum_dtype=dtype, accum_steps=2)
            run(optimizer, x, [normal(4, 4, seed=s) for s in range(4)])
            assert momentum(optimizer, x).dtype == dtype

    def test_a_half_model_keeps_its_momentum_in_float32(self):
        x = parameter(normal(4, 4).bfloat16())
        optimizer = tiger(x)
        run(optimizer, x, [normal(4, 4)])
        assert momentum(optimizer, x).dtype == torch.float32

    def test_a_gradient_scaler_changes_nothing_because_it_divides_first(self):
        def train(scaler):
            torch.manual_seed(0)
            model = nn.Linear(6, 3)
            optimizer = Tiger(model, lr=0.01, accum_steps=2)
            for seed in range(6):
                loss = model(normal(5, 6, dtype=torch.float32, seed=seed)).square().mean()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            return torch.cat([p.detach().flatten() for p in model.parameters()])

        growing = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
        assert torch.equal(train(growing), train(torch.amp.GradScaler("cpu", enabled=False)))


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": -1.0}, "lr must not be negative, got -1.0"),
            ({"beta": 1.0}, r"beta must lie in \[0, 1\), got 1.0"),
            ({"beta": -0.1}, r"beta must lie in \[0, 1\)"),
            ({"weight_decay": -0.1}, "weight_decay must not be negative"),
            ({"min_rms": -0.1}, "min_rms must not be negative"),
            ({"accum_steps": 0}, "accum_steps must be a whole number from 1, got 0"),
            ({"shrink": 0.0}, r"shrink must lie in \(0, 1\], got 0.0"),
            ({"shrink": 1.1}, r"shrink must lie in \(0, 1\]"),
            ({"scale": 0.0}, "scale must be positive, got 0.0"),
            ({"nonfinite": "hope"}, "nonfinite must be one of shrink, skip, raise, ignore"),
            ({"nan_decay": "never"}, "nan_decay must be one of deferred, author"),
            ({"momentum_dtype": torch.float16}, "momentum_dtype must be None, torch.float32"),
            ({"average_momentum": True}, "average_momentum cannot shrink weights"),
        ],
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            Tiger([parameter(THETA)], **options)

    def test_an_unknown_kind(self):
        with pytest.raises(ValueError, match=r"kind must be one of matrix, bias, .*, got 'table'"):
            tiger(parameter(THETA), "table")

    def test_sparse_and_complex_gradients(self):
        table = nn.Embedding(5, 2, sparse=True)
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(
            TypeError, match=r"weight of shape \(5, 2\) has layout torch.sparse_coo"
        ):
            Tiger(table).step()
        with pytest.raises(TypeError, match="real floating numbers"):
            Tiger([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])

    @pytest.mark.parametrize("name", ["layer.bias", "LayerNorm.weight", "ln_1.weight", "gamma"])
    def test_a_named_bias_or_norm_in_a_group_without_a_kind(self, name):
        pairs = [("layer.weight", parameter(THETA)), (name, parameter([1.0]))]
        with pytest.raises(ValueError, match=rf"{name} looks like .* tiger_param_groups\(model\)"):
            Tiger(pairs)
        groups = Tiger([{"params": pairs, "kind": "matrix"}]).param_groups
        assert groups[0]["kind"] == "matrix"

    def test_bare_tensors_are_matrices(self):
        groups = Tiger([parameter(THETA), parameter([1.0])]).param_groups
        assert [group["kind"] for group in groups] == ["matrix"]
        named = Tiger([("up.weight", parameter(THETA))]).param_groups
        assert named[0]["kind"] == "matrix"

    def test_the_state_of_another_optimizer(self):
        x = parameter(THETA)
        other = torch.optim.AdamW([x])
        run(other, x, [G1])
        with pytest.raises(ValueError, match="was not saved by Tiger"):
            Tiger([x]).load_state_dict(other.state_dict())
