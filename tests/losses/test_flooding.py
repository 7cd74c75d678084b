"""S35: a loss that does not sink below its level."""

import copy
import pickle
import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kexue.losses.flooding import FloodingLoss, flood_gradients_, flooding
from naive import flooding as naive

LOSSES = torch.tensor([0.02, 0.4, 0.09, 0.11, 1.5], dtype=torch.float64)


def value_and_gradient(loss, level, **options):
    loss = loss.clone().requires_grad_()
    value = flooding(loss, level, **options)
    (gradient,) = torch.autograd.grad(value.sum(), loss)
    return value.detach(), gradient


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "value", "factor"),
    [(0.0, 0.2, -1), (0.05, 0.15, -1), (0.1, 0.1, 0), (0.35, 0.35, 1)],
)
def test_above_the_level_nothing_below_it_the_mirror_at_it_no_gradient(loss, value, factor):
    found, gradient = value_and_gradient(torch.tensor(loss, dtype=torch.float64), 0.1)
    assert found.item() == pytest.approx(value, abs=1e-10)
    assert gradient.item() == factor


@pytest.mark.parametrize(("loss", "factor"), [(0.0, 0), (0.1, 0), (0.35, 1)])
def test_the_hinge_has_no_gradient_at_or_below_the_level(loss, factor):
    found, gradient = value_and_gradient(torch.tensor(loss, dtype=torch.float64), 0.1, mode="hinge")
    assert (found.item(), gradient.item()) == (max(loss, 0.1), factor)


def test_the_worked_losses_give_the_worked_values():
    assert flooding(LOSSES.mean(), 0.1).item() == pytest.approx(0.424, abs=1e-10)
    assert flooding(LOSSES, 0.1, mode="sample").item() == pytest.approx(0.46, abs=1e-10)
    each = flooding(LOSSES, 0.1, mode="sample", reduction="none")
    torch.testing.assert_close(each, float64(0.18, 0.4, 0.11, 0.11, 1.5), rtol=0, atol=1e-10)


def test_above_the_level_the_value_is_the_same_to_the_last_bit():
    losses = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 0.1
    assert torch.equal(flooding(losses, 0.1, mode="sample", reduction="none"), losses)


@pytest.mark.parametrize("mode", ["batch", "hinge"])
def test_a_level_below_every_loss_has_no_effect(mode):
    torch.manual_seed(0)
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    plain = F.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1]))
    found = flooding(plain, 0.0, mode=mode)
    assert found.item() == plain.item()
    a, b = (torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (found, plain))
    assert torch.equal(a, b)


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=8),
    st.floats(0, 3),
)
def test_never_below_the_level_and_the_batch_never_above_the_samples(values, level):
    losses = torch.tensor(values, dtype=torch.float64)
    batch = flooding(losses.mean(), level).item()
    samples = flooding(losses, level, mode="sample").item()
    assert batch >= level * (1 - 1e-12)
    assert batch <= samples + 1e-12
    if losses.min() >= level or losses.max() <= level:
        assert batch == pytest.approx(samples, abs=1e-12)


@given(st.lists(st.tuples(st.floats(0, 4), st.floats(0, 1)), min_size=1, max_size=6))
def test_values_and_gradients_are_those_of_the_formula_as_written(pairs):
    losses, levels = (torch.tensor(one, dtype=torch.float64) for one in zip(*pairs, strict=True))
    value, gradient = value_and_gradient(losses, levels, mode="sample")
    assert value.item() == pytest.approx(
        naive.flood_samples(losses.tolist(), levels.tolist()), abs=1e-12
    )
    slopes = [naive.slope(a, b) / len(pairs) for a, b in pairs]
    torch.testing.assert_close(gradient.tolist(), slopes, rtol=0, atol=1e-12)
    mean = losses.mean()
    value, gradient = value_and_gradient(mean, levels[0])
    assert value.item() == pytest.approx(naive.flood(mean.item(), levels[0].item()), abs=1e-12)
    assert gradient.item() == naive.slope(mean.item(), levels[0].item())


def test_one_level_for_all_samples_is_iflood_and_the_weights_are_one_over_n():
    same, gradient = value_and_gradient(LOSSES, 0.1, mode="sample")
    each, other = value_and_gradient(
        LOSSES, torch.full((5,), 0.1, dtype=torch.float64), mode="sample"
    )
    assert torch.equal(same, each)
    assert torch.equal(gradient, other)
    assert gradient.tolist() == [-1 / 5, 1 / 5, -1 / 5, 1 / 5, 1 / 5]


def test_gradcheck_and_gradgradcheck_pass_away_from_the_level():
    raw = LOSSES.clone().requires_grad_()
    for mode in ("sample", "hinge"):

        def function(x, mode=mode):
            return flooding(x.square(), 0.1, mode=mode)

        assert torch.autograd.gradcheck(function, raw)
        assert torch.autograd.gradgradcheck(function, raw)
    assert torch.autograd.gradgradcheck(lambda x: flooding(x.square().mean(), 0.6), raw)


@pytest.mark.parametrize("mode", ["batch", "sample", "hinge"])
def test_nan_stays_nan_and_infinity_stays_infinity(mode):
    for loss in (torch.nan, torch.inf):
        given = torch.tensor(loss) if mode != "sample" else torch.tensor([loss])
        found = flooding(given, 0.1, mode=mode, reduction="sum")
        torch.testing.assert_close(found, torch.tensor(loss), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_losses_are_held_at_the_level_in_float32(dtype):
    loss = torch.tensor(0.05, dtype=dtype, requires_grad=True)
    found = flooding(loss, 0.1)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(0.2 - loss.item(), abs=1e-8)
    found.backward()
    assert loss.grad.item() == -1


def test_under_autocast_the_gradient_is_the_mirror_of_the_plain_one():
    torch.manual_seed(0)
    layer, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.randint(3, (6,))
    gradients = []
    for level in (0.0, 9.0):
        with torch.autocast("cpu", torch.bfloat16):
            loss = flooding(F.cross_entropy(layer(x), y), level)
        assert loss.dtype == torch.float32
        gradients.append(torch.autograd.grad(loss, layer.weight)[0])
    assert torch.equal(gradients[0], -gradients[1])


def test_ignored_terms_count_for_nothing_even_if_they_are_nan():
    masked = torch.tensor([0.02, torch.nan, 0.4], requires_grad=True)
    weight = torch.tensor([True, False, True])
    value = flooding(masked, 0.1, mode="sample", weight=weight)
    assert value.item() == pytest.approx((0.18 + 0.4) / 2, abs=1e-6)
    assert torch.autograd.grad(value, masked)[0].tolist() == [-0.5, 0, 0.5]
    total, count = flooding(
        masked.detach(), 0.1, mode="sample", weight=weight, reduction="sum_and_count"
    )
    assert (total.item(), count.item()) == (pytest.approx(0.58, abs=1e-6), 2)


def test_no_gradient_flows_into_the_level():
    level = torch.tensor([0.3, 0.2], requires_grad=True)
    loss = torch.tensor([0.1, 0.5], requires_grad=True)
    flooding(loss, level, mode="sample").backward()
    assert level.grad is None


def parts(losses):
    """Micro-batches of 2 and 3 terms, with their sizes."""
    return [(part.mean(), len(part)) for part in losses.split([2, 3])]


@pytest.mark.parametrize("level", [0.1, 0.3, 0.6])
def test_parts_that_share_the_reference_have_the_gradient_of_the_whole_batch(level):
    whole, gradient = value_and_gradient(LOSSES.mean(), level)
    losses = LOSSES.clone().requires_grad_()
    with torch.no_grad():
        reference = sum(mean * n for mean, n in parts(losses)) / len(losses)
    total = count = 0
    for mean, n in parts(losses):
        value, size = flooding(
            mean, level, weight=n, reference=reference, reduction="sum_and_count"
        )
        total, count = total + value, count + size
    (found,) = torch.autograd.grad(total / count, losses)
    torch.testing.assert_close(found, gradient.expand(5) / 5, rtol=0, atol=1e-15)
    assert (total / count).item() == pytest.approx(whole.item(), abs=1e-12)


def test_sums_and_counts_of_samples_add_up_to_the_mean_of_the_large_batch():
    sums = [
        flooding(part, 0.1, mode="sample", reduction="sum_and_count") for part in LOSSES.split(2)
    ]
    total, count = (sum(column) for column in zip(*sums, strict=True))
    assert (total / count).item() == pytest.approx(0.46, abs=1e-12)


@pytest.mark.parametrize("mode", ["batch", "hinge"])
@pytest.mark.parametrize("level", [0.1, 0.6])
def test_accumulated_gradients_turn_into_those_of_the_flooded_batch(mode, level):
    torch.manual_seed(0)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    losses = weight.square() * LOSSES
    losses.mean().backward()
    flood_gradients_([weight], losses.mean(), level, mode=mode)
    (expected,) = torch.autograd.grad(
        flooding((weight.square() * LOSSES).mean(), level, mode=mode), weight
    )
    torch.testing.assert_close(weight.grad, expected, rtol=0, atol=1e-15)


def test_gradients_at_the_level_vanish_and_those_of_a_nan_loss_stay():
    x = torch.tensor([1.0], requires_grad=True)
    x.sum().backward()
    flood_gradients_([x], float("nan"), 0.5)
    assert x.grad.item() == 1
    flood_gradients_([x], 0.5, 0.5)
    assert x.grad.item() == 0


# a step down and a step up

HESSIAN = float64(2.0, 0.5, 0.5, 1.0).view(2, 2)


def gradient(function, x, create_graph=False):
    if not x.requires_grad:
        x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(x), x, create_graph=create_graph)
    return found


def norm_gradient(function, x):
    """∇|∇L|², by differentiating twice."""
    x = x.clone().requires_grad_()
    return gradient(lambda y: gradient(function, y, True).square().sum(), x)


def two_flooded_steps(function, x, rate, up_first):
    """SGD on the flooded loss, whose level lies between the two losses it meets."""
    after = x - (-1 if up_first else 1) * rate * gradient(function, x)
    level = (function(x) + function(after)) / 2
    visited = []
    for _ in range(2):
        x = x - rate * gradient(lambda y: flooding(function(y), level), x)
        visited.append(x)
    return visited


def quadratic(x):
    return x @ HESSIAN @ x / 2


def test_one_step_down_and_one_up_are_the_worked_ones():
    first, second = two_flooded_steps(quadratic, float64(1, -1), 0.1, up_first=False)
    torch.testing.assert_close(first, float64(0.85, -0.95), rtol=0, atol=1e-10)
    torch.testing.assert_close(second, float64(0.9725, -1.0025), rtol=0, atol=1e-10)


@pytest.mark.parametrize("up_first", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_on_a_quadratic_they_are_one_step_on_the_squared_gradient_norm(up_first, seed):
    torch.manual_seed(seed)
    root = torch.randn(5, 5, dtype=torch.float64)
    hessian, shift = root @ root.T / 5, torch.randn(5, dtype=torch.float64)
    start, rate = torch.randn(5, dtype=torch.float64), 0.05

    def loss(x):
        return x @ hessian @ x / 2 + shift @ x + 50

    _, found = two_flooded_steps(loss, start, rate, up_first)
    expected = start - rate**2 / 2 * norm_gradient(loss, start)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def log_cosh(x):
    return x.cosh().log().sum()


def test_on_log_cosh_the_steps_and_the_errors_are_the_worked_ones():
    start, scaled = float64(0.7), []
    for rate in (0.2, 0.1, 0.05):
        first, second = two_flooded_steps(log_cosh, start, rate, up_first=False)
        predicted = start - rate**2 / 2 * norm_gradient(log_cosh, start)
        scaled.append(((second - predicted) / rate**3).item())
        if rate == 0.1:
            found = torch.cat([first, second, predicted])
            worked = float64(0.639563222288, 0.696023430543, 0.696163838450)
            torch.testing.assert_close(found, worked, rtol=0, atol=1e-12)
    assert scaled == pytest.approx([-0.14036, -0.14041, -0.14030], abs=5e-6)


@pytest.mark.parametrize("start", [0.3, 0.7, -1.2])
def test_halving_the_rate_divides_the_error_by_eight(start):
    start, errors = float64(start), []
    for rate in (0.02, 0.01, 0.005):
        _, second = two_flooded_steps(log_cosh, start, rate, up_first=False)
        predicted = start - rate**2 / 2 * norm_gradient(log_cosh, start)
        errors.append((second - predicted).norm().item())
    for large, small in pairwise(errors):
        assert 7.5 <= large / small <= 8.5


def test_two_batches_drift_along_the_norm_of_the_mean_and_one_batch_along_the_mean_norm():
    h, c, rate, zero = float64(1, 3), float64(1, -1), 0.1, float64(0.0)

    def slope(i, x):
        return h[i] * (x - c[i])

    def displacement(down, up):
        there = zero[0] - rate * slope(down, zero[0])
        return (there + rate * slope(up, there)).item()

    pairs = [displacement(a, b) for a in range(2) for b in range(2)]
    assert sum(pairs) / 4 == pytest.approx(-0.02, abs=1e-12)
    assert sum(pairs) / 4 == pytest.approx(-0.01 * (h.mean() * (-h * c).mean()).item(), abs=1e-12)
    same = [displacement(a, a) for a in range(2)]
    assert sum(same) / 2 == pytest.approx(-0.04, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_convex_full_batch_stays_at_the_level_within_rate_times_squared_gradient(seed):
    torch.manual_seed(seed)
    x, y = torch.randn(30, 4).double(), (torch.rand(30).double() > 0.5).double()
    theta, smoothness = torch.zeros(4).double(), torch.linalg.eigvalsh(x.T @ x / 120)[-1]

    def loss(w):
        return F.binary_cross_entropy_with_logits(x @ w, y)

    lowest = theta.clone()
    for _ in range(2000):
        lowest = lowest - gradient(loss, lowest) / smoothness
    level = (loss(lowest) + loss(theta)) / 2
    crossed, ratios = False, []
    for _ in range(400):
        g, value = gradient(loss, theta), loss(theta)
        ratios.append((value - level, g.square().sum()))
        crossed = crossed or bool(value < level)
        if not crossed:
            ratios.clear()
        rate = 2 / smoothness
        theta = theta - rate * gradient(lambda w: flooding(loss(w), level), theta)
    away = max(abs(gap) for gap, _ in ratios)
    assert crossed
    assert away <= rate * max(square for _, square in ratios)


# the module


def test_the_module_floods_in_training_and_tells_the_plain_loss():
    loss = FloodingLoss(nn.CrossEntropyLoss(), 5.0)
    logits, target = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    plain = F.cross_entropy(logits, target)
    assert loss(logits, target).item() == pytest.approx(10 - plain.item(), abs=1e-6)
    assert loss.raw == plain
    assert loss.eval()(logits, target) == plain


def each(x):
    return x


def test_flooding_starts_after_the_steps_it_was_told():
    loss = FloodingLoss(each, 1.0, start=2)
    assert [loss(torch.tensor(0.5)).item() for _ in range(4)] == [0.5, 0.5, 1.5, 1.5]
    loss = FloodingLoss(each, 1.0, start=1, accumulation_steps=2)
    found = [loss(torch.tensor(0.5)).item() for _ in range(4)]
    assert found == [0.5, 0.5, 1.5, 1.5]


def test_flooding_starts_once_the_mean_was_below_the_level():
    loss = FloodingLoss(each, 1.0, mode="sample", start="below")
    high, low = torch.tensor([0.5, 3.0]), torch.tensor([0.5, 0.9])
    found = [loss(x).item() for x in (high, low, low, high)]
    assert found == pytest.approx([1.75, 0.7, 1.3, 2.25])


def test_accumulated_calls_take_the_side_of_the_previous_step():
    loss = FloodingLoss(each, 1.0, accumulation_steps=2)
    calls = [(0.2, 1), (0.4, 3), (3.0, 1), (0.5, 1), (0.5, 1), (0.5, 1)]
    found = [loss(torch.tensor(value), weight=n).item() for value, n in calls]
    # first step as it is; then below (mean 0.35); then above (mean 1.75)
    assert found == pytest.approx([0.2, 0.4, -1.0, 1.5, 0.5, 0.5])


def test_a_copy_from_the_state_goes_on_as_the_original_would():
    options = {"accumulation_steps": 3, "start": 2}
    loss, rows = FloodingLoss(each, 0.5, **options), torch.rand(40)
    for row in rows[:20]:
        loss(row)
    twin = FloodingLoss(each, 0.5, **options)
    twin.load_state_dict(loss.state_dict())
    pickled = pickle.loads(pickle.dumps(loss))
    copied = copy.deepcopy(loss)
    found = [[one(row).item() for row in rows[20:]] for one in (loss, twin, pickled, copied)]
    assert found[0] == found[1] == found[2] == found[3]
    assert len(set(found[0])) > 5


def test_a_level_that_is_never_exceeded_is_remarked_once():
    loss = FloodingLoss(each, 1.0, patience=3)
    loss(torch.tensor(0.5))
    loss(torch.tensor(0.5))
    with pytest.warns(UserWarning, match="3 steps the loss was never above the flooding level 1"):
        loss(torch.tensor(0.5))
    loss(torch.tensor(0.5))  # a second warning would be an error
    fine = FloodingLoss(each, 1.0, patience=3)
    for value in (2.0, 0.5, 0.5, 0.5):
        fine(torch.tensor(value))


def test_samples_with_a_mask_go_through_the_module():
    loss = FloodingLoss(
        nn.CrossEntropyLoss(reduction="none", ignore_index=-100), 20.0, mode="sample"
    )
    torch.manual_seed(0)
    logits, target = torch.randn(4, 3), torch.tensor([0, -100, 2, -100])
    plain = F.cross_entropy(logits, target, ignore_index=-100)
    found = loss(logits, target, weight=target != -100)
    assert found.item() == pytest.approx(40 - plain.item(), abs=1e-5)
    assert loss.raw.item() == pytest.approx(plain.item(), abs=1e-6)


# what is refused


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: flooding(LOSSES, 0.1), r"mean loss of the batch, got losses of shape \(5,\)"),
        (lambda: flooding(LOSSES.mean(), 0.1, mode="sample"), "one loss per sample, got a 0-d"),
        (lambda: flooding(LOSSES, 0.1, mode="max"), "mode must be one of 'batch', 'sample'"),
        (lambda: flooding(LOSSES.mean(), 0.1, reduction="avg"), "reduction must be one of"),
        (lambda: flooding(LOSSES.mean(), float("nan")), "level holds NaN"),
        (lambda: flooding(LOSSES, LOSSES[:2], mode="sample"), r"\(2,\) does not broadcast"),
        (lambda: flooding(LOSSES.mean(), LOSSES), r"\(5,\) does not broadcast"),
        (lambda: flooding(LOSSES, 0.1, mode="sample", sync=True), "every term decides alone"),
        (lambda: FloodingLoss(each, 0.1, mode="max"), "mode must be one of"),
        (lambda: FloodingLoss(each, 0.1, start=-1), "start must be a number of steps"),
        (lambda: FloodingLoss(each, 0.1, accumulation_steps=0), "at least 1, got 0"),
        (lambda: FloodingLoss(each, 0.1)(LOSSES), r"got losses of shape \(5,\): pass"),
        (lambda: flood_gradients_([], 0.1, 0.1, mode="sample"), "one mean loss"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_negative_level_is_allowed_with_a_warning():
    with pytest.warns(UserWarning, match="below 0"):
        found = flooding(torch.tensor(-3.0), -2.0)
    assert found.item() == -1
    with pytest.warns(UserWarning, match="below 0"):
        FloodingLoss(each, -1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flooding(torch.tensor(-3.0), 0.0)
