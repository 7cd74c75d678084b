"""What every optimizer of `kexue.optim` must do, as plain functions that assert it.

A case is `build(params, **options)`; `params` may be tensors, named parameters or groups.
"""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.optim.adafactor import AdaFactor
from kexue.optim.adax import AdaX
from kexue.optim.lion import Lion
from kexue.optim.tiger import Tiger
from kexue.tensor_loop import Loop


def _with(kind, **usual):
    return lambda params, **options: kind(params, **(usual | options))


def _rows(params, **options):
    """Tiger, every tensor an embedding table."""
    return Tiger([{"params": list(params), "kind": "embedding"}], **({"lr": 0.02} | options))


OPTIMIZERS = {
    "Lion": _with(Lion, lr=0.01),
    "AdaX": _with(AdaX, lr=0.03),
    "Tiger": _with(Tiger, lr=0.02),
    "Tiger, rows": _rows,
    "AdaFactor": _with(AdaFactor, lr=0.05),
    "AdaFactor, factored": _with(AdaFactor, lr=0.05, beta1=0.9, min_dim_size_to_factor=0.0),
}
FOR_MODELS = {
    name: lambda model, build=build: build(model.named_parameters())
    for name, build in OPTIMIZERS.items()
} | {"Tiger": lambda model: Tiger(model, lr=0.02)}
"""The same from a model, whose biases and norms are known by their modules."""
KINDS = {"Lion": Lion, "AdaX": AdaX, "Tiger": Tiger, "AdaFactor": AdaFactor}
STRANGERS = KINDS | {"AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD}
SHAPES = [(), (0,), (1,), (7,), (3, 0), (64, 33), (300, 517), (5, 4, 3, 2)]
HALVES = (torch.bfloat16, torch.float16)


# material


def draws(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def parameters(shapes, dtype=torch.float32, seed=0):
    return [nn.Parameter(draws(*s, seed=seed + i, dtype=dtype)) for i, s in enumerate(shapes)]


def give_gradients(params, seed):
    for i, p in enumerate(params):
        p.grad = draws(*p.shape, seed=1000 * seed + i, dtype=p.dtype)


def run(optimizer, params, steps, start=0):
    for seed in range(start, start + steps):
        give_gradients(params, seed)
        optimizer.step()
    return params


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 1))


def batch(seed, size=32):
    inputs = draws(size, 6, seed=seed)
    return inputs, inputs[:, :1] * 2 - inputs[:, 1:2] + 0.5


def loss_of(model, seed, size=32):
    inputs, targets = batch(seed, size)
    return F.mse_loss(model(inputs), targets)


def train(model, optimizer, steps, start=0):
    for seed in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, seed).backward()
        optimizer.step()


def tensors_of(optimizer):
    """All parameters and their states, copied, in order."""
    found = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            found += [p.detach().clone(), *(state[name].clone() for name in sorted(state))]
    return found


def assert_same(found, wanted):
    """Bit for bit, dtype for dtype."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


# laws


def assert_learns(build, floor=0.01):
    """A plain loop with a schedule brings a regression to a hundredth of its first loss."""
    model = network()
    optimizer = build(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 400)
    first = loss_of(model, 9999, 256).item()
    for seed in range(400):
        optimizer.zero_grad()
        loss_of(model, seed).backward()
        optimizer.step()
        schedule.step()
    assert loss_of(model, 9999, 256).item() < floor * first


def assert_resumes(build, dtype, **options):
    """A saved and loaded state goes on bit for bit, and half parameters keep a float32 state."""
    shapes = [(8, 5), (7,), ()]
    params = parameters(shapes, dtype)
    optimizer = run_with(build, params, 3, **options)
    kept = io.BytesIO()
    torch.save(optimizer.state_dict(), kept)
    kept.seek(0)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    other = build(others, **options)
    other.load_state_dict(torch.load(kept, weights_only=True))
    assert_same(tensors_of(other), tensors_of(optimizer))
    if dtype in HALVES:
        floats = [t for s in other.state.values() for t in s.values() if t.is_floating_point()]
        assert floats
        assert all(t.dtype == torch.float32 for t in floats)
    run(optimizer, params, 3, start=3)
    run(other, others, 3, start=3)
    assert_same(tensors_of(other), tensors_of(optimizer))


def run_with(build, params, steps, **options):
    optimizer = build(params, **options)
    run(optimizer, params, steps)
    return optimizer


def assert_a_loaded_state_is_a_copy(build):
    params, others = (parameters([(8, 5), (7,)]) for _ in range(2))
    optimizer, other = run_with(build, params, 2), build(others)
    other.load_state_dict(optimizer.state_dict())
    before = tensors_of(other)
    run(optimizer, params, 2, start=2)
    assert_same(tensors_of(other), before)


def assert_copies_go_on_alike(build):
    """Through pickle and deepcopy, together with the model."""
    model = network()
    optimizer = build(model.parameters())
    train(model, optimizer, 3)
    twins = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    train(model, optimizer, 3, start=3)
    for twin, other in twins:
        train(twin, other, 3, start=3)
        assert_same(tensors_of(other), tensors_of(optimizer))


def assert_equal_for_any_number_of_threads(build):
    ends = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            params = parameters([(300, 517), (200_003,), (33,)])
            ends.append(tensors_of(run_with(build, params, 3)))
        finally:
            torch.set_num_threads(1)
    assert_same(*ends)


def assert_loop_is_the_formula(build, shape, **options):
    """The compiled loop, and torch's operations, and those on a parameter with gaps."""
    ends, steps = [], 3
    for native, dtype in ((True, torch.float32), (False, torch.float32), (False, torch.float64)):
        params = [nn.Parameter(draws(*shape).to(dtype))]
        with pytest.MonkeyPatch.context() as patch:
            if not native:
                patch.setattr(Loop, "takes", lambda *_: False)
            optimizer = build(params, **options)
            for seed in range(steps):
                params[0].grad = draws(*shape, seed=seed + 1).to(dtype)
                optimizer.step()
        ends.append([t.double() for t in tensors_of(optimizer)])
    for native, formula, exact in zip(*ends, strict=True):
        torch.testing.assert_close(native, formula, rtol=2e-6, atol=5e-7)
        torch.testing.assert_close(formula, exact, rtol=5e-6, atol=1e-6)


def assert_gaps_do_not_matter(build):
    """A transposed parameter, and a gradient that is one number expanded."""
    flat, turned = nn.Parameter(draws(33, 64)), nn.Parameter(draws(33, 64).T.contiguous().T)
    assert not turned.is_contiguous()
    for p in (flat, turned):
        optimizer = build([p])
        for seed in range(2):
            p.grad = draws(33, 64, seed=seed + 1)
            optimizer.step()
        p.grad = torch.tensor(0.5).expand(33, 64)
        optimizer.step()
    torch.testing.assert_close(turned.detach(), flat.detach(), rtol=2e-6, atol=5e-7)


def assert_reads_a_negation_that_was_put_off(build):
    """The imaginary part of a conjugate is a view of numbers with the other sign."""
    ends = []
    for lazily in (True, False):
        w = nn.Parameter(torch.tensor([1.0]))
        optimizer = build([w])
        for _ in range(2):
            w.grad = torch.tensor([-2.0])
            if lazily:
                w.grad = torch.complex(torch.zeros(1), torch.tensor([2.0])).conj().imag
                assert w.grad.is_neg()
                assert w.grad.is_contiguous()
            optimizer.step()
        assert w.item() > 1
        ends.append(tensors_of(optimizer))
    for one, other in zip(*ends, strict=True):  # torch's operations and the compiled loop
        torch.testing.assert_close(one, other, rtol=2e-6, atol=5e-7)


def assert_takes_gradients_of_another_dtype(build):
    params, others = (parameters([(8, 5), (7,)]) for _ in range(2))
    for p in params:
        p.grad_dtype = None
    optimizer, other = build(params), build(others)
    for seed in range(2):
        for i, (p, q) in enumerate(zip(params, others, strict=True)):
            p.grad = draws(*p.shape, seed=100 * seed + i, dtype=torch.bfloat16)
            q.grad = p.grad.float()
        optimizer.step()
        other.step()
    assert_same(tensors_of(optimizer), tensors_of(other))


def assert_a_loaded_state_takes_the_dtype(build, saved, dtype):
    """A state saved beside weights of one dtype goes on beside those of another."""
    params = parameters([(8, 5), (7,)], saved)
    others = [nn.Parameter(p.detach().to(dtype)) for p in params]
    other = build(others)
    other.load_state_dict(run_with(build, params, 2).state_dict())
    kept = [t for s in other.state.values() for t in s.values() if t.is_floating_point()]
    assert {t.dtype for t in kept} == {torch.promote_types(dtype, torch.float32)}
    before = [p.detach().clone() for p in others]
    run(other, others, 2, start=2)
    for p, q in zip(others, before, strict=True):
        assert p.isfinite().all()
        assert not torch.equal(p, q)


def assert_refuses_the_state_of_other_shapes(build):
    """A compiled loop would read and write beyond the end of the smaller tensor."""
    foreign = run_with(build, parameters([(3, 5), (7,)]), 1).state_dict()
    params = parameters([(300, 500), (7,)])
    optimizer = run_with(build, params, 1)
    before = tensors_of(optimizer)
    with pytest.raises(ValueError, match=r"shape \(3, .* parameter of shape \(300, 500\)"):
        optimizer.load_state_dict(foreign)
    assert_same(tensors_of(optimizer), before)


def assert_refuses_a_resized_parameter(build):
    """One that was given other data behind the optimizer's back, say by a longer vocabulary."""
    w = nn.Parameter(torch.ones(3, 4))
    optimizer = run_with(build, [w], 1)
    w.grad = None
    w.data = torch.ones(5000, 4)
    w.grad = torch.ones(5000, 4)
    with pytest.raises(RuntimeError, match="size"):
        optimizer.step()


def assert_missing_options_have_their_defaults(build):
    """As in states of peers, or from before there was an option."""
    params, others = (parameters([(8, 5), (7,)]) for _ in range(2))
    optimizer, other = run_with(build, params, 2), build(others)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        for name in ("maximize", "nonfinite", "stochastic_rounding", "seed"):
            del group[name]
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p)
    other.load_state_dict(state)
    run(optimizer, params, 2, start=2)
    run(other, others, 2, start=2)
    assert_same(tensors_of(optimizer), tensors_of(other))


def assert_skips(build, bad, dtype=torch.float32):
    """Only the tensor with the bad gradient is left alone, bit for bit, and its state."""
    params, others = (parameters([(8, 5), (7,)], dtype) for _ in range(2))
    optimizer, other = (run_with(build, p, 2, nonfinite="skip") for p in (params, others))
    for p in (params, others):
        give_gradients(p, 7)
    before = tensors_of(build_state(optimizer, params[0]))
    params[0].grad[2, 3] = bad
    optimizer.step()
    other.step()
    assert_same(tensors_of(build_state(optimizer, params[0])), before)
    assert_same(
        tensors_of(build_state(optimizer, params[1])), tensors_of(build_state(other, others[1]))
    )


def build_state(optimizer, parameter):
    """The optimizer as if it had this parameter alone."""

    class View:
        state = optimizer.state
        param_groups = [{"params": [parameter]}]

    return View


def assert_skips_the_first_gradient(build):
    """A bad gradient before any good one leaves the state as if it had never been."""
    params, others = (parameters([(8, 5)]) for _ in range(2))
    optimizer = build(params, nonfinite="skip")
    params[0].grad = torch.full((8, 5), torch.nan)
    optimizer.step()
    assert_same([params[0].detach()], [others[0].detach()])
    run(optimizer, params, 2)
    assert_same(tensors_of(optimizer), tensors_of(run_with(build, others, 2, nonfinite="skip")))


def assert_raises_by_name(build, bad):
    params = parameters([(8, 5), (7,)])
    optimizer = build(
        [("first.weight", params[0]), ("second.weight", params[1])], nonfinite="raise"
    )
    give_gradients(params, 0)
    params[1].grad[3] = bad
    with pytest.raises(FloatingPointError, match=r"second\.weight of shape \(7,\) holds NaN"):
        optimizer.step()


def assert_ignores(build):
    """Nothing is looked at: the NaN arrives."""
    params = parameters([(8, 5)])
    optimizer = run_with(build, params, 1, nonfinite="ignore")
    params[0].grad[2, 3] = torch.nan
    optimizer.step()
    assert any(not t.isfinite().all() for t in tensors_of(optimizer))


def assert_refuses_gradients(build):
    table = nn.Embedding(10, 4, sparse=True)
    optimizer = build([("table", table.weight)])
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"gradient of table .*dense gradients.*sparse=False"):
        optimizer.step()


def assert_refuses_parameters(build):
    with pytest.raises(TypeError, match=r"complex64; real floating"):
        build([nn.Parameter(torch.zeros(3, dtype=torch.complex64))])
    mixed = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, device="meta"))]
    with pytest.raises(ValueError, match=r"parameter 1 of shape \(3,\) is on meta.*whole model"):
        build(mixed)
    optimizer = build(mixed[:1])
    with pytest.raises(ValueError, match="is on meta"):
        optimizer.add_param_group({"params": mixed[1:]})
    assert len(optimizer.param_groups) == 1


def assert_refuses_options(build):
    for options, message in (
        ({"lr": -0.5}, "lr must not be negative, got -0.5"),
        ({"weight_decay": -0.5}, "weight_decay must not be negative, got -0.5"),
        ({"lr": float("nan")}, "lr must not be negative, got nan"),
        ({"nonfinite": "hope"}, "nonfinite must be one of .*got 'hope'"),
    ):
        with pytest.raises(ValueError, match=message):
            build([nn.Parameter(torch.zeros(3))], **options)


def assert_refuses_the_state_of(build, other_build, name):
    params = parameters([(8, 5)])
    foreign = other_build(parameters([(8, 5)]))
    run(foreign, foreign.param_groups[0]["params"], 1)
    optimizer = run_with(build, params, 1)
    before = tensors_of(optimizer)
    with pytest.raises(ValueError, match=rf"not saved by {name}"):
        optimizer.load_state_dict(foreign.state_dict())
    assert_same(tensors_of(optimizer), before)


def assert_in_backward_is_step(build, dtype=torch.float32):
    """Bit for bit, with no gradient left; `remove` ends it."""
    model, twin = network().to(dtype), network().to(dtype)
    optimizer, other = build(model.parameters()), build(twin.parameters())
    handle = optimizer.step_in_backward(model)
    for seed in range(4):
        for m, o in ((model, optimizer), (twin, other)):
            inputs, targets = (t.to(dtype) for t in batch(seed))
            o.zero_grad()
            F.mse_loss(m(inputs), targets).backward()
            if m is model:
                assert all(p.grad is None for p in model.parameters())
            o.step()
    assert_same(tensors_of(optimizer), tensors_of(other))
    with pytest.raises(RuntimeError, match="on already"):
        optimizer.step_in_backward(model)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in (*optimizer.param_groups, *other.param_groups):
        group["lr"] = 0.5 * group["lr"]  # a schedule is followed after loading, too
    for m, o in ((model, optimizer), (twin, other)):
        o.zero_grad()
        F.mse_loss(
            *(f(t.to(dtype)) for f, t in zip((m, lambda t: t), batch(4), strict=True))
        ).backward()
        o.step()
    assert_same(tensors_of(optimizer), tensors_of(other))
    handle.remove()
    before = tensors_of(optimizer)
    loss_of(model.float(), 5).backward() if dtype == torch.float32 else None
    assert_same(tensors_of(optimizer), before)
    with optimizer.step_in_backward(model), pytest.raises(RuntimeError, match="on already"):
        optimizer.step_in_backward(model)
    with pytest.raises(ValueError, match="no trained parameter of this Linear"):
        optimizer.step_in_backward(nn.Linear(2, 2))


def assert_maximize_climbs(build):
    params, others = (parameters([(8, 5), (7,)]) for _ in range(2))
    optimizer, other = build(params, maximize=True), build(others)
    for seed in range(3):
        give_gradients(params, seed)
        for p, q in zip(params, others, strict=True):
            q.grad = -p.grad
        kept = [p.grad.clone() for p in params]
        optimizer.step()
        other.step()
        assert_same([p.grad for p in params], kept)  # the caller's gradients stay as they are
    assert_same(tensors_of(optimizer), tensors_of(other))


def assert_closure_is_called(build):
    model, twin = network(), network()
    optimizer, other = build(model.parameters()), build(twin.parameters())

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    train(twin, other, 1)
    assert loss.item() == loss_of(network(), 0).item()
    assert_same(tensors_of(optimizer), tensors_of(other))


def assert_follows_a_schedule(build):
    params = parameters([(8, 5), (7,)])
    optimizer = build(params, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step % 2 == 0))
    run(optimizer, params, 1)
    moved = [p.detach().clone() for p in params]
    assert not any(
        torch.equal(p, q) for p, q in zip(moved, parameters([(8, 5), (7,)]), strict=True)
    )
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0
    run(optimizer, params, 1, start=1)
    assert_same([p.detach() for p in params], moved)
    schedule.step()
    run(optimizer, params, 1, start=2)
    assert not any(torch.equal(p, q) for p, q in zip(params, moved, strict=True))


def assert_takes_lr_as_a_tensor(build, lr=0.0625):
    ends = []
    for given in (lr, torch.tensor(lr)):
        params = parameters([(8, 5), (7,)])
        with pytest.MonkeyPatch.context() as patch:
            for native in (True, False):
                if not native:
                    patch.setattr(Loop, "takes", lambda *_: False)
                ends.append(tensors_of(run_with(build, params, 2, lr=given, weight_decay=0.1)))
    for found, wanted in ((ends[2], ends[0]), (ends[3], ends[1])):
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def assert_leaves_tensors_without_gradient(build):
    params = parameters([(8, 5), (7,)])
    before = params[1].detach().clone()
    optimizer = build(params, weight_decay=0.1)
    give_gradients(params[:1], 0)
    optimizer.step()
    assert torch.equal(params[1], before)
    assert not optimizer.state.get(params[1])


def assert_scaler_changes_nothing(build):
    """autocast and a GradScaler whose factor is a power of two."""
    ends = []
    for enabled in (False, True):
        model = network()
        optimizer = build(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        for seed in range(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model, seed)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        assert all(p.dtype == torch.float32 for p in model.parameters())
        ends.append(tensors_of(optimizer))
    assert_same(*ends)


def assert_scaler_skips_overflow(build):
    model = network()
    optimizer = build(model.parameters())
    train(model, optimizer, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    before = tensors_of(optimizer)
    optimizer.zero_grad()
    scaler.scale(loss_of(model, 2)).backward()
    model[0].weight.grad[0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert_same(tensors_of(optimizer), before)
    assert scaler.get_scale() == 2.0**19


def assert_small_steps_survive_random_rounding(build, dtype):
    """Steps far below half an ulp: lost when rounded to nearest, kept on average otherwise."""
    size, steps = 4096, 20
    lr = 0.01 * torch.finfo(dtype).eps
    options = {"lr": lr, "weight_decay": 0.0}
    exact = nn.Parameter(torch.ones(size))
    moved = []
    for random, seed in ((False, 0), (True, 0), (True, 0), (True, 1)):
        p = nn.Parameter(torch.ones(size, dtype=dtype))
        optimizer = build([p], stochastic_rounding=random, seed=seed, **options)
        for _ in range(steps):
            p.grad = torch.ones_like(p)
            optimizer.step()
        moved.append(p.detach().float())
    optimizer = build([exact], **options)
    for _ in range(steps):
        exact.grad = torch.ones_like(exact)
        optimizer.step()
    distance = 1 - exact.detach().double().mean().item()
    assert 0 < distance < 0.5 * torch.finfo(dtype).eps
    nearest, drawn, again, other = moved
    assert torch.equal(nearest, torch.ones(size))
    gap = torch.finfo(dtype).eps / 2  # between the halves just below 1
    error = gap * (distance / gap / size) ** 0.5  # of the mean of that many rounded numbers
    assert abs((1 - drawn.double().mean()).item() - distance) < 5 * error
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)


def assert_autograd_sees_the_step(build):
    """Going backward a second time, through weights that have changed since, is an error."""
    for native in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not native:
                patch.setattr(Loop, "takes", lambda *_: False)
            w = nn.Parameter(draws(8, 5))
            optimizer = build([w])
            loss = w.square().sum()
            loss.backward(retain_graph=True)
            optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
