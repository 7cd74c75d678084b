"""AdaX: the claims of S33, one test each."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kexue.optim.adax import PRESETS, AdaX, adax_, newest_share
from kexue.tensor_loop import Loop
from naive.adax import adax as naive_adax

START = [1.0, -1.0]
GRADIENTS = [[0.5, -2.0], [0.25, 1.0], [-1.0, 0.5]]
MODES = ("inside", "outside", "unnormalised")
ULP = torch.finfo(torch.float32).eps


def parameter(values, dtype=torch.float64):
    return nn.Parameter(torch.as_tensor(values).to(dtype, copy=True))


def run(optimizer, weight, gradients):
    """The parameter after each gradient."""
    path = []
    for g in gradients:
        weight.grad = torch.as_tensor(g).to(weight.dtype, copy=True)
        optimizer.step()
        path.append(weight.detach().clone())
    return path


def draws(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["compiled loop", "torch operations"])
def path(request, monkeypatch):
    if request.param == "torch operations":
        monkeypatch.setattr(Loop, "takes", lambda *_: False)


# worked numbers


def test_worked_numbers_of_the_article():
    x = parameter(START)
    optimizer = AdaX([x], lr=0.01)
    expected = [
        [0.999000002000, -0.999000000125],
        [0.997229158738, -0.998494043389],
        [0.997788561501, -0.998327745008],
    ]
    for found, wanted in zip(run(optimizer, x, GRADIENTS), expected, strict=True):
        assert found.tolist() == pytest.approx(wanted, abs=1e-11)
    state = optimizer.state[x]
    assert state["exp_avg"].tolist() == pytest.approx([-0.037, -0.022], abs=1e-12)
    assert state["exp_avg_sq_hat"].tolist() == pytest.approx(
        [0.437475001875, 1.750124995000], abs=1e-11
    )
    assert state["step"].item() == 3


@pytest.mark.parametrize(
    ("preset", "wanted"),
    [
        ("article", [0.997788561501, -0.998327745008]),
        ("AdaX_V2", [0.997788560108, -0.998327745680]),
        ("AdaX_V1", [0.997788601266, -0.998327752722]),
    ],
)
def test_worked_numbers_of_the_presets(preset, wanted):
    x = parameter(START)
    last = run(AdaX([x], lr=0.01, **PRESETS[preset]), x, GRADIENTS)[-1]
    assert last.tolist() == pytest.approx(wanted, abs=1e-11)


def test_worked_shares_of_the_past():
    wanted = [0, 0.500024998750, 0.900044991750, 0.990049416679, 0.999941797726, 0.999999995458]
    steps = [1, 2, 10, 100, 10_000, 100_000]
    assert [1 - newest_share(t, 1e-4) for t in steps] == pytest.approx(wanted, abs=1e-12)
    assert newest_share(10**6, 1e-4) == pytest.approx(3.738721688e-48, rel=1e-9)


# claims


@pytest.mark.parametrize("eps_mode", MODES)
def test_the_normalised_recursion_is_the_articles_growing_sum(eps_mode):
    gradients = draws(1000, 5)
    options = {"lr": 0.01, "eps": 1e-6, "eps_mode": eps_mode, "weight_decay": 0.1}
    x = parameter(draws(5, seed=1))
    twin = list(naive_adax(x.tolist(), gradients.tolist(), **options))
    optimizer = AdaX([x], **options)
    path = run(optimizer, x, gradients)
    for t in (1, 2, 10, 100, 1000):
        assert path[t - 1].tolist() == pytest.approx(twin[t - 1][0], rel=1e-9), t
    _, m, mean = twin[-1]
    assert optimizer.state[x]["exp_avg"].tolist() == pytest.approx(m, rel=1e-9)
    assert optimizer.state[x]["exp_avg_sq_hat"].tolist() == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("eps_mode", MODES)
def test_the_first_step_is_a_tenth_of_lr_against_the_sign(path, eps_mode):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 4 * ULP)):
        g = torch.tensor([1e-9, -3.0, 1e9, 0.0], dtype=dtype)
        x = parameter(torch.zeros(4), dtype)
        [found] = run(AdaX([x], lr=0.5, eps=0.0, eps_mode=eps_mode), x, [g])
        torch.testing.assert_close(found, -0.05 * g.sign(), rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_constant_size_are_their_own_scale_at_every_step(path, dtype):
    size = draws(6, dtype=dtype).abs() + 0.1
    x = parameter(torch.zeros(6), dtype)
    optimizer = AdaX([x])
    signs = draws(50, 6, seed=1, dtype=dtype).sign()
    for sign in signs:
        run(optimizer, x, [sign * size])
        torch.testing.assert_close(
            optimizer.state[x]["exp_avg_sq_hat"],
            size * size,
            rtol=2 * torch.finfo(dtype).eps,
            atol=0,
        )


@pytest.mark.parametrize("beta2", [1e-12, 1e-4, 0.1, 0.5])
def test_the_scale_stays_between_the_smallest_and_the_largest_square(path, beta2):
    for dtype in (torch.float32, torch.float64):
        gradients = draws(200, 8, dtype=dtype)
        x = parameter(torch.zeros(8), dtype)
        optimizer = AdaX([x], betas=(0.9, beta2))
        room = 4 * torch.finfo(dtype).eps
        for t, g in enumerate(gradients, start=1):
            run(optimizer, x, [g])
            squares, v = gradients[:t] ** 2, optimizer.state[x]["exp_avg_sq_hat"]
            assert (v >= squares.amin(0) * (1 - room)).all()
            assert (v <= squares.amax(0) * (1 + room)).all()


def test_with_vanishing_beta2_the_scale_is_the_plain_mean_of_all_squares():
    gradients = draws(300, 4)
    x = parameter(torch.zeros(4))
    optimizer = AdaX([x], betas=(0.9, 1e-12))
    run(optimizer, x, gradients)
    mean = gradients.square().mean(0)
    torch.testing.assert_close(optimizer.state[x]["exp_avg_sq_hat"], mean, rtol=1e-9, atol=0)


@pytest.mark.parametrize("beta2", [1e-4, 0.01, 0.3])
def test_the_weights_of_the_squares_sum_to_one_and_older_ones_weigh_more(beta2):
    """Read off the optimizer: v after a single gradient of 1 at step i is the weight of step i."""
    steps = 60
    x = parameter(torch.zeros(steps))  # weight i gets its only gradient at step i
    optimizer = AdaX([x], betas=(0.9, beta2))
    run(optimizer, x, torch.eye(steps))
    weights = optimizer.state[x]["exp_avg_sq_hat"]
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    ratios = weights[:-1] / weights[1:]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 1 + beta2), rtol=1e-10, atol=0)


@pytest.mark.parametrize("t", [2 * 10**6, 10**9])
@pytest.mark.parametrize("eps_mode", MODES)
def test_after_millions_of_steps_all_is_finite_and_the_scale_rests(path, t, eps_mode):
    x = parameter(torch.ones(4), torch.float32)
    optimizer = AdaX([x], eps_mode=eps_mode)
    run(optimizer, x, [[1.0, -1e-3, 1e3, 0.0]])
    optimizer.state[x]["step"].fill_(t - 1)
    before = optimizer.state[x]["exp_avg_sq_hat"].clone()
    run(optimizer, x, [[1e10, 1.0, -1.0, 0.0]])
    assert optimizer.state[x]["step"].item() == t
    assert torch.equal(optimizer.state[x]["exp_avg_sq_hat"], before)
    assert x.isfinite().all()
    assert x[3] == 1


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e5, 1e8])
def test_without_eps_the_size_of_the_loss_does_not_matter(path, scale):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        gradients = draws(30, 6, dtype=dtype)
        ends = []
        for factor in (1.0, scale):
            x = parameter(draws(6, seed=1), dtype)
            ends.append(run(AdaX([x], lr=0.01, eps=0.0), x, factor * gradients)[-1])
        torch.testing.assert_close(ends[1], ends[0], rtol=tolerance, atol=tolerance)


def test_in_the_end_it_is_sgd_with_momentum_and_one_fixed_scale_per_weight():
    x = parameter(draws(5))
    optimizer = AdaX([x], lr=0.01)
    run(optimizer, x, draws(20, 5, seed=1))
    optimizer.state[x]["step"].fill_(200_000)
    scale = (optimizer.state[x]["exp_avg_sq_hat"] + 1e-6).sqrt()
    m, y = optimizer.state[x]["exp_avg"].clone(), x.detach().clone()
    for g in draws(100, 5, seed=2):
        run(optimizer, x, [g])
        m = 0.9 * m + 0.1 * g
        y -= 0.01 / scale * m
    torch.testing.assert_close(x.detach(), y, rtol=1e-12, atol=1e-12)


# the two ways of computing


@pytest.mark.parametrize("eps_mode", MODES)
@pytest.mark.parametrize("t", [1, 2, 1000, 10**6])
def test_compiled_loop_torch_and_double_agree_within_a_few_ulp(monkeypatch, eps_mode, t):
    options = {"lr": 0.01, "betas": (0.9, 1e-4), "eps": 1e-6, "eps_mode": eps_mode}
    results = []
    for dtype, native in ((torch.float32, True), (torch.float32, False), (torch.float64, True)):
        x, g, m, v = (draws(70_001, seed=i, dtype=torch.float32).to(dtype) for i in range(4))
        with monkeypatch.context() as patch:
            if not native:
                patch.setattr(Loop, "takes", lambda *_: False)
            v = v.square() if t > 1 else v * 0
            adax_(x, g, m, v, t, weight_decay=0.1, **options)
        results.append([x.double(), m.double(), v.double()])
    for found in results[:2]:
        for one, exact, size in zip(found, results[2], (5.0, 5.0, 20.0), strict=True):
            # x moves by lr·m/√v, which is large where v is small
            assert ((one - exact).abs() <= 8 * ULP * (size + exact.abs())).all()


@pytest.mark.parametrize("eps_mode", MODES)
def test_a_step_number_on_a_device_gives_what_a_number_on_the_host_gives(eps_mode):
    options = {"lr": 0.01, "betas": (0.9, 1e-4), "eps": 1e-6, "eps_mode": eps_mode}
    for t in (1, 2, 1000, 115_000, 116_000, 10**7, 10**9):
        ends = []
        for step in (t, torch.tensor(t)):
            tensors = [draws(9, seed=i).square() for i in range(4)]
            adax_(*tensors, step, **options)
            ends.append(torch.stack(tensors))
        torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=0)


def test_the_share_as_a_tensor_is_the_share_as_a_number():
    for t in (1, 2, 10, 10**4, 10**6, 7 * 10**6, 10**8, 10**12):
        found = newest_share(torch.tensor(t), 1e-4)
        assert found.dtype == torch.float64
        assert found.item() == pytest.approx(newest_share(t, 1e-4), rel=1e-10)


def test_all_squares_after_the_scale_is_frozen_would_have_weighed_a_hundred_thousandth():
    first = next(t for t in range(115_000, 116_000) if newest_share(t, 1e-4) < 1e-9)
    assert first == 115_136
    later = sum(newest_share(t, 1e-4) for t in range(first, first + 200_000))
    assert later == pytest.approx(1e-5, rel=1e-3)


def test_a_frozen_float32_scale_is_the_one_that_would_have_been_kept():
    """Squares up to 25 times as large no longer reach its last bit."""
    v = draws(1000, dtype=torch.float32).square()
    squares = 25 * torch.rand(1000, generator=torch.Generator().manual_seed(1)) * v
    assert torch.equal(v.lerp(squares, newest_share(115_136, 1e-4)), v)


# numbers at the edge


def test_squares_beyond_the_range_do_not_poison_the_state(path):
    x = parameter(torch.ones(3), torch.float32)
    optimizer = AdaX([x], lr=0.1)
    run(optimizer, x, [[1e30, -1e25, 1.0], [1.0, 1e30, 1.0], [-1e20, 0.0, 1.0]])
    for kept in optimizer.state[x].values():
        assert kept.isfinite().all()
    assert x.isfinite().all()


@pytest.mark.parametrize("eps_mode", MODES)
def test_a_weight_that_never_had_a_gradient_never_moves(path, eps_mode):
    x = parameter(torch.ones(3), torch.float32)
    optimizer = AdaX([x], eps=0.0, eps_mode=eps_mode)
    ends = run(optimizer, x, [[0.0, 1.0, 0.0]] * 5)
    assert ends[-1].tolist()[::2] == [1, 1]
    assert ends[-1][1] < 1


def test_half_parameters_keep_their_state_in_float32():
    for dtype in (torch.bfloat16, torch.float16):
        x = parameter(torch.ones(3), dtype)
        optimizer = AdaX([x], lr=0.1)
        run(optimizer, x, [[1e-4, 1.0, -1.0]] * 3)
        kept = optimizer.state[x]
        assert kept["exp_avg"].dtype == kept["exp_avg_sq_hat"].dtype == torch.float32
        assert kept["exp_avg_sq_hat"][0] > 0  # a square of 1e-8 would be zero in float16
        exact = parameter(torch.ones(3), torch.float32)
        wanted = run(
            AdaX([exact], lr=0.1), exact, [[float(torch.tensor(1e-4, dtype=dtype)), 1.0, -1.0]]
        )
        again = parameter(torch.ones(3), dtype)
        [found] = run(AdaX([again], lr=0.1), again, [[1e-4, 1.0, -1.0]])
        assert torch.equal(found, wanted[0].to(dtype))


# tensors that start at different times


def test_a_parameter_that_joins_late_starts_at_its_own_first_step():
    early, late, alone = (parameter(torch.ones(2)) for _ in range(3))
    optimizer = AdaX([early, late], lr=0.1)
    run(optimizer, early, draws(50, 2))
    early.grad = None
    found = run(optimizer, late, draws(10, 2, seed=1))
    wanted = run(AdaX([alone], lr=0.1), alone, draws(10, 2, seed=1))
    assert torch.equal(torch.stack(found), torch.stack(wanted))
    assert optimizer.state[early]["step"] == 50
    assert optimizer.state[late]["step"] == 10


def test_a_settled_scale_never_adapts_until_it_is_reset():
    x = parameter(torch.zeros(2))
    optimizer = AdaX([x], lr=0.1)
    run(optimizer, x, torch.ones(10, 2))
    optimizer.state[x]["step"].fill_(200_000)
    [*_, before, after] = run(optimizer, x, 1e-3 * torch.ones(200, 2))
    assert (after - before).abs().max() < 1.01e-4  # a thousandth of lr, for ever
    optimizer.reset_second_moment()
    [*_, before, after] = run(optimizer, x, 1e-2 * torch.ones(50, 2))
    assert (after - before).abs().min() > 0.09


def test_after_a_reset_all_is_as_with_a_new_optimizer():
    x, fresh, other = (parameter(draws(3)) for _ in range(3))
    optimizer = AdaX([x, other], lr=0.1)
    other.grad = torch.ones_like(other)
    run(optimizer, x, draws(20, 3, seed=1))
    kept = {name: tensor.clone() for name, tensor in optimizer.state[other].items()}
    fresh.data.copy_(x)
    optimizer.reset_second_moment([x])
    for name, tensor in optimizer.state[other].items():
        assert torch.equal(tensor, kept[name])
    gradients = 1e-6 * draws(5, 3, seed=2)
    found, wanted = run(optimizer, x, gradients), run(AdaX([fresh], lr=0.1), fresh, gradients)
    assert torch.equal(torch.stack(found), torch.stack(wanted))


def test_a_single_tensor_is_reset_and_what_the_optimizer_does_not_hold_is_refused():
    x, other = parameter(draws(3)), parameter(draws(3))
    optimizer = AdaX([x], lr=0.1)
    run(optimizer, x, draws(5, 3, seed=1))
    for wrong in ([other], other, []):
        with pytest.raises(ValueError, match="none of these is a parameter of this optimizer"):
            optimizer.reset_second_moment(wrong)
    assert optimizer.state[x]["step"] == 5
    optimizer.reset_second_moment(x)
    assert optimizer.state[x]["step"] == 0


def test_weight_decay_is_decoupled_from_the_scale():
    x, y = parameter(draws(3)), parameter(draws(3))
    [plain] = run(AdaX([x], lr=0.1), x, [[1.0, 2.0, 3.0]])
    [decayed] = run(AdaX([y], lr=0.1, weight_decay=0.5), y, [[1.0, 2.0, 3.0]])
    torch.testing.assert_close(decayed, plain - 0.05 * draws(3), rtol=0, atol=1e-15)


# options that are refused


@pytest.mark.parametrize("beta2", [0.999, 0.99, 0.51])
def test_the_beta2_of_adam_is_explained(beta2):
    with pytest.raises(ValueError, match=rf"got {beta2}; in AdaX it is not Adam's share.* 1e-4"):
        AdaX([parameter(START)], betas=(0.9, beta2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": (0.9, 0.0)}, r"betas\[1\] must lie in \(0, 0.5\], got 0.0"),
        ({"betas": (0.9, -1e-4)}, r"betas\[1\] .* got -0.0001"),
        ({"betas": (0.9, math.nan)}, r"betas\[1\] .* got nan"),
        ({"betas": (1.0, 1e-4)}, r"betas\[0\] must lie in \[0, 1\), got 1.0"),
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"eps": -1e-6}, "eps must not be negative, got -1e-06"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
        ({"eps_mode": "below"}, "eps_mode must be one of inside, outside, unnormalised.*'below'"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AdaX([parameter(START)], **options)


# what the article warns of, and what we do instead


def test_the_published_form_leaves_float32_where_ours_does_not():
    largest = float(np.finfo(np.float32).max)
    assert 1.0001**887_272 < largest < 1.0001**887_273
    bfloat16 = torch.tensor(1.0, dtype=torch.bfloat16) + 1e-4
    assert bfloat16 - 1 == 0  # what their code divides by
    with pytest.raises(OverflowError):
        math.expm1(710)
    assert newest_share(10**7, 1e-4) == 0.0


def test_a_burst_of_gradients_moves_the_scale_early_but_not_late():
    changes = []
    for t in (100, 100_000):
        x = parameter(torch.zeros(1))
        optimizer = AdaX([x])
        run(optimizer, x, [[1.0]])
        optimizer.state[x]["step"].fill_(t)
        run(optimizer, x, [[10.0]] * 20)
        changes.append(optimizer.state[x]["exp_avg_sq_hat"].item() - 1)
    assert changes[0] > 10
    assert changes[1] < 1e-4
