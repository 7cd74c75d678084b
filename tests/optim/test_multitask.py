"""S16: the backward pass of several tasks, exact and through features."""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from kexue.optim.multitask import MultiTaskGradients, MultiTaskStep, multitask_backward
from kexue.optim.multitask.gradients import CHUNK, gram_matrix
from kexue.optim.multitask.gram import min_norm_weights, primary_auxiliary_weights
from naive.multitask import naive_gradients, naive_min_norm, naive_veto


class Net(nn.Module):
    """An encoder with three heads; odd tasks pull the other way, so that they conflict."""

    def __init__(self, tasks=3, seed=0, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
        self.heads = nn.ModuleList(nn.Linear(5, 2) for _ in range(tasks))
        self.to(dtype)

    def hidden(self, seed=0, size=7):
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(size, 6, generator=random, dtype=torch.float64)
        return self.encoder(x.to(self.heads[0].weight.dtype))

    def losses(self, hidden):
        return [
            (head(hidden) - (-1) ** task * (task + 1)).square().mean()
            for task, head in enumerate(self.heads)
        ]

    def shared(self):
        return list(self.encoder.parameters())


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors]).double()


def shared_gradient(net):
    return flat(p.grad for p in net.shared())


def assert_close(found, expected, atol=1e-12):
    expected = torch.as_tensor(np.asarray(expected), dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("method", ["veto", "min_norm", "sum", "protect_primary"])
def test_values_and_gradients_equal_the_naive_twin(method):
    net = Net()
    losses = net.losses(net.hidden())
    G = naive_gradients(losses, net.shared()).numpy()
    own = torch.autograd.grad(sum(losses), net.heads.parameters(), retain_graph=True)
    step = multitask_backward(losses, shared_params=net.shared(), method=method)
    s = G.sum(0)
    expected = {
        "veto": lambda: naive_veto(G),
        "min_norm": lambda: naive_min_norm(G),
        "sum": lambda: s,
        "protect_primary": lambda: s + max(0, G[0] @ G[0] - s @ G[0]) / (G[0] @ G[0]) * G[0],
    }[method]()
    assert_close(shared_gradient(net), expected)
    assert_close(step.gram, G @ G.T)
    assert_close(step.descent, G @ expected)
    assert step.conflicts.tolist() == (G @ G.T < 0).tolist()
    for p, g in zip(net.heads.parameters(), own, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=1e-15)


def test_a_sum_is_the_ordinary_backward_pass():
    net, plain = Net(), Net()
    multitask_backward(net.losses(net.hidden()), shared_params=net.shared(), method="sum")
    sum(plain.losses(plain.hidden())).backward()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-14)


def test_a_normalised_sum_is_gradient_normalisation():
    net = Net()
    losses = net.losses(net.hidden())
    G = naive_gradients(losses, net.shared())
    multitask_backward(losses, shared_params=net.shared(), method="sum", normalise=True)
    length = G.norm(dim=1)
    assert_close(shared_gradient(net), (G / length[:, None]).sum(0) * length.mean())


def test_a_constant_added_to_a_loss_and_its_unit_leave_gradient_normalisation_alone():
    directions = []
    for scale, shift in ((1.0, 0.0), (1e6, 5.0)):
        net = Net()
        losses = net.losses(net.hidden())
        losses[1] = losses[1] * scale + shift
        multitask_backward(losses, shared_params=net.shared(), method="sum", normalise=True)
        directions.append(nn.functional.normalize(shared_gradient(net), dim=0))
    assert_close(*directions, atol=1e-10)


@pytest.mark.parametrize("method", ["veto", "min_norm", "protect_primary"])
def test_a_small_step_keeps_its_promise_to_first_order(method):
    net = Net()
    before = [loss.item() for loss in net.losses(net.hidden())]
    step = multitask_backward(net.losses(net.hidden()), shared_params=net.shared(), method=method)
    rates = []
    for eta in (1e-4, 1e-5):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for p, q in zip(moved.shared(), net.shared(), strict=True):
                p -= eta * q.grad
        after = [loss.item() for loss in moved.losses(moved.hidden())]
        rates.append([(b - a) / eta for a, b in zip(after, before, strict=True)])
    for eta, found in zip((1e-4, 1e-5), rates, strict=True):
        assert_close(torch.tensor(found, dtype=torch.float64), step.descent, atol=1e5 * eta)
    floor = {"veto": 0.0, "min_norm": 0.0, "protect_primary": step.gram[0, 0]}[method]
    assert step.descent[0] >= floor - 1e-9
    if method != "protect_primary":
        assert (step.descent >= -1e-9).all()


@pytest.mark.parametrize("method", ["veto", "min_norm"])
@pytest.mark.parametrize("encoder", ["identity", "orthogonal"])
def test_features_give_the_exact_weights_behind_an_orthogonal_encoder(method, encoder):
    random = torch.Generator().manual_seed(3)
    theta = torch.randn(5, generator=random, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(5, 5, generator=random, dtype=torch.float64))[0]
    Q = torch.eye(5, dtype=torch.float64) if encoder == "identity" else Q
    targets = torch.randn(3, 5, generator=random, dtype=torch.float64)
    found = []
    for through in (True, False):
        p = theta.clone().requires_grad_()
        hidden = (Q @ p)[None]
        losses = [(hidden - t).square().sum() for t in targets]
        options = {"features": hidden} if through else {"shared_params": [p]}
        step = multitask_backward(losses, method=method, **options)
        found.append((p.grad, step.weights, step.gram))
    for one, other in zip(*found, strict=True):
        assert_close(one, other)


def test_the_features_bound_may_raise_a_task_as_documented():
    theta = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    hidden = theta * torch.tensor([1.0, 10.0], dtype=torch.float64).sqrt()  # J Jᵀ = diag(1, 10)
    z = torch.tensor([[3.0, -1.0], [-1.0, 3.0]], dtype=torch.float64)
    losses = [(hidden * one).sum() for one in z]
    G = naive_gradients(losses, [theta])
    step = multitask_backward(losses, features=hidden, method="min_norm", retain_graph=True)
    assert_close(step.weights, [0.5, 0.5])
    assert_close(G @ theta.grad.flatten(), [-7.0, 29.0])
    theta.grad = None
    exact = multitask_backward(losses, shared_params=[theta], method="min_norm")
    assert_close(exact.gram, [[19.0, -33.0], [-33.0, 91.0]])
    assert_close(exact.weights, [0.704545454545, 0.295454545455])
    assert_close(G @ theta.grad.flatten(), [3.636363636364] * 2)


def test_features_and_exact_gradients_agree_on_stationary_points():
    theta = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    for through in (True, False):
        hidden = theta * torch.tensor([1.0, 10.0], dtype=torch.float64)
        losses = [(hidden * z).sum() for z in torch.tensor([[3.0, -1.0], [-6.0, 2.0]])]
        theta.grad = None
        options = {"features": hidden} if through else {"shared_params": [theta]}
        multitask_backward(losses, method="min_norm", **options)
        assert_close(theta.grad, torch.zeros(1, 2))


def test_features_pass_the_encoder_once_and_fill_every_head():
    net, plain = Net(), Net()
    passes = []
    hidden = net.hidden()
    hidden.grad_fn.register_hook(lambda *_: passes.append(1))
    losses = net.losses(hidden)
    z = naive_gradients(losses, [hidden]).reshape(3, *hidden.shape)
    passes.clear()
    step = multitask_backward(losses, features=hidden, shared_params=net.shared())
    assert len(passes) == 1
    hidden = plain.hidden()
    (hidden * torch.einsum("i,ibd->bd", step.weights, z).detach()).sum().backward()
    assert_close(shared_gradient(net), shared_gradient(plain))
    sum(plain.losses(plain.hidden())).backward()
    for p, q in zip(net.heads.parameters(), plain.heads.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-14)


def test_several_features_enter_one_gram_matrix():
    net = Net()
    first = net.hidden(0)
    second = net.hidden(1)
    losses = [*net.losses(first + 2 * second)[:2], second.square().mean()]
    Z = naive_gradients(losses, [first, second])
    step = multitask_backward(losses, features=[first, second], method="min_norm")
    assert_close(step.gram, Z @ Z.T)
    assert all(p.grad is not None for p in net.shared())


def test_features_whose_gradients_share_one_memory_are_weighed_once():
    """autograd gives a and b of a + b the same tensor, and the terms of a sum one number."""
    net = Net(tasks=2)
    first, second = net.hidden(0), net.hidden(1)
    losses = [*net.losses(first + second), (first + second).sum()]
    w = torch.tensor([0.5, 0.25, 2.0], dtype=torch.float64)
    multitask_backward(losses, features=[first, second], method=lambda K: w, retain_graph=True)
    found = shared_gradient(net)
    net.zero_grad()
    sum(a * loss for a, loss in zip(w, losses, strict=True)).backward()
    assert_close(found, shared_gradient(net))


def test_disjoint_labels_are_warned_of_and_common_ones_are_not():
    net = Net(tasks=2)
    hidden = net.hidden()
    losses = net.losses(hidden)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        multitask_backward(losses, features=hidden)
    hidden = net.hidden()
    halves = [net.heads[0](hidden[:4]).square().mean(), net.heads[1](hidden[4:]).square().mean()]
    with pytest.warns(UserWarning, match="tasks 0 and 1 have no sample in common"):
        step = multitask_backward(halves, features=hidden)
    assert step.weights.tolist() == [1, 0]  # blind: never a conflict


def test_micro_batches_add_up_to_the_large_batch():
    net, whole = Net(), Net()
    gradients = MultiTaskGradients(net.shared(), task_params=net.heads.parameters())
    hidden = whole.hidden(size=8)
    step = multitask_backward(whole.losses(hidden), shared_params=whole.shared())
    random = torch.Generator().manual_seed(0)
    x = torch.randn(8, 6, generator=random, dtype=torch.float64)
    for part in x.split(2):
        gradients.add([loss / 4 for loss in net.losses(net.encoder(part))])
        assert all(p.grad is None for p in net.shared())
    found = gradients.resolve()
    assert_close(found.gram, step.gram)
    for p, q in zip(net.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-12)


def test_tasks_may_come_in_batches_of_their_own():
    net, both = Net(tasks=2), Net(tasks=2)
    gradients = MultiTaskGradients(net.shared())
    gradients.add([net.losses(net.hidden(1))[0], None])
    gradients.add([None, net.losses(net.hidden(2))[1]])
    losses = [both.losses(both.hidden(1))[0], both.losses(both.hidden(2))[1]]
    step = multitask_backward(losses, shared_params=both.shared())
    assert_close(gradients.resolve().gram, step.gram)
    assert_close(shared_gradient(net), shared_gradient(both))


def test_gradients_are_added_to_what_is_there_and_resolving_starts_anew():
    net = Net()
    gradients = MultiTaskGradients(net.shared())
    gradients.add(net.losses(net.hidden()))
    gradients.resolve()
    once = shared_gradient(net).clone()
    gradients.add(net.losses(net.hidden()))
    gradients.resolve()
    assert_close(shared_gradient(net), 2 * once)
    with pytest.raises(ValueError, match="call add"):
        gradients.resolve()


def test_unused_and_frozen_shared_parameters_get_zero_and_nothing():
    net = Net()
    unused = nn.Parameter(torch.ones(3))
    net.encoder[0].bias.requires_grad_(False)
    alone = nn.Parameter(torch.ones(2, dtype=torch.float64))  # used by one task only
    losses = net.losses(net.hidden())
    losses[1] = losses[1] + alone.sum()
    step = multitask_backward(losses, shared_params=[*net.shared(), unused, alone], method="sum")
    assert unused.grad.tolist() == [0, 0, 0]
    assert net.encoder[0].bias.grad is None
    assert alone.grad.tolist() == [1, 1]
    assert step.gram[1, 1] > step.gram[0, 1]


def test_one_task_is_its_own_gradient():
    net, plain = Net(tasks=1), Net(tasks=1)
    for options in ({"shared_params": net.shared()}, {"features": (hidden := net.hidden())}):
        net.zero_grad()
        losses = net.losses(hidden if "features" in options else net.hidden())
        assert multitask_backward(losses, **options).weights.tolist() == [1]
        plain.zero_grad()
        plain.losses(plain.hidden())[0].backward()
        assert_close(shared_gradient(net), shared_gradient(plain))


def test_several_primaries_are_one_partial_away():
    net = Net()
    rule = functools.partial(primary_auxiliary_weights, primary=[0, 2])
    step = multitask_backward(net.losses(net.hidden()), shared_params=net.shared(), method=rule)
    other = Net()
    same = multitask_backward(
        other.losses(other.hidden()), shared_params=other.shared(), primary=[0, 2]
    )
    assert_close(step.weights, same.weights)
    square = step.weights @ step.descent
    assert (step.descent[[0, 2]] >= square - 1e-9).all()
    assert step.descent[1] >= -1e-9


def test_a_regulariser_as_auxiliary_never_lengthens_the_weights():
    net = Net(tasks=1)
    theta = net.shared()
    for _ in range(20):
        net.zero_grad()
        length = sum(p.square().sum() for p in theta) / 2
        multitask_backward([*net.losses(net.hidden()), length], shared_params=theta)
        inner = sum((p * p.grad).sum() for p in theta)
        assert inner >= -1e-9
        with torch.no_grad():
            before = flat(theta).norm()
            for p in theta:
                p -= 0.05 * p.grad
            square = 0.05**2 * flat(p.grad for p in theta).square().sum()
            assert flat(theta).norm() ** 2 <= before**2 + square + 1e-12


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("method", ["veto", "protect_primary", "min_norm", "sum"])
@pytest.mark.parametrize("through", [False, True])
def test_a_common_loss_scale_only_scales_the_step(method, normalise, through):
    found = []
    for scale in (1.0, 65536.0):
        net = Net()
        hidden = net.hidden()
        losses = [scale * loss for loss in net.losses(hidden)]
        options = {"features": hidden} if through else {"shared_params": net.shared()}
        multitask_backward(losses, method=method, normalise=normalise, **options)
        found.append(flat(p.grad for p in net.parameters()) / scale)
    assert_close(*found)


def test_a_grad_scaler_takes_the_same_step_and_skips_an_overflow():
    net, plain = Net(dtype=torch.float32), Net(dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = [scaler.scale(loss) for loss in net.losses(net.hidden())]
    multitask_backward(losses, shared_params=net.shared(), nonfinite="pass")
    scaler.step(optimizer)
    scaler.update()
    multitask_backward(plain.losses(plain.hidden()), shared_params=plain.shared())
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    for tasks in (2, 3):
        optimizer.zero_grad()
        before = [p.clone() for p in net.parameters()]
        losses = [scaler.scale(loss) for loss in net.losses(net.hidden())[:tasks]]
        losses[1] = losses[1] * torch.inf
        step = multitask_backward(losses, shared_params=net.shared(), nonfinite="pass")
        assert step.weights.isnan().all()
        scaler.step(optimizer)
        scaler.update()
        for p, q in zip(net.parameters(), before, strict=True):
            assert torch.equal(p, q)
    assert scaler.get_scale() == 256  # halved twice


def test_under_autocast_half_precision_features_are_weighed_in_float64():
    net = Net(tasks=2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = net.hidden()
        assert hidden.dtype == torch.bfloat16
        losses = net.losses(hidden)
    step = multitask_backward(losses, features=hidden)
    assert step.gram.dtype == step.weights.dtype == torch.float64
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())


def test_the_gram_matrix_reads_every_number_once_whatever_the_sizes():
    random = torch.Generator().manual_seed(0)
    sizes = (3, CHUNK + 5, 2 * CHUNK, 1)
    gradients = [[torch.randn(n, generator=random) for n in sizes] for _ in range(3)]
    gradients[1][1] = None
    G = torch.stack(
        [
            torch.cat([torch.zeros(n) if g is None else g for n, g in zip(sizes, row, strict=True)])
            for row in gradients
        ]
    ).double()
    torch.testing.assert_close(gram_matrix(gradients), G @ G.T, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_gram_matrix_neither_overflows_nor_underflows(dtype):
    big = float(torch.finfo(dtype).max) / 4
    tiny = float(torch.finfo(dtype).smallest_normal)
    for value in (big, tiny):
        g = torch.full((100,), value, dtype=dtype)
        expected = 100 * g[0].double() ** 2
        gram = gram_matrix([[g], [-g]])
        torch.testing.assert_close(gram[0], torch.stack([expected, -expected]), rtol=1e-12, atol=0)


def test_no_gradient_is_flattened_together():
    """Peak of what is allocated at a time: nothing as large as all gradients of a task."""
    gradients = [[torch.ones(CHUNK) for _ in range(8)] for _ in range(2)]
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        gram_matrix(gradients)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 2 * CHUNK * 8  # one buffer for two tasks, not 8 · CHUNK numbers


def test_a_nan_is_laid_at_its_task_and_leaves_the_gradients_alone():
    net = Net()
    losses = net.losses(net.hidden())
    losses[2] = losses[2] * torch.nan
    with pytest.raises(ValueError, match=r"gradient of task 2 .* nan"):
        multitask_backward(losses, shared_params=net.shared())
    assert all(p.grad is None for p in net.shared())


def test_weights_tied_between_encoder_and_head_are_found():
    net = Net()
    hidden = net.hidden()
    losses = net.losses(hidden)
    losses[1] = losses[1] + (hidden @ net.encoder[2].weight).mean()
    with pytest.raises(ValueError, match=r"task 1 reaches a shared parameter of shape \(5, 8\)"):
        multitask_backward(losses, features=hidden, shared_params=net.shared())


def test_weights_tied_to_the_encoder_are_found_without_a_list_of_shared_parameters():
    net = Net()
    hidden = net.hidden()
    losses = net.losses(hidden)
    losses[2] = losses[2] + net.encoder[0].bias.sum()
    with pytest.raises(ValueError, match=r"task 2 reaches a shared parameter of shape \(8,\)"):
        multitask_backward(losses, features=hidden)
    assert all(p.grad is None for p in net.parameters())


def test_features_made_from_one_another_or_given_twice_are_refused():
    net = Net()
    first = net.hidden()
    second = first.tanh()
    losses = net.losses(second)
    with pytest.raises(ValueError, match=r"features\[0\] .* what another feature was made from"):
        multitask_backward(losses, features=[first, second])
    with pytest.raises(ValueError, match=r"features\[1\] is in features twice"):
        multitask_backward(losses, features=[second, second])
    left, right = first.chunk(2, dim=1)  # two outputs of one operation are no such pair
    losses = [(left.sum(1) - 1).square().mean(), (right.sum(1) + left[:, 0]).square().mean()]
    multitask_backward(losses, features=[left, right], method="sum", retain_graph=True)
    found = shared_gradient(net)
    net.zero_grad()
    sum(losses).backward()
    assert_close(found, shared_gradient(net))


def test_a_parameter_listed_twice_counts_once():
    once, twice = Net(), Net()
    for net, times in ((once, 1), (twice, 2)):
        step = multitask_backward(
            net.losses(net.hidden()),
            shared_params=net.shared() * times,
            task_params=list(net.heads.parameters()) * times,
        )
        net.gram = step.gram
    assert_close(twice.gram, once.gram)
    for p, q in zip(twice.parameters(), once.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_a_parameter_of_two_tasks_is_called_shared():
    net = Net()
    pooler = nn.Linear(5, 5).double()
    losses = net.losses(pooler(net.hidden()))
    heads = [*net.heads.parameters(), *pooler.parameters()]
    with pytest.raises(ValueError, match=r"task_params\[6\] is reached by tasks 0 and 1"):
        multitask_backward(losses, shared_params=net.shared(), task_params=heads)


def test_listed_heads_get_their_own_gradient_and_others_nothing():
    for through in (True, False):
        net = Net()
        hidden = net.hidden()
        options = {"features": hidden} if through else {"shared_params": net.shared()}
        listed = [*net.heads[0].parameters(), *net.heads[1].parameters()]
        multitask_backward(net.losses(hidden), task_params=listed, **options)
        assert all(p.grad is not None for p in listed)
        assert all(p.grad is None for p in net.heads[2].parameters())


def call(net, losses=None, **options):
    losses = net.losses(net.hidden()) if losses is None else losses
    return multitask_backward(losses, **{"shared_params": net.shared()} | options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"losses": torch.tensor(3.0, requires_grad=True)}, TypeError, "list with one scalar"),
        ({"losses": [torch.ones(2, requires_grad=True)]}, ValueError, r"task 0 .* shape \(2,\)"),
        ({"losses": [torch.ones(())]}, ValueError, "task 0 does not require a gradient"),
        ({"losses": []}, ValueError, "must not be empty"),
        ({"shared_params": []}, ValueError, "holds no tensor"),
        ({"shared_params": None}, TypeError, "give shared_params"),
        ({"shared_params": nn.Sequential(nn.Tanh())}, TypeError, r"got Tanh; give module\.param"),
        ({"features": torch.ones(7, 5)}, ValueError, r"features\[0\] .* frozen, or ran under"),
        ({"method": lambda K: torch.ones(5)}, ValueError, "3 weights for 3 tasks, got shape"),
        ({"method": "sum", "primary": 1}, ValueError, "primary belongs to"),
        ({"method": min_norm_weights, "normalise": True}, ValueError, "normalise belongs to"),
        ({"primary": 3}, ValueError, "between 0 and 2, got 3"),
    ],
)
def test_bad_input_is_named(options, error, message):
    with pytest.raises(error, match=message):
        call(Net(), **options)


def test_a_loss_without_the_features_is_named():
    net = Net()
    with pytest.raises(ValueError, match="task 0 does not depend on the features"):
        multitask_backward(net.losses(net.hidden()), features=net.hidden())


def test_the_number_of_tasks_is_kept_and_overlapping_lists_are_refused():
    net = Net()
    gradients = MultiTaskGradients(net.shared())
    gradients.add(net.losses(net.hidden()))
    with pytest.raises(ValueError, match="3 before, now 2"):
        gradients.add(net.losses(net.hidden())[:2])
    with pytest.raises(ValueError, match="in shared_params and in task_params"):
        MultiTaskGradients(net.shared(), task_params=net.shared())


def test_sparse_gradients_are_refused():
    table = nn.Embedding(5, 3, sparse=True)
    losses = [table(torch.tensor([1, 2])).sum(), table(torch.tensor([2])).square().sum()]
    with pytest.raises(ValueError, match="sparse=False"):
        multitask_backward(losses, shared_params=table.parameters())


def test_a_step_is_immutable():
    step = MultiTaskStep(torch.ones(1), torch.ones(1, 1))
    with pytest.raises(AttributeError):
        step.weights = torch.zeros(1)
