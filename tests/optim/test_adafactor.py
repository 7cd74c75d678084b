"""AdaFactor: the claims of S32, one test each."""

import copy
import io
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from transformers.optimization import Adafactor as HuggingFace

from kexue.native import native_library
from kexue.optim import adafactor as module
from kexue.optim.adafactor import AdaFactor, adafactor_, fresh_share, relative_step
from kexue.optim.adafactor_loop import as_matrices
from kexue.optim.adafactor_state import factor_shapes
from kexue.optim.own_step import OwnStep
from kexue.tensor_loop import Loop
from naive.adafactor import NaiveAdaFactor

X = [[0.5, -0.2, 0.1], [0.3, 0.4, -0.6]]
G1, G2 = [[0.1, -0.3, 0.2], [0.05, 0.4, -0.1]], [[-0.2, 0.1, 0.3], [0.6, -0.1, 0.2]]
FACTORED, WHOLE = {"min_dim_size_to_factor": 0}, {"min_dim_size_to_factor": math.inf}
BOTH = pytest.mark.parametrize("kept", [FACTORED, WHOLE], ids=["factored", "whole"])


@pytest.fixture(params=["compiled loop", "torch operations"])
def path(request, monkeypatch):
    """Both ways through float32 on a CPU; without a compiler they are the same."""
    if request.param == "torch operations":
        monkeypatch.setattr(Loop, "takes", lambda self, *tensors: False)
    return request.param


def draws(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def parameter(values, dtype=torch.float64):
    return nn.Parameter(torch.as_tensor(values, dtype=dtype).detach().clone())


def train(x, gradients, **options):
    """The parameter after each gradient, and the optimizer."""
    x = parameter(x, x.dtype) if isinstance(x, torch.Tensor) else parameter(x)
    optimizer, values = AdaFactor([x], **options), []
    for g in gradients:
        x.grad = torch.as_tensor(g, dtype=x.dtype).clone()
        optimizer.step()
        values.append(x.detach().clone())
    return values, optimizer


def kept_by(optimizer):
    return next(iter(optimizer.state.values()))


def second_moment(state):
    row, col = state["row"], state["col"]
    axis = next(i for i, (r, c) in enumerate(zip(row.shape, col.shape, strict=True)) if r > c)
    return row * col / row.mean(axis, keepdim=True)


def step_of(g, state, fresh=1.0, d=1.0):
    """Û of one gradient: the step of a parameter of zeros, unscaled."""
    x = torch.zeros_like(g)
    adafactor_(x, g, state, fresh=fresh, rate=1.0, clip_threshold=d, scale_parameter=False)
    return -x


def clean(x, threshold=0.0):
    shapes = factor_shapes(x.shape, "largest", threshold)
    if shapes is None:
        return {"v": torch.zeros_like(x)}
    return {"row": x.new_zeros(shapes[0]), "col": x.new_zeros(shapes[1])}


# worked numbers


def close(values, wanted):
    torch.testing.assert_close(
        values, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=5.1e-13
    )


def test_two_factored_steps_are_the_worked_ones():
    (first, second), optimizer = train(X, [G1, G2], lr=0.01, min_dim_size_to_factor=2)
    close(
        first,
        [
            [0.494904671417, -0.196581949676, 0.094904671417],
            [0.297704846861, 0.395894305250, -0.597704846861],
        ],
    )
    close(
        second,
        [
            [0.497588763725, -0.198476912833, 0.088602930542],
            [0.292283986855, 0.397170010257, -0.600533103216],
        ],
    )
    close(kept_by(optimizer)["row"], [[0.046666666667], [0.102969309885]])
    close(kept_by(optimizer)["col"], [[0.117530153140, 0.058949844588, 0.047973967100]])


def test_two_steps_without_factors_are_the_worked_ones():
    (_, second), _ = train(X, [G1, G2], lr=0.01)
    close(
        second,
        [
            [0.500655300152, -0.197894109641, 0.091809483433],
            [0.291164938253, 0.397486948519, -0.600655300152],
        ],
    )


def test_two_steps_with_momentum_are_the_worked_ones():
    (_, second), _ = train(X, [G1, G2], lr=0.01, beta1=0.9, min_dim_size_to_factor=2)
    close(
        second,
        [
            [0.499302661254, -0.199541722852, 0.098397418592],
            [0.299017986585, 0.399348736315, -0.599849011589],
        ],
    )


def test_the_growing_beta2_has_the_worked_values():
    wanted = {1: 0.0, 2: 0.425650822501, 3: 0.584756353461, 10: 0.841510680754}
    wanted |= {100: 0.974881135685, 1000: 0.996018928294}
    for t, beta in wanted.items():
        assert 1 - fresh_share(torch.tensor(t).double()).item() == pytest.approx(beta, abs=5e-13)


# the formula against its twin


CASES = [
    ((6, 5), (0, 1), {}),
    ((5, 6), (1, 0), {"beta1": 0.9}),
    ((4, 4), (1, 0), {"weight_decay": 0.1}),
    ((6, 5, 1, 1), (0, 1), {"beta1": 0.5, "weight_decay": 0.2}),
    ((2, 7, 3), (1, 2), {"scale_parameter": False}),
    ((7, 6, 2, 3), (0, 1), {"clip_threshold": 0.3}),
    ((2, 3, 4, 5), (3, 2), {"eps": (0.1, 0.5)}),
    ((6, 5), None, {"beta1": 0.9, "weight_decay": 0.1}),
    ((40,), None, {"clip_threshold": 0.5}),
    ((), None, {}),
]


def twin(x, axes, options):
    names = {"beta1": "beta1", "eps": "eps", "clip_threshold": "d"}
    names |= {"scale_parameter": "scaled", "weight_decay": "decay"}
    return NaiveAdaFactor(x.numpy(), axes, **{names[k]: v for k, v in options.items()})


@pytest.mark.parametrize(("shape", "axes", "options"), CASES)
def test_it_is_the_formula_entry_by_entry(shape, axes, options):
    gradients = [draws(*shape, seed=t) * 10.0 ** (t - 3) for t in range(1, 6)]
    naive = twin(draws(*shape), axes, options)
    kept = WHOLE if axes is None else FACTORED
    values, _ = train(draws(*shape), gradients, lr=0.1, **options, **kept)
    for t, (g, value) in enumerate(zip(gradients, values, strict=True), start=1):
        wanted = naive.step(g.numpy(), 0.1, 1 - t**-0.8)
        np.testing.assert_allclose(value.numpy(), wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("shape", "axes", "options"), CASES)
def test_float32_is_the_formula_in_both_ways(path, shape, axes, options):
    gradients = [draws(*shape, seed=t) * 10.0 ** (t - 3) for t in range(1, 6)]
    kept = WHOLE if axes is None else FACTORED
    exact, _ = train(draws(*shape), gradients, lr=0.1, **options, **kept)
    single, _ = train(draws(*shape).float(), gradients, lr=0.1, **options, **kept)
    torch.testing.assert_close(single[-1].double(), exact[-1], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shape", [(300, 517), (1100, 131), (2, 129, 4200), (70001,)])
@pytest.mark.parametrize("options", [{}, {"beta1": 0.9, "weight_decay": 0.1}])
def test_large_tensors_are_no_less_exact(path, shape, options):
    gradients = [draws(*shape, seed=t) for t in range(1, 4)]
    exact, _ = train(draws(*shape), gradients, lr=0.1, **options)
    single, optimizer = train(draws(*shape).float(), gradients, lr=0.1, **options)
    assert ("row" in kept_by(optimizer)) == (len(shape) > 1)
    few = 3e-6 if path == "compiled loop" else 1e-5  # sums in doubles, or torch's in floats
    torch.testing.assert_close(single[-1].double(), exact[-1], rtol=1e-6, atol=few)


@BOTH
def test_the_number_of_threads_changes_no_bit(kept):
    library = native_library(Path(module.__file__).parent)
    use = getattr(library, "omp_set_num_threads", lambda threads: None)
    results = []
    for threads in (1, 2, 5):
        use(threads)
        results.append(train(draws(2100, 131).float(), [draws(2100, 131)] * 2, **kept)[0][-1])
    use(1)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# properties


@BOTH
@pytest.mark.parametrize("c", [1e-8, 1e-4, 1e4, 1e8])
def test_scaling_all_gradients_changes_nothing(path, kept, c):
    gradients = [draws(6, 5, seed=t).float() for t in range(1, 6)]
    plain, _ = train(draws(6, 5).float(), gradients, lr=0.1, **kept)
    scaled, _ = train(draws(6, 5).float(), [c * g for g in gradients], lr=0.1, **kept)
    torch.testing.assert_close(scaled[-1], plain[-1], rtol=1e-5, atol=1e-6)


def test_scaling_all_gradients_changes_the_steps_of_torchs_class():
    moved = []
    for c in (1.0, 1e-8):
        x = parameter(draws(6, 5).float(), torch.float32)
        optimizer = torch.optim.Adafactor([x], lr=0.1)
        x.grad = c * draws(6, 5, seed=1).float()
        optimizer.step()
        moved.append((x.detach() - draws(6, 5).float()).norm().item())
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize("size", [1e-10, 1e-3, 1.0, 1e12])
def test_the_first_step_without_factors_is_the_sign(size):
    g = size * torch.tensor([3.0, -0.5, 0.0, 1e-2], dtype=torch.float64)
    torch.testing.assert_close(step_of(g, clean(g)), g.sign(), rtol=1e-6, atol=0)


def test_factors_lose_nothing_where_the_squares_have_rank_one():
    a, b = draws(6, 1).abs() + 0.1, draws(1, 5, seed=1).abs() + 0.1
    gradients = [a * b * draws(6, 5, seed=t).sign() for t in range(2, 7)]
    factored, optimizer = train(draws(6, 5), gradients, lr=0.1, **FACTORED)
    whole, _ = train(draws(6, 5), gradients, lr=0.1, **WHOLE)
    torch.testing.assert_close(factored[-1], whole[-1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(second_moment(kept_by(optimizer)), (a * b) ** 2)


def test_the_factored_moment_has_the_row_and_column_means_of_the_whole_one():
    gradients = [draws(5, 6, seed=t) for t in range(1, 5)]
    _, optimizer = train(draws(5, 6), gradients, **FACTORED)
    _, other = train(draws(5, 6), gradients, **WHOLE)
    state, v, close = kept_by(optimizer), kept_by(other)["v"], torch.testing.assert_close
    estimate = second_moment(state)
    for axis in (0, 1):
        close(estimate.mean(axis), v.mean(axis))
    close(estimate.mean(1, keepdim=True), state["row"])
    close(state["row"].mean(), state["col"].mean())
    close(estimate.mean(), state["row"].mean())


@BOTH
def test_a_step_is_no_longer_than_d_and_a_short_one_stays(path, kept):
    size = 0.0 if kept is FACTORED else math.inf
    for seed in range(5):
        g = draws(8, 9, seed=seed).float()
        state = clean(g, size)
        step_of(g, state)
        free = step_of(3 * g, copy.deepcopy(state), fresh=0.1, d=1e9)
        rms = free.square().mean().sqrt().item()
        for d in (0.5, rms / 2, 0.99 * rms):
            short = step_of(3 * g, copy.deepcopy(state), fresh=0.1, d=d)
            assert short.square().mean().sqrt().item() == pytest.approx(min(d, rms), rel=1e-5)
        same = step_of(3 * g, copy.deepcopy(state), fresh=0.1, d=1.01 * rms)
        torch.testing.assert_close(same, free, rtol=1e-6, atol=1e-7)


@BOTH
def test_no_step_is_longer_than_the_learning_rate_times_the_scale(kept):
    x, floor, d = 1e-2 * draws(6, 5), 1e-3, 0.8
    gradients = [10.0 ** (3 * t) * draws(6, 5, seed=t) for t in range(6)]
    values, _ = train(x, gradients, lr=0.5, clip_threshold=d, **kept)
    for old, new in zip([x, *values], values, strict=False):
        scale = max(floor, old.square().mean().sqrt().item())
        assert (new - old).norm() / math.sqrt(30) <= 0.5 * scale * d * (1 + 1e-12)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (4, 4)])
def test_the_transposed_matrix_has_the_transposed_trajectory(path, shape, beta1):
    gradients = [draws(*shape, seed=t).float() for t in range(1, 6)]
    options = {"lr": 0.1, "beta1": beta1, **FACTORED}
    straight, _ = train(draws(*shape).float(), gradients, **options)
    turned, _ = train(draws(*shape).float().T, [g.T for g in gradients], **options)
    torch.testing.assert_close(turned[-1], straight[-1].T, rtol=1e-5, atol=1e-6)


def test_a_pointwise_kernel_is_a_matrix(path):
    gradients = [draws(6, 5, seed=t).float() for t in range(1, 6)]
    matrix, _ = train(draws(6, 5).float(), gradients, lr=0.1, **FACTORED)
    kernel, _ = train(
        draws(6, 5).float().view(6, 5, 1, 1),
        [g.view(6, 5, 1, 1) for g in gradients],
        lr=0.1,
        **FACTORED,
    )
    torch.testing.assert_close(kernel[-1].view(6, 5), matrix[-1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e8, 1e15])
def test_a_row_without_gradient_stays_where_it_is(path, size):
    gradients = [size * draws(6, 5, seed=t).float() for t in range(1, 4)]
    for g in gradients:
        g[2] = 0
    values, _ = train(draws(6, 5).float(), gradients, lr=0.1, **FACTORED)
    assert torch.equal(values[-1][2], draws(6, 5).float()[2])
    assert values[-1].isfinite().all()
    assert (values[-1][3] != draws(6, 5).float()[3]).all()


def test_such_a_row_is_lost_to_nan_elsewhere():
    x = parameter(draws(6, 5).float(), torch.float32)
    x.grad = 1e8 * draws(6, 5, seed=1).float()
    x.grad[2] = 0
    HuggingFace([x], lr=0.1, relative_step=False, scale_parameter=False).step()
    assert x[2].isnan().all()


@BOTH
def test_a_gradient_of_zeros_moves_nothing(path, kept):
    values, _ = train(draws(6, 5).float(), [torch.zeros(6, 5)] * 2, lr=0.1, **kept)
    assert torch.equal(values[-1], draws(6, 5).float())


def test_zeros_are_not_stuck(path):
    values, _ = train(torch.zeros(6, 5), [draws(6, 5)], lr=0.1, **WHOLE)
    torch.testing.assert_close(values[0].abs(), torch.full((6, 5), 1e-4))


def test_below_the_threshold_nothing_is_factored():
    gradients = [draws(6, 5, seed=t) for t in range(1, 4)]
    below, _ = train(draws(6, 5), gradients, min_dim_size_to_factor=6)
    never, _ = train(draws(6, 5), gradients, **WHOLE)
    above, _ = train(draws(6, 5), gradients, min_dim_size_to_factor=5)
    assert torch.equal(below[-1], never[-1])
    assert not torch.equal(above[-1], never[-1])


@pytest.mark.parametrize("options", [{}, {"c": 0.5}, {"c": 1.0}, {"beta2": 0.9}, {"beta2": 0.999}])
def test_the_weights_of_all_past_squares_sum_to_one(options):
    weights = []
    for t in range(1, 200):
        fresh = fresh_share(torch.tensor(t).double(), **options).item()
        weights = [w * (1 - fresh) for w in weights] + [fresh]
        assert sum(weights) == pytest.approx(1, abs=1e-12)
    if options.get("c") == 1.0:  # the plain mean
        assert weights == pytest.approx([1 / 199] * 199)


def test_a_constant_beta2_is_corrected_like_adams_and_the_authors_is_not():
    g = draws(6, 5, seed=1)
    v = torch.zeros(6, 5, dtype=torch.float64)
    gradients = [draws(6, 5, seed=t) for t in range(1, 5)]
    _, corrected = train(draws(6, 5), gradients, beta2=0.9, **WHOLE)
    _, raw = train(draws(6, 5), gradients, beta2=0.9, bias_correction=False, **WHOLE)
    for g in gradients:
        v = 0.9 * v + 0.1 * (g**2 + 1e-30)
    torch.testing.assert_close(kept_by(raw)["v"], v, rtol=1e-12, atol=0)
    torch.testing.assert_close(kept_by(corrected)["v"], v / (1 - 0.9**4), rtol=1e-12, atol=0)


def test_without_a_learning_rate_the_steps_are_the_papers():
    gradients = [draws(6, 5, seed=t) for t in range(1, 4)]
    values, _ = train(draws(6, 5), gradients, lr=None)
    wanted, _ = train(draws(6, 5), gradients, lr=1e-2)
    assert torch.equal(values[-1], wanted[-1])
    values, _ = train(draws(6, 5), gradients, lr=None, scale_parameter=False)
    wanted, _ = train(draws(6, 5), gradients, lr=5e-4, scale_parameter=False)
    assert torch.equal(values[-1], wanted[-1])


def test_relative_steps_are_constant_up_to_10000_and_warm_up_linearly():
    t = torch.tensor([1.0, 100.0, 10_000.0, 40_000.0, 1e6], dtype=torch.float64)
    assert relative_step(t).tolist() == pytest.approx([1e-2, 1e-2, 1e-2, 5e-3, 1e-3])
    assert relative_step(t, True).tolist() == pytest.approx([1e-6, 1e-4, 1e-2, 5e-3, 1e-3])
    values, _ = train(draws(6, 5), [draws(6, 5, seed=1)], lr=None, warmup_init=True)
    wanted, _ = train(draws(6, 5), [draws(6, 5, seed=1)], lr=1e-6)
    torch.testing.assert_close(values[0], wanted[0], rtol=1e-14, atol=0)


# peers


@pytest.mark.parametrize("options", [{"lr": 0.02}, {"lr": None}, {"lr": None, "warmup_init": True}])
@pytest.mark.parametrize("shape", [(6, 5), (3, 2, 5, 4), (9,), (5, 1)])
def test_with_the_last_axes_it_is_hugging_faces(shape, options):
    other = parameter(draws(*shape))
    peer = HuggingFace([other], relative_step=options["lr"] is None, **options)
    gradients = [draws(*shape, seed=t) for t in range(1, 9)]
    values, _ = train(draws(*shape), gradients, factored_axes="last", **FACTORED, **options)
    for g, value in zip(gradients, values, strict=True):
        other.grad = g.clone()
        peer.step()
        torch.testing.assert_close(value, other.detach(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("options", [{"beta1": 0.9}, {"weight_decay": 0.1}])
def test_without_scale_momentum_and_decay_are_hugging_faces_too(options):
    other = parameter(draws(6, 5))
    plain = {"lr": 0.02, "scale_parameter": False}
    peer = HuggingFace([other], relative_step=False, **plain, **options)
    gradients = [draws(6, 5, seed=t) for t in range(1, 9)]
    if "beta1" in options:
        gradients = [g.abs() for g in gradients]
    values, _ = train(draws(6, 5), gradients, **plain, **options, **FACTORED)
    for g, value in zip(gradients, values, strict=True):
        other.grad = g.clone()
        peer.step()
        torch.testing.assert_close(value, other.detach(), rtol=1e-13, atol=1e-14)


def test_in_double_with_large_gradients_it_is_torchs():
    other = parameter(draws(6, 5))
    peer = torch.optim.Adafactor([other], lr=1e-2)
    gradients = [1e3 * draws(6, 5, seed=t) for t in range(1, 9)]
    values, _ = train(draws(6, 5), gradients, lr=1e-2, **FACTORED)
    for g, value in zip(gradients, values, strict=True):
        other.grad = g.clone()
        peer.step()
        torch.testing.assert_close(value, other.detach(), rtol=1e-12, atol=1e-13)


# range


@BOTH
@pytest.mark.parametrize("size", [1e-14, 1e-10, 1e-3, 1e5, 1e10, 1e15, 1e17])
def test_float32_follows_float64_over_thirty_one_orders_of_magnitude(path, kept, size):
    bound = 0.0 if kept is FACTORED else math.inf
    g = size * draws(6, 5, seed=1).clamp(-4, 4) * torch.tensor([1.0, 0.1, 1, 1, 2, 1])[:, None]
    exact = step_of(g, clean(g, bound), d=1e9)
    single = step_of(g.float(), clean(g.float(), bound), d=1e9)
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=0)


@BOTH
@pytest.mark.parametrize("size", [1e20, 1e30, 3e38])
def test_no_finite_gradient_is_too_large(path, kept, size):
    bound = 0.0 if kept is FACTORED else math.inf
    g = torch.tensor([[size, -size, 1.0], [size, size, 0.0]])
    state = clean(g, bound)
    u = step_of(g, state)
    assert torch.equal(u.sign()[:, :2], g.sign()[:, :2])
    assert 0.5 < u.square().mean().sqrt() <= 1 + 1e-6
    assert all(kept.isfinite().all() for kept in state.values())
    assert step_of(torch.ones(2, 3), state, fresh=0.5).isfinite().all()


# what is kept


def test_a_convolution_keeps_a_250th():
    shapes = factor_shapes((512, 512, 3, 3))
    assert sum(map(math.prod, shapes)) / math.prod((512, 512, 3, 3)) == pytest.approx(
        0.0039, abs=5e-5
    )
    shapes = factor_shapes((512, 512, 3, 3), "last", 0)
    assert sum(map(math.prod, shapes)) / math.prod((512, 512, 3, 3)) == pytest.approx(
        0.667, abs=5e-4
    )
    shapes = factor_shapes((30522, 768))
    assert sum(map(math.prod, shapes)) / math.prod((30522, 768)) == pytest.approx(0.0013, abs=5e-5)
    assert factor_shapes((64, 3, 7, 7)) is None
    shapes = factor_shapes((64, 3, 7, 7), "last", 0)
    assert sum(map(math.prod, shapes)) / math.prod((64, 3, 7, 7)) == pytest.approx(0.286, abs=5e-4)


def test_a_model_of_large_matrices_keeps_a_fiftieth_of_a_byte_per_weight():
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(2)))
    optimizer = AdaFactor(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    kept = sum(s.nbytes for state in optimizer.state.values() for s in state.values())
    assert kept / sum(p.numel() for p in model.parameters()) < 0.02


@pytest.mark.parametrize("shape", [(4, 4), (4, 3, 4), (3, 4, 4)])
def test_a_checkpoint_says_which_of_two_equal_axes_it_averaged(path, shape):
    """One that averaged them the other way round goes on as well."""
    gradients = [draws(*shape, seed=t).float() for t in range(1, 7)]
    wanted, _ = train(draws(*shape).float(), gradients, lr=0.1, **FACTORED)
    values, optimizer = train(draws(*shape).float(), gradients[:3], lr=0.1, **FACTORED)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["row"], saved["state"][0]["col"] = (
        saved["state"][0][name] for name in ("col", "row")
    )
    x = parameter(values[-1], torch.float32)
    other = AdaFactor([x], **FACTORED)
    other.load_state_dict(saved)
    for g in gradients[3:]:
        x.grad = g.clone()
        other.step()
    torch.testing.assert_close(x.detach(), wanted[-1], rtol=1e-6, atol=1e-6)


@BOTH
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_training_goes_on_bit_for_bit_after_loading(kept, beta1):
    options = {"lr": 0.1, "beta1": beta1, **kept}
    gradients = [draws(6, 5, seed=t).float() for t in range(1, 7)]
    wanted, _ = train(draws(6, 5).float(), gradients, **options)
    values, first = train(draws(6, 5).float(), gradients[:3], **options)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    x = parameter(values[-1], torch.float32)
    second = AdaFactor([x])
    second.load_state_dict(torch.load(file, weights_only=True))
    for g in gradients[3:]:
        x.grad = g.clone()
        second.step()
    assert torch.equal(x.detach(), wanted[-1])
    assert kept_by(second)["step"].item() == 6


def test_two_optimizers_loaded_from_one_state_do_not_share_it():
    _, first = train(draws(6, 5).float(), [draws(6, 5)])
    x = parameter(draws(6, 5).float(), torch.float32)
    second = AdaFactor([x])
    second.load_state_dict(first.state_dict())
    x.grad = torch.ones_like(x)
    second.step()
    assert kept_by(first)["step"].item() == 1
    assert kept_by(second)["step"].item() == 2


def test_a_state_of_other_shapes_is_refused():
    _, first = train(draws(6, 5), [draws(6, 5)], **FACTORED)
    second = AdaFactor([parameter(draws(6, 4))], **FACTORED)
    with pytest.raises(ValueError, match=r"saved 'row' has shape \(1, 5\).*of shape \(6, 4\)"):
        second.load_state_dict(first.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@BOTH
def test_half_parameters_have_a_state_in_float32_and_a_step_rounded_once(dtype, kept):
    x, g = draws(6, 5).to(dtype), 1e-4 * draws(6, 5, seed=1).to(dtype)
    values, optimizer = train(x, [g], lr=0.1, **kept)
    wanted, _ = train(x.float(), [g.float()], lr=0.1, **kept)
    assert torch.equal(values[0], wanted[0].to(dtype))
    state = kept_by(optimizer)
    assert {t.dtype for name, t in state.items() if name != "step"} == {torch.float32}


def test_bfloat16_weights_move_where_torchs_class_leaves_them():
    x = draws(6, 5).sign().bfloat16()
    g = 1e-4 * draws(6, 5, seed=1).bfloat16()
    ours, _ = train(x, [g], lr=1e-2, **FACTORED)
    other = parameter(x, torch.bfloat16)
    other.grad = g
    torch.optim.Adafactor([other], lr=1e-2).step()
    assert torch.equal(other.detach(), x)
    assert (ours[0] != x).float().mean() > 0.7


def test_a_momentum_in_bfloat16_costs_two_bytes_and_few_digits():
    gradients = [draws(60, 50, seed=t).float() for t in range(1, 9)]
    options = {"lr": 0.01, "beta1": 0.9, **FACTORED}
    short, optimizer = train(
        draws(60, 50).float(), gradients, momentum_dtype=torch.bfloat16, **options
    )
    long, _ = train(draws(60, 50).float(), gradients, **options)
    assert kept_by(optimizer)["m"].dtype == torch.bfloat16
    torch.testing.assert_close(short[-1], long[-1], rtol=0, atol=1e-3)
    assert not torch.equal(short[-1], long[-1])


# options


def test_groups_choose_for_themselves():
    x, y = parameter(draws(6, 5)), parameter(draws(6, 5))
    groups = [{"params": [x]}, {"params": [y], "scale_parameter": False, **FACTORED}]
    optimizer = AdaFactor(groups, lr=0.1)
    for p in (x, y):
        p.grad = draws(6, 5, seed=1)
    optimizer.step()
    assert torch.equal(x, train(draws(6, 5), [x.grad], lr=0.1)[0][0])
    plain = train(draws(6, 5), [x.grad], lr=0.1, scale_parameter=False, **FACTORED)
    assert torch.equal(y, plain[0][0])


def test_the_presets_are_what_their_names_say():
    gradients = [draws(6, 5, seed=t) for t in range(1, 5)]

    def preset(build, **changes):
        x = parameter(draws(6, 5))
        optimizer = build([x], **changes)
        for g in gradients:
            x.grad = g.clone()
            optimizer.step()
        return x.detach()

    def peer(**options):
        x = parameter(draws(6, 5))
        optimizer = HuggingFace([x], **options)
        for g in gradients:
            x.grad = g.clone()
            optimizer.step()
        return x.detach()

    close = {"rtol": 1e-13, "atol": 1e-14}
    torch.testing.assert_close(preset(AdaFactor.paper), peer(), **close)
    advice = {"lr": 1e-3, "relative_step": False, "scale_parameter": False}
    torch.testing.assert_close(preset(AdaFactor.t5_finetune), peer(**advice), **close)
    naive = NaiveAdaFactor(draws(6, 5).numpy(), None, beta1=0.9)
    for t, g in enumerate(gradients, start=1):
        naive.step(g.numpy(), 5e-4, 1 - t**-0.8)
    np.testing.assert_allclose(preset(AdaFactor.clue), naive.x, rtol=1e-12)
    twice = preset(AdaFactor.clue, lr=1e-3, beta1=0.0)
    assert torch.equal(twice, train(draws(6, 5), gradients, lr=1e-3)[0][-1])


def test_the_step_sizes_can_be_read():
    x, y = parameter(torch.full((4, 4), 2.0)), parameter(torch.zeros(3))
    optimizer = AdaFactor([("x", x), ("y", y)], lr=0.1)
    assert optimizer.step_sizes() == pytest.approx({"x": 0.2, "y": 1e-4})
    x.grad = torch.ones_like(x)
    optimizer.step()
    torch.testing.assert_close(x.detach(), torch.full((4, 4), 1.8, dtype=torch.float64))
    optimizer = AdaFactor([x], lr=None, scale_parameter=False)
    assert optimizer.step_sizes() == pytest.approx({"0.0": 5e-4})


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 30),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10, cycle_momentum=False),
}


@pytest.mark.parametrize("build", [pytest.param(b, id=name) for name, b in SCHEDULERS.items()])
def test_a_scheduler_beside_no_learning_rate_is_named_at_once(build):
    x = parameter(draws(6, 5))
    optimizer = AdaFactor([x], lr=None)
    x.grad = draws(6, 5, seed=1)

    def first_step():
        build(optimizer)
        optimizer.step()

    with pytest.raises(ValueError, match=r"lr=None and a learning-rate scheduler exclude"):
        first_step()
    assert torch.equal(x, draws(6, 5))


def test_a_learning_rate_written_into_the_group_is_refused_too():
    x = parameter(draws(6, 5))
    optimizer = AdaFactor([x], lr=None)
    optimizer.param_groups[0]["lr"] = 0.25
    x.grad = draws(6, 5, seed=1)
    with pytest.raises(ValueError, match=r"group\['lr'\] was set to 0\.25"):
        optimizer.step()


@pytest.mark.parametrize("build", [pytest.param(b, id=name) for name, b in SCHEDULERS.items()])
def test_a_scheduler_with_a_learning_rate_works(build):
    x = parameter(draws(6, 5))
    optimizer = AdaFactor([x], lr=0.1)
    schedule = build(optimizer)
    rates = []
    for t in range(1, 4):
        before, rates = x.detach().clone(), [*rates, optimizer.param_groups[0]["lr"]]
        x.grad = draws(6, 5, seed=t)
        optimizer.step()
        schedule.step()
        scale = before.square().mean().sqrt()
        assert (x - before).norm() / math.sqrt(30) <= rates[-1] * scale * (1 + 1e-9)


def test_no_learning_rate_is_saved_as_none_and_survives():
    _, optimizer = train(draws(6, 5), [draws(6, 5, seed=1)], lr=None)
    assert optimizer.state_dict()["param_groups"][0]["lr"] is None
    for other in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert isinstance(other.param_groups[0]["lr"], OwnStep)
    other = AdaFactor([parameter(draws(6, 5))], lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    assert isinstance(other.param_groups[0]["lr"], OwnStep)
    optimizer.load_state_dict(AdaFactor([parameter(draws(6, 5))], lr=0.5).state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_learning_rate_in_a_tensor_is_read_anew_in_every_step(path):
    x, rate = parameter(draws(6, 5).float(), torch.float32), torch.tensor(0.1)
    optimizer = AdaFactor([x], lr=rate)
    for t, lr in enumerate((0.1, 0.0, 0.2)):
        rate.fill_(lr)
        before = x.detach().clone()
        x.grad = draws(6, 5, seed=t).float()
        optimizer.step()
        assert torch.equal(x, before) == (lr == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"lr": math.nan}, "lr must not be negative, got nan"),
        ({"warmup_init": True}, "warmup_init shapes the steps of lr=None, but lr is 0.001"),
        ({"beta1": 1.0}, r"beta1 must lie in \[0, 1\), got 1.0"),
        ({"beta2": 1.0}, r"beta2 must lie in \(0, 1\) or be None, got 1.0"),
        ({"beta2_decay": 0.0}, "beta2_decay must be positive, got 0.0"),
        ({"clip_threshold": -1.0}, "clip_threshold must be positive, got -1.0"),
        ({"eps": (-1e-30, 1e-3)}, "eps must be two numbers"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"min_dim_size_to_factor": -1}, "min_dim_size_to_factor must not be negative"),
        ({"momentum_dtype": torch.int8}, "momentum_dtype must be a floating dtype or None"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdaFactor([parameter(draws(2, 2))], **options)


def test_unknown_axes_are_refused_in_a_group():
    with pytest.raises(ValueError, match=r"'largest' or 'last', got 'first'"):
        AdaFactor([{"params": [parameter(draws(2, 2))], "factored_axes": "first"}])


def test_parameters_that_fsdp_flattened_are_refused():
    x = parameter(draws(20))
    x._fsdp_flattened = True
    with pytest.raises(ValueError, match=r"x of shape \(20,\) was flattened by FSDP.*FSDP2"):
        AdaFactor([("x", x)])


def test_the_loop_knows_which_axes_are_a_matrix():
    assert as_matrices((6, 5, 1, 1), (1, 5, 1, 1), (6, 1, 1, 1)) == (True, 1, 6, 5)
    assert as_matrices((2, 5, 6), (2, 5, 1), (2, 1, 6)) == (False, 2, 5, 6)
    assert as_matrices((7, 6, 3, 3), (1, 6, 3, 3), (7, 1, 3, 3)) is None
    assert as_matrices((300, 1, 200), (1, 1, 200), (300, 1, 1)) is None
