"""Both sides of the inequality between input and parameter gradients (S15)."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.analysis.implicit_regularisation import ImplicitRegularisation
from kexue.analysis.inequality import gradient_inequality
from kexue.losses.ghost_norm import per_sample_param_grad_norm
from kexue.losses.gradient_penalty import input_gradient_norm

NORMS = ["fro", "spectral", "tight"]
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "softplus": nn.Softplus}


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def net(widths, activation=nn.Tanh, seed=0, bias=True, gain=1.0):
    layers = []
    for t, (a, b) in enumerate(pairwise(widths)):
        layer = nn.Linear(a, b, bias=bias, dtype=torch.float64)
        layer.weight.data = gain * normal(b, a, seed=seed * 100 + t) / math.sqrt(a)
        if bias:
            layer.bias.data = 0.3 * normal(b, seed=seed * 100 + 50 + t)
        layers += [layer, activation()]
    return nn.Sequential(*layers)


def first(out):
    return out[:, 0]


def quadratic(out):
    return (out.sin() * torch.arange(1, out.shape[1] + 1)).sum(1)


# --- the theorem ----------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", range(1, 9))
def test_left_is_below_right_and_the_forms_are_ordered(depth, activation):
    for seed in range(4):
        widths = torch.randint(1, 9, (depth + 1,), generator=torch.Generator().manual_seed(seed))
        model = net(widths.tolist(), ACTIVATIONS[activation], seed, gain=1.5)
        x = normal(3, int(widths[0]), seed=seed)
        found = [gradient_inequality(model, x, quadratic, norm) for norm in NORMS]
        for one in found:
            assert (one.contribution <= one.layer_gradient * (1 + 1e-9)).all()
            assert (one.left <= one.right * (1 + 1e-9)).all()
        fro, spectral, tight = (one.left for one in found)
        assert (fro <= spectral * (1 + 1e-9)).all()
        assert (spectral <= tight * (1 + 1e-9)).all()


def test_one_linear_layer_is_known_in_closed_form():
    model, x, v = net([4, 3], nn.Identity), normal(2, 4, seed=7), normal(3, seed=8)
    both = gradient_inequality(model, x, lambda out: out @ v, "tight")
    W = model[0].weight.detach()
    torch.testing.assert_close(both.input_gradient.square(), (W.T @ v).square().sum().expand(2))
    torch.testing.assert_close(both.right, v.square().sum() * (1 + x.square().sum(1)))
    assert (both.ratio < 0.999).all()
    top = torch.linalg.svd(W)[0][:, 0]
    equal = gradient_inequality(model, x, lambda out: out @ top, "tight")
    torch.testing.assert_close(equal.ratio, torch.ones(2).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_gradients_are_delta_times_h_and_of_rank_one(bias):
    model, x = net([3, 5, 4, 2], bias=bias), normal(3, seed=3)
    both = gradient_inequality(model, x, quadratic)
    params = list(model.parameters())
    grads = torch.autograd.grad(quadratic(model(x[None])).sum(), params)
    squares = [g.square().sum() for g in grads]
    per = 2 if bias else 1
    layers = torch.stack([sum(squares[k : k + per]) for k in range(0, len(grads), per)])
    torch.testing.assert_close(both.layer_gradient[0], layers, rtol=1e-12, atol=0)
    for g in grads[::per]:
        torch.testing.assert_close(torch.linalg.matrix_norm(g), torch.linalg.matrix_norm(g, 2))
    assert (both.left <= both.right).all()


def test_both_sides_agree_with_the_independent_norms():
    model, x = net([4, 6, 3]), normal(5, 4)
    both = gradient_inequality(model, x, quadratic)

    def loss(out, _):
        return quadratic(out)

    torch.testing.assert_close(both.input_gradient, input_gradient_norm(model, x, None, loss))
    right = per_sample_param_grad_norm(model, x, None, loss, squared=True)
    torch.testing.assert_close(both.right, right)


def test_jacobians_are_those_of_autograd():
    model, x = net([3, 5, 4, 2], nn.GELU), normal(3, seed=1)
    both = gradient_inequality(model, x, first, "fro")
    for t, depth in enumerate((0, 2, 4)):
        J = torch.autograd.functional.jacobian(model[:depth], x)
        torch.testing.assert_close(both.jacobian[0, t], torch.linalg.matrix_norm(J))


@pytest.mark.parametrize("norm", NORMS)
def test_scaling_f_scales_both_sides_by_its_square(norm):
    model, x = net([3, 5, 2]), normal(4, 3)
    one = gradient_inequality(model, x, quadratic, norm)
    three = gradient_inequality(model, x, lambda out: -3 * quadratic(out), norm)
    torch.testing.assert_close(three.left, 9 * one.left, rtol=1e-12, atol=0)
    torch.testing.assert_close(three.right, 9 * one.right, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_turning_the_inputs_changes_nothing(norm):
    model, turned = net([4, 5, 2]), net([4, 5, 2])
    Q = torch.linalg.qr(normal(4, 4, seed=9))[0]
    turned[0].weight.data = model[0].weight.data @ Q.T
    x = normal(3, 4)
    a = gradient_inequality(model, x, quadratic, norm)
    b = gradient_inequality(turned, x @ Q.T, quadratic, norm)
    for name in ("h", "weight", "jacobian", "coefficient", "layer_gradient", "contribution"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-11, atol=1e-14)


def test_a_sample_does_not_depend_on_its_batch():
    model, x = net([3, 5, 2]), normal(4, 3)
    batch = gradient_inequality(model, x, quadratic)
    alone = gradient_inequality(model, x[2], quadratic)
    torch.testing.assert_close(batch.left[2:3], alone.left)
    torch.testing.assert_close(batch.table(2)[-1]["ratio"], alone.table()[-1]["ratio"])


# --- where it ends --------------------------------------------------------------------------------


def test_the_gradient_of_the_mean_loss_bounds_nothing():
    """Two samples with opposite parameter gradients: the mean's is zero, the bound is not."""
    model = nn.Sequential(nn.Linear(1, 1, dtype=torch.float64))
    model[0].weight.data.fill_(2.0)
    x = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)
    both = gradient_inequality(model, x, lambda out: sign * out[:, 0])
    mean = torch.autograd.grad((sign * model(x)[:, 0]).mean(), list(model.parameters()))
    assert sum(g.square().sum() for g in mean) == 0
    assert both.left.mean() > 1.9
    assert (both.left <= both.right * (1 + 1e-12)).all()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.W, self.V = (nn.Linear(2, 2, bias=False, dtype=torch.float64) for _ in range(2))
        self.W.weight.data = -torch.eye(2, dtype=torch.float64)
        self.V.weight.data.zero_()

    def forward(self, x):
        return x + self.V(self.W(x).relu())


def test_inside_a_residual_the_layer_wise_form_fails_and_is_refused():
    model, x = Residual(), torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    value = model(x)[:, 0].sum()
    grad_x, *grads = torch.autograd.grad(value, [x, *model.parameters()])
    assert grad_x.norm() == 1
    assert all(g.abs().sum() == 0 for g in grads)  # the right side is 0, the left is not
    with pytest.raises(ValueError, match="x reaches f beside W too"):
        gradient_inequality(model, x, first)


class Mixing(nn.Module):
    """Attention and normalisation behind a dense stem."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Linear(5, 12, dtype=torch.float64)
        self.norm = nn.LayerNorm(4, dtype=torch.float64)
        self.attention = nn.Linear(4, 4, dtype=torch.float64)
        self.head = nn.Linear(12, 3, dtype=torch.float64)

    def forward(self, x):
        h = self.stem(x).view(len(x), 3, 4)
        h = h + (self.attention(h) @ h.transpose(1, 2)).softmax(-1) @ self.norm(h)
        return self.head(h.flatten(1))


def test_the_stem_bound_holds_behind_softmax_mixing_and_normalisation():
    ratios = []
    for seed in range(30):
        model = Mixing(seed)
        x = normal(1, 5, seed=seed)
        both = gradient_inequality(model, x, quadratic)
        assert both.stem
        assert both.names == ("stem",)
        grads = torch.autograd.grad(quadratic(model(x)).sum(), [model.stem.weight, model.stem.bias])
        torch.testing.assert_close(both.right[0], sum(g.square().sum() for g in grads))
        ratios.append(both.ratio.item())
    assert max(ratios) <= 1
    assert max(ratios) > 0.3


@pytest.mark.parametrize("tokens", [2, 3, 5])
def test_shared_weights_obey_the_bound_with_the_least_singular_value(tokens):
    ratios = []
    for seed in range(20):
        layer = nn.Linear(6, 4, dtype=torch.float64)
        layer.weight.data = normal(4, 6, seed=seed)
        X = normal(tokens, 6, seed=100 + seed).requires_grad_()
        mix = normal(tokens, tokens, seed=200 + seed).softmax(-1)
        value = ((mix @ layer(X)).tanh() ** 2).sum()
        grad_x, grad_w = torch.autograd.grad(value, [X, layer.weight])
        least = torch.linalg.svdvals(X)[-1]
        left = grad_x.square().sum() * least**2 / torch.linalg.matrix_norm(layer.weight, 2) ** 2
        ratios.append((left / grad_w.square().sum()).item())
    assert max(ratios) <= 1
    assert max(ratios) > 1e-3


def test_repeated_positions_make_the_shared_bound_trivial():
    X = normal(1, 6).expand(3, 6)
    assert torch.linalg.svdvals(X)[-1] < 1e-12
    model = net([6, 4])
    with pytest.raises(ValueError, match="many positions with one weight"):
        gradient_inequality(model, X[None], lambda out: out.sum((1, 2)))


def test_a_dead_network_gives_finite_zeros():
    model = net([3, 4, 2], nn.ReLU)
    for layer in model[::2]:
        layer.bias.data.fill_(-100.0)
    for norm in NORMS:
        both = gradient_inequality(model, normal(2, 3), first, norm)
        for value in vars(both).values():
            if isinstance(value, torch.Tensor):
                assert torch.isfinite(value).all()
        assert both.left.tolist() == both.right.tolist() == both.ratio.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("norm", NORMS)
def test_a_saturated_network_keeps_its_ratio_where_squares_underflow(norm):
    model = net([3, 3, 3], nn.Sigmoid)
    model[0].bias.data.fill_(-400.0)  # sigmoid' = e^-400
    both = gradient_inequality(model, normal(1, 3), first, norm)
    assert both.input_gradient.item() < 1e-160  # its square is 0
    assert both.coefficient[0, 1] == math.inf
    assert 1e-4 < (both.contribution / both.layer_gradient)[0, 1] <= 1
    assert torch.isfinite(both.left).all()


# --- the table ------------------------------------------------------------------------------------


def worked():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1), nn.Tanh()).double()
    values = ([[0.5, -1], [1, 0.25], [-0.5, 0.5]], [0.1, 0, -0.1], [[1, 0.5, -1]], [0.2])
    for p, value in zip(model.parameters(), values, strict=True):
        p.data = torch.tensor(value, dtype=torch.float64)
    return model, torch.tensor([1, 0.5], dtype=torch.float64)


def close(found, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.flatten(), expected.flatten(), rtol=0, atol=1e-12)


def test_the_worked_example():
    model, x = worked()
    both = gradient_inequality(model, x, first)
    grad = torch.autograd.functional.jacobian(model, x)
    close(grad, [0.438239443977, -0.548448035997])
    close(both.value, [0.778162001647])
    close(both.input_gradient.square(), [0.492849058446])
    close(both.layer_gradient, [0.628961292480, 0.276667791363])
    close(both.right, [0.905629083843])
    close(both.coefficient, [1.174957339250, 0.493988421944])
    close(both.contribution, [0.579076618364, 0.243461728639])
    close(both.left, [0.822538347003])
    fro = gradient_inequality(model, x, first, "fro")
    close(fro.coefficient, [0.4, 0.452854673999])
    close(fro.left, [0.420328623072])


def test_the_table_has_a_row_per_layer_and_one_for_all():
    model, x = worked()
    both = gradient_inequality(model, x, first)
    rows = both.table()
    assert [row["layer"] for row in rows] == ["0", "2", "all"]
    assert rows[0]["jacobian"] == pytest.approx(1)
    assert rows[-1]["ratio"] == pytest.approx(0.822538347003 / 0.905629083843)
    assert "all: left 0.8225, right 0.9056, ratio 0.9083" in str(both)


def test_nested_sequences_flatten_dropout_and_in_place_activations_are_covered():
    plain = net([4, 5, 3], nn.ReLU)
    nested = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(plain[0], nn.ReLU(inplace=True), nn.Dropout(0.5)),
        plain[2],
        nn.ReLU(inplace=True),
    ).eval()
    x = normal(3, 4)
    a = gradient_inequality(plain, x, quadratic)
    b = gradient_inequality(nested, x.view(3, 2, 2), quadratic)
    assert b.names == ("1.0", "2")
    torch.testing.assert_close(a.contribution, b.contribution)
    assert nested[3].inplace  # the model itself is not touched


def test_a_float32_model_is_computed_in_float64_or_as_asked():
    model, x = net([3, 4, 2]).float(), normal(2, 3)
    exact = gradient_inequality(model, x, quadratic)
    single = gradient_inequality(model, x, quadratic, dtype=torch.float32)
    assert exact.left.dtype == torch.float64
    assert single.left.dtype == torch.float32
    torch.testing.assert_close(single.left.double(), exact.left, rtol=1e-4, atol=0)
    assert next(model.parameters()).dtype == torch.float32


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(3, 3)

    def forward(self, x):
        return self.dense(self.dense(x))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.a(x) * self.b(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)), r"1 \(Dropout\) is in training mode"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), r"BatchNorm1d\) is in training mode"),
        (Twice(), "dense is used more than once"),
        (Two(), "x enters 2 dense layers of Two"),
        (nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3)), "x enters 0 dense layers"),
        (nn.Sequential(nn.Tanh()), "no parameters"),
    ],
)
def test_networks_without_a_bound_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        gradient_inequality(model, normal(2, 3).float(), quadratic)


def test_a_mean_is_refused():
    with pytest.raises(ValueError, match=r"one value per sample, \(4,\).*not hold for a mean"):
        gradient_inequality(net([3, 2]), normal(4, 3), lambda out: out.mean())
    with pytest.raises((ValueError, TypeError), match="norm"):
        gradient_inequality(net([3, 2]), normal(4, 3), first, "nuclear")


# --- implicit regularisation ----------------------------------------------------------------------


def test_the_report_follows_the_gradient_and_the_rate():
    model = net([3, 4, 2])
    groups = [{"params": model[0].parameters(), "lr": 0.4}, {"params": model[2].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    watch, expected = ImplicitRegularisation(optimizer, every=2), []
    for step in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(normal(6, 3, seed=step)), torch.zeros(6).long()).backward()
        squares = [sum(p.grad.square().sum() for p in m.parameters()) for m in (model[0], model[2])]
        expected.append((0.1 * squares[0] + 0.025 * squares[1]).item())
        optimizer.step()
    assert watch.values == pytest.approx(expected[::2])
    report = watch.report()
    assert report["steps"] == 5
    assert report["first"] == pytest.approx(expected[0])
    assert report["last"] == pytest.approx(expected[4])
    assert report["mean"] == pytest.approx(sum(expected[::2]) / 3)
    watch.remove()
    optimizer.step()
    assert watch.steps == 5


def test_small_steps_of_descent_go_where_the_penalised_flow_goes():
    """One step of rate lr lands nearer to the flow of L + (lr/4)||∇L||² than to that of L."""
    lr, fine = 0.02, 500

    def slope(w, penalty):
        w = w.detach().requires_grad_()
        loss = (w[0] ** 4 + w[0] * w[1] ** 2) / 4
        (g,) = torch.autograd.grad(loss, w, create_graph=True)
        return torch.autograd.grad(loss + penalty * g.square().sum(), w)[0]

    start = torch.tensor([1.0, 0.7], dtype=torch.float64)
    step = start - lr * slope(start, 0.0)
    ends = []
    for penalty in (0.0, lr / 4):
        w = start
        for _ in range(fine):
            w = w - lr / fine * slope(w, penalty)
        ends.append((step - w).norm().item())
    assert ends[1] < ends[0] / 20


def test_the_report_needs_steps():
    w = torch.ones(1, requires_grad=True)
    watch = ImplicitRegularisation(torch.optim.SGD([w], lr=0.1))
    with pytest.raises(ValueError, match="no step was recorded"):
        watch.report()
    with pytest.raises(ValueError, match="every must be at least 1"):
        ImplicitRegularisation(torch.optim.SGD([w], lr=0.1), every=0)
