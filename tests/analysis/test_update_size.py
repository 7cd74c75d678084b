"""What one optimizer step moves (S20): the measures, against naive twins and exact values."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.analysis.residual_weight import residual_scale
from kexue.analysis.untouched import untouched
from kexue.analysis.update_size import (
    DepthRow,
    UpdateMagnitude,
    depth_sweep,
    update_magnitude,
    update_norm,
)
from kexue.nn.residual import ScaledResidual
from kexue.optim.adafactor import AdaFactor
from kexue.optim.tiger import Tiger


def bits(tensors):
    return [t.detach().clone() for t in tensors]


def network(seed=0):
    """Dense layers, batch normalisation and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    ).double()


@pytest.fixture
def x():
    return torch.randn(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def loss_fn():
    return lambda out: F.cross_entropy(out, torch.arange(10) % 3)


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda params: torch.optim.Adam(params, lr=torch.tensor(0.01)),
    "amsgrad": lambda params: torch.optim.AdamW(params, lr=0.01, amsgrad=True),
    "adafactor": lambda params: AdaFactor(params, lr=0.01),
    "tiger": lambda params: Tiger(params, lr=0.01),
    "lbfgs": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=3),
}


def take(net, loss_fn, x, optimizer):
    """One step of training."""

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(net(x))
        loss.backward()
        return loss

    optimizer.step(closure)


def by_hand(net, loss_fn, x, optimizer_of, steps):
    """The same from copies: train, step once more, subtract."""
    net = copy.deepcopy(net)
    optimizer = optimizer_of(net.parameters())
    for _ in range(steps):
        take(net, loss_fn, x, optimizer)
    with torch.no_grad():
        before = net(x)
    take(net, loss_fn, x, optimizer)
    with torch.no_grad():
        return float((net(x) - before).square().mean().sqrt())


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_norm_is_that_of_a_step_on_a_copy(name, steps, x, loss_fn):
    net = network().eval()
    expected = by_hand(net, loss_fn, x, OPTIMIZERS[name], steps)
    optimizer = OPTIMIZERS[name](net.parameters())
    for _ in range(steps):
        take(net, loss_fn, x, optimizer)
    assert expected > 0
    assert update_norm(net, loss_fn, x, optimizer) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_to_the_bit_as_if_nothing_had_been_measured(name, x, loss_fn):
    ends = []
    for measured in (False, True):
        net = network().train()
        optimizer = OPTIMIZERS[name](net.parameters())
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        torch.manual_seed(7)
        for _ in range(4):
            if measured:
                assert update_norm(net, loss_fn, x, optimizer) > 0
                update_magnitude(net, loss_fn, x)
            take(net, loss_fn, x, optimizer)
            schedule.step()
        moments = [
            v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)
        ]
        ends.append([*net.parameters(), *net.buffers(), *moments, torch.rand(3)])
    assert len(ends[0]) == len(ends[1])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_everything_is_the_same_object_with_the_same_bits_afterwards(x, loss_fn):
    net = network().train()
    net[1].eval()
    optimizer = OPTIMIZERS["adam"](net.parameters())
    loss_fn(net(x)).backward()
    optimizer.step()
    tensors = [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters())]
    tensors += [v for s in optimizer.state.values() for v in s.values()]
    tensors.append(optimizer.param_groups[0]["lr"])
    values, state, groups = bits(tensors), optimizer.state, optimizer.param_groups
    update_norm(net, loss_fn, x, optimizer)
    after = [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters())]
    after += [v for s in optimizer.state.values() for v in s.values()]
    after.append(optimizer.param_groups[0]["lr"])
    assert all(a is b for a, b in zip(tensors, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors, values, strict=True))
    assert optimizer.state is state
    assert optimizer.param_groups is groups
    assert [m.training for m in net] == [True, False, True, True, True]


def test_an_empty_state_and_absent_gradients_stay_so(x, loss_fn):
    net = network()
    optimizer = OPTIMIZERS["adam"](net.parameters())
    update_norm(net, loss_fn, x, optimizer)
    assert len(optimizer.state) == 0
    assert all(p.grad is None for p in net.parameters())


def test_a_failing_step_is_undone_too(x):
    net = network()
    values = bits([*net.parameters(), *net.buffers()])
    optimizer = OPTIMIZERS["momentum"](net.parameters())

    def fails(*_):
        raise RuntimeError("no")

    optimizer.register_step_post_hook(fails)
    with pytest.raises(RuntimeError, match="no"):
        update_norm(net, lambda out: out.square().sum(), x, optimizer)
    assert all(map(torch.equal, [*net.parameters(), *net.buffers()], values))
    assert len(optimizer.state) == 0


def test_a_replaced_buffer_comes_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1
            return x * self.weight * self.calls

    net = Counting()
    calls = net.calls
    sgd = torch.optim.SGD(net.parameters(), lr=0.5)
    assert update_norm(net, torch.sum, torch.ones(1), sgd) == 0.5  # calls is 1 in both passes
    assert net.calls is calls
    assert net.calls == 0
    assert update_magnitude(net, torch.sum, torch.ones(1), lr=0.5).actual == -0.5
    assert net.calls is calls
    assert net.calls == 0


def test_dropout_and_batch_statistics_do_not_count(x, loss_fn):
    net = network().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    assert not torch.equal(net(x), net(x))
    assert update_norm(net, loss_fn, x, optimizer) == 0
    step = update_magnitude(net, loss_fn, x, lr=1e-9)
    assert step.actual == pytest.approx(step.first_order, rel=1e-5)


def test_both_passes_take_the_same_way_through_torchs_layers():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    assert update_norm(layer, torch.sum, x, torch.optim.SGD(layer.parameters(), lr=0.0)) == 0
    assert update_magnitude(layer, lambda out: out.square().sum(), x, lr=1e-30).actual == 0


def test_a_batch_is_a_tensor_a_tuple_or_a_mapping(x):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(6, 3, dtype=torch.float64)

        def forward(self, x, scale=1.0):
            return self.dense(x) * scale

    torch.manual_seed(0)
    net = Both()
    two = torch.tensor(2.0, dtype=torch.float64)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    plain = update_norm(net, lambda out: out.sum(), x, sgd)
    for batch in ((x, two), [x, two], {"x": x, "scale": two}):
        scaled = update_norm(net, lambda out: out.sum(), batch, sgd)
        assert scaled == pytest.approx(4 * plain, rel=1e-12)
        first = update_magnitude(net, lambda out: out.sum(), batch).first_order
        once = update_magnitude(net, lambda out: out.sum(), x).first_order
        assert first == pytest.approx(4 * once, rel=1e-12)


def test_a_hugging_face_model_is_read_by_its_logits():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = BertForSequenceClassification(config)
    batch = {"input_ids": torch.arange(12).view(2, 6), "labels": torch.tensor([0, 1])}
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    norm = update_norm(
        model, lambda out: out.loss, batch, adam, output=lambda returned: returned.logits
    )
    assert norm > 1e-4
    step = update_magnitude(model, lambda out: out.loss, batch, lr=1e-3)
    assert step.actual == pytest.approx(step.first_order, rel=0.05)
    with pytest.raises(TypeError, match="got SequenceClassifierOutput; say which one to read by"):
        update_norm(model, lambda out: out.loss, batch, adam)


def test_some_of_the_parameters_may_step(x, loss_fn):
    net = network().eval()
    head = update_norm(net, loss_fn, x, torch.optim.SGD(net[4].parameters(), lr=0.1))
    everything = update_norm(net, loss_fn, x, torch.optim.SGD(net.parameters(), lr=0.1))
    assert 0 < head < everything
    full = update_magnitude(net, loss_fn, x)
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    part = update_magnitude(net, loss_fn, x)
    assert 0 < part.squared_gradient < full.squared_gradient


def chain(N, weights, eps=None):
    """d = 1 or more: x → x + eps x W, or x → x W without eps."""
    layers = []
    for W in weights[:N]:
        layer = nn.Linear(*W.shape, bias=False, dtype=torch.float64)
        layer.weight = nn.Parameter(W.T.contiguous())
        layers.append(layer if eps is None else ScaledResidual(layer, eps))
    return nn.Sequential(*layers)


def test_the_hand_case():
    net = chain(2, [torch.ones(1, 1, dtype=torch.float64)] * 2, eps=0.5)
    one = torch.ones(1, 1, dtype=torch.float64)
    step = update_magnitude(net, torch.sum, one, lr=0.1)
    assert step.loss == 2.25
    assert step.squared_gradient == 0.75**2 + 0.75**2
    assert step.first_order == pytest.approx(-0.1125, abs=1e-15)
    assert step.actual == pytest.approx((1 + 0.5 * 0.925) ** 2 - 2.25, abs=1e-15)
    sign = update_magnitude(net, torch.sum, one, "sign", lr=0.1)
    assert sign.first_order == pytest.approx(-0.15, abs=1e-15)
    assert sign.actual == pytest.approx((1 + 0.5 * 0.9) ** 2 - 2.25, abs=1e-15)
    net(one).sum().backward()
    assert [p.grad.item() for p in net.parameters()] == [0.75, 0.75]


@pytest.mark.parametrize("step", ["sgd", "sign"])
def test_the_magnitude_is_that_of_a_step_on_a_copy(step, x, loss_fn):
    net = network().eval()
    stepped = copy.deepcopy(net)
    loss = loss_fn(stepped(x))
    loss.backward()
    squares, first = 0.0, 0.0
    with torch.no_grad():
        for p in stepped.parameters():
            change = -0.01 * (p.grad if step == "sgd" else p.grad.sign())
            squares += float(p.grad.square().sum())
            first += float((p.grad * change).sum())
            p += change
        actual = (loss_fn(stepped(x)) - loss).item()
    found = update_magnitude(net, loss_fn, x, step, 0.01)
    for mine, theirs in (
        (found.loss, loss.item()),
        (found.squared_gradient, squares),
        (found.first_order, first),
        (found.actual, actual),
    ):
        assert mine == pytest.approx(theirs, rel=1e-10)


def test_the_prediction_is_within_one_percent_for_a_small_rate(x, loss_fn):
    net = network().eval()
    errors = []
    for lr in (1e-2, 1e-3, 1e-4):
        step = update_magnitude(net, loss_fn, x, lr=lr)
        errors.append(abs(step.actual / step.first_order - 1))
    assert errors[1] < 0.01
    assert errors[2] / errors[1] == pytest.approx(0.1, rel=0.1)


def orthogonal(d, count):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        for _ in range(count)
    ]


def test_in_a_stable_plain_stack_the_change_is_proportional_to_depth():
    weights, x = orthogonal(16, 64), torch.ones(5, 16, dtype=torch.float64)
    readout = torch.linspace(-1, 1, 16, dtype=torch.float64)
    rows = depth_sweep(
        lambda N: chain(N, weights), (1, 4, 64), lambda out: (out @ readout).sum(), x
    )
    for row in rows:
        exact = row.depth * 25 * 16 * float(readout.square().sum())
        assert row.squared_gradient == pytest.approx(exact, rel=1e-10)
        assert row.first_order == pytest.approx(-0.01 * exact, rel=1e-10)


@pytest.mark.parametrize(
    ("eps_of", "shape"),
    [
        (lambda N: residual_scale(N), lambda N: 1.0),
        (lambda N: residual_scale(N, "adam"), lambda N: 1 / N),
        (lambda N: 1.0, lambda N: N),
    ],
)
def test_residual_gradients_add_up_to_n_eps_squared_times_the_amplification(eps_of, shape):
    """E Σ|g_l|² = N ε² (1 + ε²)^(N−1) |x|² |c|² for random branches and L = c·x_N, here c = 1."""
    d, draws = 16, 80
    for N in (4, 32) if eps_of(4) < 1 else (4, 8):
        eps = eps_of(N)
        x, sums = torch.ones(1, d, dtype=torch.float64), []
        for seed in range(draws):
            generator = torch.Generator().manual_seed(seed)
            weights = torch.randn(N, d, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
            step = update_magnitude(chain(N, list(weights), eps), torch.sum, x)
            sums.append(step.squared_gradient)
        measured = torch.tensor(sums) / d**2
        exact = N * eps**2 * (1 + eps**2) ** (N - 1)
        assert abs(float(measured.mean()) - exact) < 4 * float(measured.std()) / math.sqrt(draws)
        if eps < 1:
            assert shape(N) <= exact < math.e * shape(N)


def test_one_scale_for_sgd_and_a_smaller_one_for_signs():
    """The first-order change of a sign step is −lr Σ|g|, N layers of ε times a constant."""
    d, changes = 32, {}
    x = torch.randn(1, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for N in (8, 128):
        weights = torch.randn(
            N, d, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64
        ) / math.sqrt(d)
        for rule in ("sgd", "adam"):
            net = chain(N, list(weights), residual_scale(N, rule))
            change = update_magnitude(net, torch.sum, x, "sign").first_order
            changes[rule, N] = change
    assert changes["adam", 128] / changes["adam", 8] == pytest.approx(1, rel=0.15)
    assert 2.5 < changes["sgd", 128] / changes["sgd", 8] < 6  # sqrt(16), and the amplification


def test_rows_are_plain_and_go_into_a_data_frame(x):
    rows = depth_sweep(
        lambda N: nn.Sequential(*[nn.Linear(6, 6, dtype=torch.float64) for _ in range(N)]),
        (1, 2),
        lambda out: out.square().mean(),
        x,
        "sign",
        1e-3,
    )
    assert all(isinstance(row, DepthRow) and isinstance(row, UpdateMagnitude) for row in rows)
    assert list(vars(rows[0])) == ["loss", "squared_gradient", "first_order", "actual", "depth"]
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows)
    assert frame["depth"].tolist() == [1, 2]
    assert frame["actual"].tolist() == [row.actual for row in rows]


def test_the_model_is_only_read(x, loss_fn):
    net = network().train()
    loss_fn(net(x)).backward()
    tensors = [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters())]
    values, versions = bits(tensors), [t._version for t in tensors]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    update_magnitude(net, loss_fn, x)
    assert torch.equal(torch.rand(2), expected)
    assert all(map(torch.equal, tensors, values))
    assert [t._version for t in tensors] == versions


def test_tied_weights_step_once(x):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6, bias=False, dtype=torch.float64)
            self.outer = nn.Linear(6, 6, bias=False, dtype=torch.float64)
            self.outer.weight = self.inner.weight

        def forward(self, x):
            return self.outer(self.inner(x))

    torch.manual_seed(0)
    net = Tied()
    step = update_magnitude(net, lambda out: out.square().mean(), x, lr=1e-5)
    (g,) = torch.autograd.grad(net(x).square().mean(), net.inner.weight)
    assert step.squared_gradient == pytest.approx(float(g.square().sum()), rel=1e-12)
    assert step.actual == pytest.approx(step.first_order, rel=1e-3)


def test_sparse_gradients_count():
    torch.manual_seed(0)
    words = torch.tensor([[0, 2, 2]])
    sums = []
    for sparse in (False, True):
        table = nn.Embedding(5, 4, sparse=sparse, dtype=torch.float64)
        table.weight = nn.Parameter(torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4))
        sums.append(update_magnitude(table, lambda out: out.square().sum(), words))
    assert sums[0] == sums[1]


def test_autocast_changes_nothing(x, loss_fn):
    net, x = network().float().eval(), x.float()
    sgd = torch.optim.SGD(net.parameters(), lr=1e-4)
    plain = update_norm(net, loss_fn, x, sgd), update_magnitude(net, loss_fn, x, lr=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(x).dtype == torch.bfloat16
        both = update_norm(net, loss_fn, x, sgd), update_magnitude(net, loss_fn, x, lr=1e-3)
    assert both == plain
    with torch.no_grad():
        assert update_magnitude(net, loss_fn, x, lr=1e-3) == plain[1]
        assert update_norm(net, loss_fn, x, sgd) == plain[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32(dtype, x, loss_fn):
    net = network().to(dtype).eval()
    wide = copy.deepcopy(net).float()
    found = update_magnitude(net, loss_fn, x.to(dtype), lr=1e-4)
    assert found == update_magnitude(wide, loss_fn, x.to(dtype).float(), lr=1e-4)
    assert found.actual == pytest.approx(found.first_order, rel=0.02)
    assert all(p.dtype == dtype for p in net.parameters())


def test_no_overflow_where_weight_one_doubles_every_layer():
    d, N = 8, 256
    generator = torch.Generator().manual_seed(0)
    weights = list(torch.randn(N, d, d, generator=generator, dtype=torch.float64) / math.sqrt(d))
    ones = torch.ones(1, d, dtype=torch.float64)
    (row,) = depth_sweep(lambda n: chain(n, weights, 1.0), [N], torch.sum, ones)
    assert 1e30 < row.squared_gradient < math.inf
    assert math.isfinite(row.first_order)


def test_the_trial_gives_back_the_random_numbers_it_used():
    layer = nn.Linear(2, 1)
    sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with untouched(layer, sgd):
        torch.rand(100)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda net, x: update_magnitude(net, torch.sum, x, lr=0.0),
            ValueError,
            "lr must be positive and finite, got 0.0",
        ),
        (
            lambda net, x: update_magnitude(net, lambda out: out, x),
            ValueError,
            r"loss_fn must give a scalar tensor, got \(10, 3\); take the mean",
        ),
        (
            lambda net, x: update_magnitude(nn.ReLU(), torch.sum, x),
            ValueError,
            "ReLU has no trainable parameter",
        ),
        (
            lambda net, x: update_norm(
                net, torch.sum, x, torch.optim.SGD(net.parameters()), output=lambda out: out > 0
            ),
            TypeError,
            "must be a floating tensor, got torch.bool tensor; say which one to read",
        ),
        (
            lambda net, x: update_norm(
                net, torch.sum, x, torch.optim.SGD(net.parameters()), output=lambda out: out[:0]
            ),
            ValueError,
            r"the output has no element: shape \(0, 3\)",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(call, error, message, x):
    with pytest.raises(error, match=message):
        call(network(), x)


def test_an_optimizer_is_needed(x):
    from kexue.optim.wrapped import unwrapped

    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer"):
        unwrapped(nn.ReLU())


def test_a_wrapped_optimizer_is_looked_through(x, loss_fn):
    accelerate = pytest.importorskip("accelerate")
    net = network().eval()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    plain = update_norm(net, loss_fn, x, sgd)
    wrapped = accelerate.Accelerator(cpu=True).prepare_optimizer(sgd)
    assert update_norm(net, loss_fn, x, wrapped) == plain


def test_a_loss_without_a_gradient_cannot_step():
    model = nn.Linear(3, 3).requires_grad_(False)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="depends on no trainable parameter"):
        update_norm(model, torch.sum, torch.ones(2, 3), sgd)
