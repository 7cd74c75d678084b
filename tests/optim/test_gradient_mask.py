"""ChildTuning: random, fixed and update masks on any optimizer."""

import copy
import io
import math
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

from kexue.optim import Lion
from kexue.optim.gradient_mask import GradientMask, random_mask
from kexue.optim.gradient_mask.names import NUMBERED_BLOCKS, choose, plain_name
from naive.gradient_mask import NaiveAdamW, naive_masked_sum, naive_sgd

F64 = torch.float64
THETA, GRADIENTS = [0.1, -0.2, 0.3], [[1.0, 2.0, -1.0], [0.5, -1.0, 0.2]]
MASKS = [[1, 0, 1], [0, 1, 1]]


class GivenMask(GradientMask):
    """Takes its masks from the list of steps instead of drawing them."""

    def mask(self, name):
        return torch.tensor(MASKS[self.step], dtype=torch.int16)


def vector(values=THETA):
    return nn.Parameter(torch.tensor(values, dtype=F64))


def walk(optimizer, parameter, gradients):
    """The parameter after each step with a given gradient."""
    path = []
    for gradient in gradients:
        parameter.grad = torch.as_tensor(gradient, dtype=parameter.dtype).clone()
        optimizer.step()
        path.append(parameter.detach().clone())
    return path


def worked(make, mode="random", **options):
    theta = vector()
    optimizer = make([theta])
    GivenMask(optimizer, mode, keep_prob=0.5, include="", **options)
    return walk(optimizer, theta, GRADIENTS)


def close(found, expected, atol=1e-10):
    expected = torch.tensor(expected, dtype=F64)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=atol)


def network(seed=0):
    """A stack of two blocks and a head, float64."""
    torch.manual_seed(seed)
    model = nn.Module()
    model.embed = nn.Linear(6, 8).double()
    model.layer = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]).double()
    model.head = nn.Linear(8, 3).double()
    model.forward = lambda x: model.head(
        model.layer[1](model.layer[0](model.embed(x).tanh()).tanh()).tanh()
    )
    return model


BLOCKS = {"layer.0.weight", "layer.0.bias", "layer.1.weight", "layer.1.bias"}


def train(model, optimizer, steps=3, seed=0, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        x = torch.randn(5, 6, dtype=F64, generator=generator)
        optimizer.zero_grad()
        model.forward(x).square().mean().backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def masks_for(model, share=0.5, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(p.shape, generator=generator) < share
        for name, p in model.named_parameters()
        if name in BLOCKS
    }


# The worked numbers


def test_the_worked_sgd_step():
    path = worked(lambda p: torch.optim.SGD(p, lr=0.1))
    close(path[0], [-0.1, -0.2, 0.5])
    close(path[1], [-0.1, 0.0, 0.46])


def test_the_worked_momentum_step_moves_an_entry_that_is_masked():
    path = worked(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    close(path[1], [-0.28, 0.0, 0.64])


def test_the_worked_update_step_does_not():
    path = worked(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), mode="update")
    close(path[1], [-0.1, -0.36, 0.64])


def test_the_worked_adamw_of_the_authors_code():
    path = worked(lambda p: NaiveAdamW(p, lr=0.01, weight_decay=0.01))
    close(path[0], [0.089991158096, -0.199980000000, 0.309968841904], atol=5e-13)
    close(path[1], [0.083282352483, -0.192519495546, 0.315047515506], atol=5e-13)


def test_torch_s_adamw_differs_from_it_in_the_sixth_digit():
    path = worked(lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-6, weight_decay=0.01))
    first = torch.tensor([0.089991158096, -0.199980000000, 0.309968841904], dtype=F64)
    assert 1e-7 < (path[0] - first).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["random", "update"])
def test_steps_are_those_of_the_naive_loop(mode):
    path = worked(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), mode=mode)
    expected = naive_sgd(THETA, GRADIENTS, MASKS, 0.5, 0.1, 0.9, update=mode == "update")
    for found, wanted in zip(path, expected, strict=True):
        close(found, wanted, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_masked_gradient_is_the_naive_one(dtype):
    p = nn.Parameter(torch.zeros(7, 5, dtype=dtype))
    optimizer = torch.optim.SGD([p], lr=1.0)
    mask = GradientMask(optimizer, keep_prob=0.25, include="")
    p.grad = torch.randn(7, 5).to(dtype)
    expected = naive_masked_sum(p.grad, mask.mask("parameter 0"), 0.25)
    optimizer.step()
    assert torch.equal(p.grad, expected)
    assert 0 < (expected == 0).sum() < 35


# What the masks are


@pytest.mark.parametrize("mode", ["random", "update"])
def test_keeping_everything_is_the_inner_optimizer_exactly(mode):
    plain, masked = network(), network()
    expected = train(plain, torch.optim.AdamW(plain.parameters(), lr=0.1))
    optimizer = torch.optim.AdamW(masked.named_parameters(), lr=0.1)
    GradientMask(optimizer, mode, keep_prob=1.0)
    assert_same(train(masked, optimizer), expected)


def test_fixed_masks_that_keep_everything_are_the_inner_optimizer_exactly():
    plain, masked = network(), network()
    expected = train(plain, torch.optim.AdamW(plain.parameters(), lr=0.1))
    optimizer = torch.optim.AdamW(masked.named_parameters(), lr=0.1)
    GradientMask(optimizer, "fixed", masks=masks_for(masked, share=1.1))
    assert_same(train(masked, optimizer), expected)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_the_share_that_is_kept_is_p_within_five_standard_errors(p):
    n = 400_000
    kept = random_mask((n,), p, seed=0).double().mean().item()
    assert abs(kept - p) < 5 * math.sqrt(p * (1 - p) / n) + 2**-17


def test_neighbours_tensors_and_steps_are_independent():
    n, limit = 400_000, 5 / math.sqrt(400_000)
    mask = random_mask((n,), 0.5, seed=0).double() * 2 - 1
    for lag in (1, 2, 3, 4, 8):
        assert abs((mask[:-lag] * mask[lag:]).mean()) < limit
    a, b = (nn.Parameter(torch.zeros(n)) for _ in range(2))
    drawer = GradientMask(torch.optim.SGD([a, b], lr=1), keep_prob=0.5, include="")
    drawn = [drawer.mask(f"parameter {i}").double() * 2 - 1 for i in range(2)]
    drawer.step = 1
    drawn.append(drawer.mask("parameter 0").double() * 2 - 1)
    drawer.seed = 1
    drawn.append(drawer.mask("parameter 0").double() * 2 - 1)
    for i in range(4):
        for j in range(i):
            assert abs((drawn[i] * drawn[j]).mean()) < limit


@pytest.mark.parametrize("p", [0.2, 0.7])
def test_random_masks_leave_the_mean_gradient_as_it_was(p):
    gradient = torch.linspace(-3, 3, 8, dtype=F64)
    theta = nn.Parameter(torch.zeros(12_500, 8, dtype=F64))
    optimizer = torch.optim.SGD([theta], lr=1.0)
    GradientMask(optimizer, keep_prob=p, include="")
    total, steps = torch.zeros(8, dtype=F64), 8
    for _ in range(steps):
        theta.grad = gradient.expand(12_500, 8).clone()
        optimizer.step()
        total += theta.grad.sum(0)
    draws = 12_500 * steps
    error = gradient.abs() * math.sqrt((1 - p) / p / draws)
    assert ((total / draws - gradient).abs() <= 5 * error + 1e-12).all()


@pytest.mark.parametrize(("p", "mean"), [(0.2, 0.5), (0.5, 2.0)])
def test_the_variance_grows_by_one_minus_p_over_p_times_the_second_moment(p, mean):
    n, sigma = 400_000, 1.5
    generator = torch.Generator().manual_seed(0)
    theta = nn.Parameter(torch.zeros(n, dtype=F64))
    optimizer = torch.optim.SGD([theta], lr=1.0)
    GradientMask(optimizer, keep_prob=p, include="")
    theta.grad = mean + sigma * torch.randn(n, dtype=F64, generator=generator)
    optimizer.step()
    expected = sigma**2 + (1 - p) / p * (mean**2 + sigma**2)
    deviations = (theta.grad - mean).square()
    error = deviations.std().item() / math.sqrt(n)
    assert abs(deviations.mean().item() - expected) < 5 * error


def test_rounding_p_to_sixteen_bits_keeps_the_mean():
    p = 3.4 / 65536  # becomes 3 / 65536
    optimizer = torch.optim.SGD([vector()], lr=1.0)
    mask = GradientMask(optimizer, keep_prob=p, include="")
    assert mask.keep_prob == 3 / 65536
    kept = random_mask((30_000_000,), p, seed=0).sum().item()
    assert abs(kept - 30_000_000 * mask.keep_prob) < 5 * math.sqrt(30_000_000 * p)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3, dtype=F64)
    mask.mask = lambda name: torch.ones(3, dtype=torch.int16)
    mask._mask_gradients()
    assert optimizer.param_groups[0]["params"][0].grad.tolist() == [65536 / 3] * 3


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (4, 5), (2, 0, 3)])
def test_any_shape_keeps_its_shape(shape):
    assert random_mask(shape, 0.5, seed=1).shape == shape
    assert random_mask(shape, 1.0, seed=1).eq(1).all()


def test_other_devices_draw_from_torch_with_all_sixteen_bits(monkeypatch):
    """What runs on a GPU, run with a CPU generator."""
    from kexue.optim.gradient_mask import mask

    elsewhere = torch.device("cuda")
    made = torch.Generator, torch.empty
    monkeypatch.setattr(torch, "Generator", lambda device: made[0]("cpu"))
    monkeypatch.setattr(torch, "empty", lambda *a, device=None, **k: made[1](*a, **k, device="cpu"))
    numbers = [mask._numbers(400_000, seed, elsewhere) for seed in (3, 3, 4)]
    assert torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers[0], numbers[2])
    quarters = numbers[0].view(-1, 4).double()
    assert (quarters.mean(0).abs() < 5 * 65536 / math.sqrt(12 * 100_000)).all()
    assert (quarters.amin(0) < -32700).all()
    assert (quarters.amax(0) > 32700).all()


def test_a_gradient_that_is_not_finite_is_not_hidden():
    theta = vector([1.0] * 64)
    optimizer = torch.optim.SGD([theta], lr=0.1)
    GradientMask(optimizer, keep_prob=0.5, include="")
    walk(optimizer, theta, [[math.nan] * 64])
    assert theta.isnan().all()


# Fixed masks


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_entries_that_fixed_masks_leave_out_never_move_and_the_others_do(name):
    model = network()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = OPTIMIZERS[name](model.named_parameters())
    masks = masks_for(model)
    GradientMask(optimizer, "fixed", masks=masks)
    after = train(model, optimizer, 5)
    for key, mask in masks.items():
        assert torch.equal(after[key][~mask], before[key][~mask])
        assert (after[key] != before[key])[mask].all()
    assert (after["head.weight"] != before["head.weight"]).all()  # no mask: free


def test_decay_moves_left_out_entries_only_when_asked_to():
    model = network()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.1, weight_decay=0.1)
    masks = masks_for(model)
    GradientMask(optimizer, "fixed", masks=masks, decay_masked=True)
    after = train(model, optimizer, 3)
    for key, mask in masks.items():
        expected = before[key][~mask] * 0.99**3
        torch.testing.assert_close(after[key][~mask], expected, rtol=1e-12, atol=0)


def test_kept_entries_take_the_inner_optimizer_s_step():
    """Where the gradient does not depend on what is frozen, masks change nothing for the kept."""
    theta, free = vector([0.1, -2.0, 3.0, 0.4]), vector([0.1, -2.0, 3.0, 0.4])
    optimizer = torch.optim.AdamW([("w", theta)], lr=0.01)
    keep = torch.tensor([True, False, True, False])
    GradientMask(optimizer, "fixed", masks={"w": keep})
    gradients = [[0.3, 1, -2, 0.5], [0.1, -1, 0.7, 2]]
    masked = walk(optimizer, theta, gradients)[-1]
    expected = walk(torch.optim.AdamW([free], lr=0.01), free, gradients)[-1]
    torch.testing.assert_close(masked[keep], expected[keep], rtol=1e-15, atol=1e-16)


@pytest.mark.parametrize(("optimizer", "same"), [("adam", True), ("sgd", False)])
def test_rescaling_fixed_masks_changes_sgd_and_not_adam_without_epsilon(optimizer, same):
    ends = []
    for rescale in (False, True):
        model = network()
        make = {
            "adam": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-300),
            "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
        }[optimizer]
        inner = make(model.named_parameters())
        GradientMask(inner, "fixed", masks=masks_for(model), rescale=rescale)
        ends.append(train(model, inner, 4))
    difference = max((ends[0][n] - ends[1][n]).abs().max().item() for n in BLOCKS)
    assert (difference < 1e-12) == same


def test_fixed_masks_know_their_share():
    model = network()
    masks = masks_for(model)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    mask = GradientMask(optimizer, "fixed", masks=masks)
    kept = sum(int(m.sum()) for m in masks.values())
    assert mask.keep_prob == kept / sum(m.numel() for m in masks.values())


# Adam's law and what moves


@pytest.mark.parametrize(
    ("p", "published"), [(0.1, 0.3155), (0.2, 0.4467), (0.3, 0.5471), (0.5, 0.7068)]
)
def test_adam_s_mean_step_shrinks_by_the_root_of_p(p, published):
    theta = nn.Parameter(torch.zeros(1000, dtype=F64))
    optimizer = torch.optim.Adam([theta], lr=1.0, eps=1e-300)
    GradientMask(optimizer, keep_prob=p, include="")
    for step in range(5000):
        theta.grad = torch.ones_like(theta)
        optimizer.step()
        if step == 999:
            start = theta.detach().clone()
    drift = (start - theta.detach()) / 4000
    error = drift.std().item() / math.sqrt(1000)
    assert abs(drift.mean().item() - math.sqrt(p)) < 5 * error + 0.01 * math.sqrt(p)
    assert abs(drift.mean().item() - published) < 0.01


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_update_masks_move_a_share_p_in_each_step_even_with_momentum(name):
    n, p = 20_000, 0.3
    theta = nn.Parameter(torch.randn(n, dtype=F64, generator=torch.Generator().manual_seed(0)))
    optimizer = OPTIMIZERS[name]([theta])
    mask = GradientMask(optimizer, "update", keep_prob=p, include="")
    for step in range(4):
        before, drawn = theta.detach().clone(), mask.mask("parameter 0").bool()
        generator = torch.Generator().manual_seed(step)
        theta.grad = torch.randn(n, dtype=F64, generator=generator)
        optimizer.step()
        moved = theta.detach() != before
        assert torch.equal(moved, drawn)
        assert abs(moved.double().mean() - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_gradient_masks_with_momentum_move_more_and_more_entries():
    n, p = 20_000, 0.3
    theta = nn.Parameter(torch.zeros(n, dtype=F64))
    optimizer = OPTIMIZERS["sgd"]([theta])
    GradientMask(optimizer, keep_prob=p, include="")
    for step in range(1, 5):
        before = theta.detach().clone()
        theta.grad = torch.ones_like(theta)
        optimizer.step()
        share, expected = (theta.detach() != before).double().mean().item(), 1 - (1 - p) ** step
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n) + 1e-4


def test_update_masks_rescale_the_decay_as_well_and_only_if_asked():
    for rescale, factor in ((None, 4.0), (False, 1.0)):
        theta = vector([1.0] * 1000)
        optimizer = torch.optim.SGD([theta], lr=0.1, weight_decay=0.1)
        GradientMask(optimizer, "update", keep_prob=0.25, include="", rescale=rescale)
        walk(optimizer, theta, [[0.0] * 1000])
        values = theta.unique().tolist()
        assert values == pytest.approx([1 - 0.01 * factor, 1.0], abs=1e-12)


# Where masks come from: seed, step and name


def grouped(model, groups):
    names = list(dict(model.named_parameters()))
    parts = [
        {"params": [(n, p) for n, p in model.named_parameters() if names.index(n) % groups == k]}
        for k in range(groups)
    ]
    return torch.optim.SGD(parts[::-1], lr=0.1, momentum=0.9)


@pytest.mark.parametrize("mode", ["random", "update"])
def test_masks_do_not_depend_on_the_groups(mode):
    ends = []
    for groups in (1, 2, 5):
        model = network()
        optimizer = grouped(model, groups)
        GradientMask(optimizer, mode, keep_prob=0.3)
        ends.append(train(model, optimizer))
    assert_same(ends[1], ends[0])
    assert_same(ends[2], ends[0])


def test_names_may_come_from_the_model_and_wrappers_do_not_change_them():
    ends = []
    for kind in ("named", "model", "wrapped"):
        model = network()
        named = kind == "named"
        optimizer = torch.optim.SGD(
            model.named_parameters() if named else model.parameters(), lr=0.1
        )
        wrapper = model
        if kind == "wrapped":
            wrapper = nn.Module()
            wrapper.module = nn.Module()
            wrapper.module._orig_mod = model
        mask = GradientMask(optimizer, keep_prob=0.3, model=None if named else wrapper)
        assert set(mask.parameters) == BLOCKS
        ends.append(train(model, optimizer))
    assert_same(ends[1], ends[0])
    assert_same(ends[2], ends[0])


def test_the_seed_decides_and_nothing_else():
    ends = []
    for seed in (0, 0, 1):
        model = network()
        torch.manual_seed(len(ends))
        np.random.seed(len(ends))  # noqa: NPY002
        optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
        GradientMask(optimizer, keep_prob=0.3, seed=seed)
        ends.append(train(model, optimizer))
    assert_same(ends[1], ends[0])
    assert not torch.equal(ends[2]["layer.0.weight"], ends[0]["layer.0.weight"])


def test_drawing_masks_leaves_the_global_generators_alone():
    state, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    random_mask((100,), 0.5, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpys).all()  # noqa: NPY002


def test_the_default_rule_is_the_authors_on_bert_and_leaves_every_head_free():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
    )
    names = [name for name, _ in BertForSequenceClassification(config).named_parameters()]
    assert choose(names, NUMBERED_BLOCKS, None) == [name for name in names if "layer" in name]
    others = {
        "transformer.h.0.attn.weight": True,
        "model.layers.11.mlp.weight": True,
        "encoder.block.0.layer.1.DenseReluDense.wi.weight": True,
        "blocks.3.norm1.weight": True,
        "branch.0.weight": False,
        "output_layer.weight": False,
        "decoder.final_layer_norm.weight": False,
        "classifier.weight": False,
        "0.weight": False,
    }
    assert {n for n in others if re.search(NUMBERED_BLOCKS, n)} == {n for n in others if others[n]}


def test_include_and_exclude_choose_by_name():
    model = network()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    mask = GradientMask(optimizer, keep_prob=0.3, include="", exclude="^head|bias")
    assert set(mask.parameters) == {"embed.weight", "layer.0.weight", "layer.1.weight"}
    mask.remove()
    model.layer[0].requires_grad_(False)
    assert set(GradientMask(optimizer, keep_prob=0.3).parameters) == {
        "layer.1.weight",
        "layer.1.bias",
    }


def test_what_has_no_gradient_is_left_alone():
    model = network()
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.1)
    for mode in ("random", "update"):
        mask = GradientMask(optimizer, mode, keep_prob=0.3)
        optimizer.zero_grad()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.step()
        assert_same({n: p.detach() for n, p in model.named_parameters()}, before)
        mask.remove()


# In a training loop


def test_the_mask_is_drawn_once_a_step_however_many_batches_were_accumulated():
    theta = vector([0.0] * 100)
    optimizer = torch.optim.SGD([theta], lr=1.0)
    mask = GradientMask(optimizer, keep_prob=0.5, include="")
    drawn = mask.mask("parameter 0").bool()
    for _ in range(3):
        (theta.sum()).backward()
    optimizer.step()
    assert torch.equal(theta.detach() != 0, drawn)
    assert mask.step == 1
    assert theta.grad.unique().tolist() == [0.0, 6.0]  # readers after the step see it masked


@pytest.mark.parametrize("positional", [True, False])
@pytest.mark.parametrize("mode", ["random", "update", "fixed"])
def test_a_closure_gives_the_same_steps(mode, positional):
    ends = []
    for closing in (False, True):
        model = network()
        optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.1)
        kind = {"masks": masks_for(model)} if mode == "fixed" else {"keep_prob": 0.3}
        GradientMask(optimizer, mode, **kind)
        for _ in range(3):

            def closure(model=model, optimizer=optimizer):
                optimizer.zero_grad()
                loss = model.forward(torch.ones(2, 6, dtype=F64)).square().mean()
                loss.backward()
                return loss

            if not closing:
                closure()
                optimizer.step()
            else:
                loss = optimizer.step(closure) if positional else optimizer.step(closure=closure)
                assert loss.item() > 0
        ends.append({n: p.detach().clone() for n, p in model.named_parameters()})
    assert_same(ends[1], ends[0])


def test_every_evaluation_within_a_step_of_lbfgs_has_the_same_mask():
    theta = vector([5.0] * 50)
    optimizer = torch.optim.LBFGS([theta], lr=0.5, max_iter=5)
    mask = GradientMask(optimizer, keep_prob=0.5, include="")
    drawn = mask.mask("parameter 0").bool()
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = theta.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(calls) > 2
    assert torch.equal(theta.detach() != 5, drawn)


def test_a_gradient_scaler_unscales_and_clips_before_the_mask():
    ends = []
    for scaled in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
        mask = GradientMask(optimizer, keep_prob=0.3)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        for step in range(3):
            optimizer.zero_grad()
            loss = model.forward(torch.ones(2, 6, dtype=F64)).square().mean()
            if scaled and step == 1:
                loss = loss * math.inf  # an overflow: the scaler skips the step, the mask too
            scaler.scale(loss).backward()
            if not scaled and step == 1:
                continue
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        ends.append({n: p.detach().clone() for n, p in model.named_parameters()})
        assert mask.step == 2
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("mode", ["random", "update", "fixed"])
def test_a_fused_optimizer_unscales_and_skips_by_itself(mode):
    ends = []
    for scaled in (False, True):
        model = network().float()
        optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.01, fused=True)
        options = {"masks": masks_for(model)} if mode == "fixed" else {"keep_prob": 0.3}
        mask = GradientMask(optimizer, mode, **options)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        for overflow in (False, True, False):
            optimizer.zero_grad()
            loss = model.forward(torch.ones(2, 6)).square().mean()
            if scaled:
                scaler.scale(loss * math.inf if overflow else loss).backward()
                scaler.step(optimizer)
                scaler.update()
            elif overflow:
                mask.step += 1  # the step is skipped, its masks are used up
            else:
                loss.backward()
                optimizer.step()
        ends.append({n: p.detach().clone() for n, p in model.named_parameters()})
        assert mask.step == 3
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["random", "update", "fixed"])
def test_it_works_under_autocast(mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.1)
    keep = torch.eye(8, dtype=torch.bool)
    options = {"masks": {"0.weight": keep}} if mode == "fixed" else {"keep_prob": 0.5}
    mask = GradientMask(optimizer, mode, include="^0.weight", **options)
    drawn, before = mask.mask("0.weight").bool(), model[0].weight.detach().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randn(4, 8)).float().square().mean()
        loss.backward()
        optimizer.step()
    moved = model[0].weight.detach() != before
    if mode != "random":  # where AdamW's decay moves the others
        assert torch.equal(moved, drawn)
    assert moved.any()


def test_removing_the_mask_gives_the_optimizer_back():
    plain, model = network(), network()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    GradientMask(optimizer, keep_prob=0.3).remove()
    expected = train(plain, torch.optim.SGD(plain.named_parameters(), lr=0.1))
    assert_same(train(model, optimizer), expected)
    assert "gradient_mask" not in optimizer.state_dict()
    GradientMask(optimizer, keep_prob=0.3)


def test_the_wrapper_of_accelerate_is_seen_through():
    from accelerate import Accelerator

    model = network()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    wrapped = Accelerator(cpu=True).prepare_optimizer(optimizer)
    mask = GradientMask(wrapped, keep_prob=0.3)
    assert mask.optimizer is optimizer
    train(model, wrapped)
    assert mask.step == 3


# State


@pytest.mark.parametrize("mode", ["random", "update", "fixed"])
def test_a_resumed_run_is_the_uninterrupted_one(mode):
    def start():
        model = network()
        optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.05)
        return model, optimizer

    def attach(model, optimizer, seed, first):
        if mode == "fixed":
            return GradientMask(optimizer, mode, masks=masks_for(model) if first else None)
        return GradientMask(optimizer, mode, keep_prob=0.3, seed=seed)

    model, optimizer = start()
    attach(model, optimizer, 7, True)
    expected = train(model, optimizer, 6)

    model, optimizer = start()
    attach(model, optimizer, 7, True)
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    model, optimizer = start()
    mask = attach(model, optimizer, 8, False)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert mask.step == 3
    assert_same(train(model, optimizer, 3, start=3), expected)


def test_a_state_without_masks_loads_and_a_plain_optimizer_reads_a_masked_state():
    model, other = network(), network()
    masked = torch.optim.AdamW(model.named_parameters(), lr=0.1)
    GradientMask(masked, keep_prob=0.3)
    train(model, masked)
    plain = torch.optim.AdamW(other.named_parameters(), lr=0.1)
    plain.load_state_dict(masked.state_dict())
    masked.load_state_dict(plain.state_dict())
    assert set(plain.state_dict()) == {"state", "param_groups"}


def test_a_state_of_another_mode_or_share_is_refused():
    optimizer = torch.optim.SGD([vector()], lr=0.1)
    mask = GradientMask(optimizer, keep_prob=0.5, include="")
    for key, value in (("mode", "update"), ("keep_prob", 0.25)):
        with pytest.raises(ValueError, match=f"the saved mask has {key}={value!r}"):
            mask.load_state_dict(mask.state_dict() | {key: value})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("mode", ["random", "fixed"])
def test_a_copy_of_the_mask_hangs_on_the_copied_optimizer(copied, mode):
    theta = vector([0.0] * 100)
    optimizer = torch.optim.SGD([("w", theta)], lr=1.0)
    options = {"masks": {"w": torch.arange(100) < 30}} if mode == "fixed" else {"keep_prob": 0.5}
    original = GradientMask(optimizer, mode, **{"include": ""} | options)
    walk(optimizer, theta, [[1.0] * 100])
    mask = copied(original)
    assert mask.optimizer is not optimizer
    [other] = mask.optimizer.param_groups[0]["params"]
    ends = [walk(o, p, [[1.0] * 100])[0] for o, p in ((optimizer, theta), (mask.optimizer, other))]
    assert torch.equal(*ends)
    assert ends[0].unique().numel() == (2 if mode == "fixed" else 3)
    assert original.step == mask.step == 2
    copy.copy(original)  # on the same optimizer, which has a mask
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    original.remove()
    detached = copied(original)
    [free] = detached.optimizer.param_groups[0]["params"]
    assert walk(detached.optimizer, free, [[1.0] * 100])[0].ne(ends[0]).all()


def test_a_copy_of_the_optimizer_has_no_mask():
    theta = vector()
    optimizer = torch.optim.SGD([theta], lr=0.1)
    GradientMask(optimizer, keep_prob=0.5, include="")
    assert "gradient_mask" not in copy.deepcopy(optimizer).state_dict()


# Bad input


def refused(message, *, optimizer=None, mode="random", error=ValueError, **options):
    optimizer = optimizer or torch.optim.SGD(network().named_parameters(), lr=0.1)
    with pytest.raises(error, match=message):
        GradientMask(optimizer, mode, **options)


@pytest.mark.parametrize("p", [0.0, -0.1, 1.1, math.nan, None])
def test_a_share_outside_zero_and_one_is_refused(p):
    refused(f"not a drop rate\\), got {p}", keep_prob=p)


def test_what_does_not_fit_is_refused():
    refused("at least 2\\^-16, got 1e-06", keep_prob=1e-6)
    refused("mode must be 'random', 'fixed' or 'update', got 'F'", mode="F", keep_prob=0.3)
    refused("give keep_prob=0.3 to topk_masks", mode="fixed", keep_prob=0.3)
    refused("belong to mode=\"fixed\", got mode='random'", keep_prob=0.3, masks={})
    refused('belong to mode="fixed"', mode="update", keep_prob=0.3, decay_masked=True)
    refused("must be a torch.optim.Optimizer", optimizer=network(), keep_prob=0.3, error=TypeError)


def test_when_no_name_matches_the_message_shows_the_names_and_the_way_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    refused(
        r"no trainable parameter matches.*0.weight, 0.bias, 1.weight, 1.bias, ….*include='' for "
        "all, and exclude a new head",
        optimizer=optimizer,
        keep_prob=0.3,
    )


def test_an_optimizer_without_names_asks_for_the_model():
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    refused(r"shapes \(8, 6\), .* have no names; give model=", optimizer=optimizer, keep_prob=0.3)
    masks = {"0": torch.ones(1, dtype=torch.bool)}
    refused("have no names", optimizer=optimizer, mode="fixed", masks=masks)
    refused("have no names", optimizer=optimizer, keep_prob=0.3, model=network(1))


def test_masks_that_do_not_fit_are_refused():
    model = network()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    whole = torch.ones(8, 8, dtype=torch.bool)
    for masks, message in (
        ({"bert.layer.0.weight": whole}, "masks has 'bert.layer.0.weight', which is no parameter"),
        ({"layer.0.weight": whole[:2]}, r"torch.bool of shape \(8, 8\), got torch.bool of \(2, 8"),
        ({"layer.0.weight": whole.float()}, r"got torch.float32 of \(8, 8\)"),
        ({"layer.0.weight": ~whole}, "keep no entry at all"),
        ({}, "keep no entry at all"),
    ):
        refused(message, optimizer=optimizer, mode="fixed", masks=masks)


def test_two_parameters_of_one_name_are_refused_and_a_module_of_both_tells_them_apart():
    first, second = network(), network(1)
    groups = [{"params": list(model.named_parameters())} for model in (first, second)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    refused("two parameters .* are called embed.weight; give model=", optimizer=optimizer,
            keep_prob=0.3)  # fmt: skip
    both = nn.ModuleDict({"first": first, "second": second})
    found = set(GradientMask(optimizer, keep_prob=0.3, model=both).parameters)
    assert found == {f"{part}.{name}" for part in both for name in BLOCKS}


def test_gradients_that_are_used_in_backward_are_not_left_unmasked_in_silence():
    model = nn.Linear(3, 2)
    optimizer = Lion(model.named_parameters(), lr=0.1)
    GradientMask(optimizer, keep_prob=0.3, include="")
    with optimizer.step_in_backward(model):
        model(torch.ones(1, 3)).sum().backward()
        with pytest.raises(ValueError, match="step_in_backward uses each gradient before"):
            optimizer.step()


def test_a_seed_from_numpy_is_that_number():
    masks = []
    for seed in (3, np.int64(3)):
        mask = GradientMask(torch.optim.SGD([vector()], lr=1), keep_prob=0.5, include="", seed=seed)
        masks.append(mask.state_dict())
    assert masks[0] == masks[1]
    assert type(masks[1]["seed"]) is int


def test_a_second_mask_on_the_same_optimizer_is_refused():
    optimizer = torch.optim.SGD([vector()], lr=0.1)
    GradientMask(optimizer, keep_prob=0.5, include="")
    refused("has a GradientMask already", optimizer=optimizer, keep_prob=0.5, include="")


def test_sparse_gradients_are_refused_by_name_and_update_masks_take_them():
    for mode in ("random", "update"):
        table = nn.Embedding(5, 3, sparse=True)
        optimizer = torch.optim.SGD(table.named_parameters(), lr=0.1)
        mask = GradientMask(optimizer, mode, keep_prob=0.5, include="")
        drawn, before = mask.mask("weight").bool(), table.weight.detach().clone()
        table(torch.tensor([1, 2])).sum().backward()
        if mode == "random":
            with pytest.raises(ValueError, match="weight has a sparse gradient"):
                optimizer.step()
            continue
        optimizer.step()
        moved = table.weight.detach() != before
        assert torch.equal(moved[1:3], drawn[1:3])
        assert not moved[[0, 3, 4]].any()


def test_fixed_masks_that_never_came_stop_the_first_step():
    model = network()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    GradientMask(optimizer, "fixed")
    with pytest.raises(ValueError, match="has no masks yet"):
        train(model, optimizer, 1)


def test_plain_names():
    assert plain_name("module.module.weight") == "module.weight"
    assert plain_name("encoder._orig_mod.layer.0.bias") == "encoder.layer.0.bias"
