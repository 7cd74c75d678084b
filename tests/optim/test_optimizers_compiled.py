"""All our optimizers under torch.compile: one graph, the same numbers, no second compilation."""

import pytest
import torch

from families import optimizers as family

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
]

EACH = [pytest.param(build, id=name) for name, build in family.OPTIMIZERS.items()]
each = pytest.mark.parametrize("build", EACH)


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_close(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def compilations():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@each
def test_a_compiled_step_is_one_graph_that_is_kept_and_skips_bad_gradients(build):
    """Down to machine code, where 0·x is taken for 0 and NaN could be overlooked."""
    shapes = [(8, 5), (7,)]
    params, others = family.parameters(shapes), family.parameters(shapes)
    optimizer, other = build(params, nonfinite="skip"), build(others, nonfinite="skip")
    step = torch.compile(optimizer.step, fullgraph=True)
    for seed in range(5):
        for p in (params, others):
            family.give_gradients(p, seed)
            if seed in (0, 3):
                p[0].grad[1, 1] = torch.nan if seed == 0 else torch.inf
        step()
        other.step()
        assert_close(family.tensors_of(optimizer), family.tensors_of(other))
        if seed == 1:
            settled = compilations()
    assert compilations() == settled


@each
@pytest.mark.parametrize("tensor", [True, False], ids=["tensor", "number"])
def test_a_compiled_step_follows_a_schedule(build, tensor):
    shapes = [(8, 5), (7,)]
    params, others = family.parameters(shapes), family.parameters(shapes)
    optimizer = build(params, lr=torch.tensor(0.1) if tensor else 0.1)
    other = build(others, lr=0.1)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: 1 / (1 + step))
        for one in (optimizer, other)
    ]
    # a schedule puts a function of torch's around `step` that cannot be compiled, so no fullgraph
    step = torch.compile(lambda: optimizer.step(), backend="aot_eager")
    for seed in range(12):
        for p in (params, others):
            family.give_gradients(p, seed)
        step()
        other.step()
        for schedule in schedules:
            schedule.step()
        assert_close(family.tensors_of(optimizer), family.tensors_of(other))
        if seed == 2:
            settled = compilations()
    assert compilations() == settled


@each
def test_a_whole_training_step_compiles(build):
    model, twin = family.network(), family.network()
    optimizer, other = build(model.parameters()), build(twin.parameters())

    @torch.compile(backend="aot_eager")
    def training_step(inputs, targets):
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    for seed in range(5):
        training_step(*family.batch(seed))
        family.train(twin, other, 1, start=seed)
        for one, two in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
        if seed == 1:
            settled = compilations()
    assert compilations() == settled


@each
@pytest.mark.parametrize("dtype", family.HALVES)
def test_half_parameters_compile_too(build, dtype):
    params, others = (family.parameters([(8, 5), (7,)], dtype) for _ in range(2))
    optimizer, other = build(params), build(others)
    step = torch.compile(optimizer.step, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        for p in (params, others):
            family.give_gradients(p, seed)
        step()
        other.step()
    for one, two in zip(family.tensors_of(optimizer), family.tensors_of(other), strict=True):
        eps = torch.finfo(one.dtype).eps if one.is_floating_point() else 0
        assert one.dtype == two.dtype
        torch.testing.assert_close(one, two, rtol=max(eps, 1e-5), atol=1e-5)
