"""S36: the decoupled decay, on any optimizer, in one process and in two."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from families.two_processes import alone_and_together
from kexue.losses.weissi import weissi_parameters, weissi_penalty
from kexue.optim.tiger import Tiger
from kexue.optim.weissi_decay import WeissiDecay, squared_norms


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def gradients(net, seed=0):
    torch.manual_seed(seed)
    x, y = torch.randn(6, 4, dtype=net[0].weight.dtype), torch.randint(3, (6,))
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()


OPTIMIZERS = {
    "sgd": lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
    "adam": lambda net: torch.optim.Adam(net.named_parameters(), lr=1e-2),
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), lr=torch.tensor(1e-2), foreach=False),
    "tiger": lambda net: Tiger(net, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_the_optimizers_step_and_then_the_decay(name):
    net, twin = network(), network()
    optimizer = OPTIMIZERS[name](net)
    other = OPTIMIZERS[name](twin)
    WeissiDecay(optimizer, weissi_parameters(net), 0.3)
    for step in range(5):
        gradients(net, step)
        gradients(twin, step)
        optimizer.step()
        other.step()
        rate = float(other.param_groups[0]["lr"])
        with torch.no_grad():
            for layer in (twin[0], twin[2]):
                layer.weight -= rate * 0.3 * layer.weight / layer.weight.square().sum()
        for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_under_plain_sgd_it_is_the_penalty_up_to_the_second_order():
    gaps = []
    for rate in (0.02, 0.01):
        net, twin = network(), network()
        optimizer = torch.optim.SGD(net.parameters(), lr=rate)
        WeissiDecay(optimizer, weissi_parameters(net), 0.3)
        gradients(net)
        optimizer.step()
        gradients(twin)
        weissi_penalty(twin, 0.3).backward()
        torch.optim.SGD(twin.parameters(), lr=rate).step()
        gaps.append((net[0].weight - twin[0].weight).norm().item())
    assert 3.5 < gaps[0] / gaps[1] < 4.5


def test_the_norm_falls_by_the_formula_and_every_layer_by_the_same():
    """|W|² falls by 2αλ1, up to (αλ1/|W|)²."""
    net, rate, lambda1 = network(), 0.01, 0.5
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    WeissiDecay(optimizer, weissi_parameters(net), lambda1)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    before = [layer.weight.norm().item() for layer in (net[0], net[2])]
    optimizer.step()
    for n, layer in zip(before, (net[0], net[2]), strict=True):
        after = layer.weight.norm().item()
        assert after == pytest.approx(n - rate * lambda1 / n, abs=1e-12)
        assert n**2 - after**2 == pytest.approx(2 * rate * lambda1, rel=0.01)


def test_each_group_decays_with_its_own_rate_and_schedule():
    net = network()
    groups = [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[2].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    WeissiDecay(optimizer, weissi_parameters(net), 0.3)
    start = [net[i].weight.norm().item() for i in (0, 2)]
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    first, second = (net[i].weight.norm().item() for i in (0, 2))
    assert first == pytest.approx(start[0] - 0.03 / start[0], abs=1e-12)
    assert second == start[1]


def test_biases_and_weights_without_a_gradient_stay():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    WeissiDecay(optimizer, weissi_parameters(net), 0.3)
    net[0].weight.grad = torch.zeros_like(net[0].weight)
    net[0].bias.grad = torch.zeros_like(net[0].bias)
    before = copy.deepcopy(net.state_dict())
    optimizer.step()
    changed = [name for name, value in net.state_dict().items() if not value.equal(before[name])]
    assert changed == ["0.weight"]


def test_it_is_taken_off_again():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    WeissiDecay(optimizer, weissi_parameters(net), 0.3).remove()
    before = net[0].weight.detach().clone()
    net[0].weight.grad = torch.zeros_like(before)
    optimizer.step()
    assert torch.equal(net[0].weight, before)


def test_a_reloaded_optimizer_goes_on_alike():
    found = []
    for resumed in (False, True):
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        WeissiDecay(optimizer, weissi_parameters(net), 0.1)
        for step in range(6):
            if resumed and step == 3:
                state = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
                net = network()
                net.load_state_dict(state[0])
                optimizer = torch.optim.Adam(net.parameters(), lr=1.0)
                optimizer.load_state_dict(state[1])
                WeissiDecay(optimizer, weissi_parameters(net), 0.1)
            gradients(net, step)
            optimizer.step()
        found.append(net.state_dict())
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])


def test_used_in_backward_every_weight_still_decays():
    found = []
    for early in (False, True):
        net = network()
        optimizer = Tiger(net, lr=1e-2)
        WeissiDecay(optimizer, weissi_parameters(net), 0.3)
        if early:
            optimizer.step_in_backward(net)
        gradients(net)
        optimizer.step()
        found.append(net[0].weight.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_decay(fused):
    net = network(torch.float32)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, fused=fused)
    WeissiDecay(optimizer, weissi_parameters(net), 0.3)
    scaler, before = torch.amp.GradScaler("cpu"), copy.deepcopy(net.state_dict())
    for factor, changes in ((torch.inf, False), (1.0, True)):
        net.zero_grad()
        scaler.scale(net(torch.ones(2, 4)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert net[0].weight.equal(before["0.weight"]) != changes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_of_low_precision_are_summed_in_float32(dtype):
    weight = torch.full((400, 400), 0.02, dtype=dtype)
    (found,) = squared_norms([weight])
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(weight.double().square().sum().item(), rel=1e-5)


def test_dtypes_may_mix():
    weights = [torch.full((2,), 3.0, dtype=d) for d in (torch.float64, torch.bfloat16)] * 2
    found = squared_norms(weights)
    assert [one.item() for one in found] == pytest.approx([18, 18, 18, 18], rel=1e-6)
    assert [one.dtype for one in found] == [torch.float64, torch.float32] * 2


# what is refused


def small(norm, lambda1=1.0, eps=0.0):
    net = network()
    with torch.no_grad():
        net[2].weight *= norm / net[2].weight.norm()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    decay = WeissiDecay(optimizer, net.named_parameters(), lambda1, eps=eps)
    decay.parameters = dict(weissi_parameters(net))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    return net, optimizer, decay


@pytest.mark.parametrize("norm", [0.0, 0.3])
def test_a_weight_that_would_end_is_named_and_nothing_has_decayed(norm):
    net, optimizer, _ = small(norm)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"2\.weight of shape \(3, 8\) is so close to zero"):
        optimizer.step()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_with_a_floor_it_becomes_zero_and_stays():
    net, optimizer, _ = small(0.3, eps=1e-3)
    optimizer.step()
    optimizer.step()
    assert net[2].weight.eq(0).all()
    assert net[0].weight.norm() > 1


def test_the_way_of_accelerators_is_the_same_and_tells_later():
    """`_shrink_there` reads no value; here it runs on a CPU."""
    for norm in (2.0, 0.3):
        net, optimizer, decay = small(norm)
        twin, other, _ = small(norm if norm > 1 else 5.0)
        decay._shrink_here = decay._shrink_there
        optimizer.step()
        other.step()
        torch.testing.assert_close(net[0].weight, twin[0].weight, rtol=1e-14, atol=0)
        if norm > 1:
            torch.testing.assert_close(net[2].weight, twin[2].weight, rtol=1e-14, atol=0)
            decay.check()
        else:
            assert net[2].weight.norm().item() == pytest.approx(0.3)
            with pytest.raises(ValueError, match=r"2\.weight of shape"):
                decay.check()
            decay.check()  # told once
    net, optimizer, decay = small(0.3)
    decay._shrink_here = decay._shrink_there
    for _ in range(99):
        optimizer.step()
    with pytest.raises(ValueError, match="so close to zero"):
        optimizer.step()


def test_what_does_not_fit_is_refused():
    net = network()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"lambda1 must be a number of at least 0, got -1"):
        WeissiDecay(sgd, weissi_parameters(net), -1.0)
    with pytest.raises(ValueError, match=r"w of shape \(2,\) is not in the optimizer"):
        WeissiDecay(sgd, {"w": torch.ones(2)}, 1.0)
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer"):
        WeissiDecay(net, weissi_parameters(net), 1.0)


# several processes

SCRIPT = """
import os, sys
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP
from kexue.losses.weissi import weissi_parameters
from kexue.optim.weissi_decay import WeissiDecay

together = "RANK" in os.environ
x = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
if together:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    x = x.chunk(2)[rank]

def train(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1)).double()
    model = net
    if together and kind == "fsdp":
        fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    elif together:
        model = DDP(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    WeissiDecay(optimizer, weissi_parameters(net), 0.3)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return {n: p.full_tensor() if hasattr(p, "full_tensor") else p.detach()
            for n, p in net.named_parameters()}

found = {kind: train(kind) for kind in ("ddp", "fsdp")}
torch.save(found, sys.argv[1] + (f".{rank}" if together else ".alone"))
if together:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.distributed
def test_two_processes_decay_as_one_with_ddp_and_with_shards(tmp_path):
    found = alone_and_together(SCRIPT, tmp_path)
    for rank in ("0", "1"):
        for kind in ("ddp", "fsdp"):
            for name, expected in found["alone"]["ddp"].items():
                torch.testing.assert_close(
                    found[rank][kind][name], expected, rtol=1e-12, atol=1e-13, msg=f"{kind} {name}"
                )
    assert math.isfinite(found["alone"]["ddp"]["0.weight"].sum())
