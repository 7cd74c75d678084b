"""AdaFactor goes on where Hugging Face's class stopped, and says so where it cannot."""

import copy
import io

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor as HuggingFace

from kexue.optim.adafactor import AdaFactor
from kexue.optim.adafactor_state import from_hugging_face

SHAPES = [(6, 5), (5, 5), (3, 2, 4), (7,), (1, 4)]
FIXED = {"lr": 0.02, "relative_step": False}
UNSCALED = FIXED | {"scale_parameter": False}


def draws(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def parameters(values=None):
    return [nn.Parameter(v.detach().clone()) for v in values or [draws(*s) for s in SHAPES]]


def steps(optimizer, params, first, last):
    for t in range(first, last):
        for i, p in enumerate(params):
            p.grad = draws(*p.shape, seed=100 * t + i)
        optimizer.step()


def continued(options, steps_here=4, saved=lambda state: state):
    """Three steps there; then as many there as here: parameters there, here, and our optimizer."""
    theirs = parameters()
    peer = HuggingFace(theirs, **options)
    steps(peer, theirs, 1, 4)
    file = io.BytesIO()
    torch.save(peer.state_dict(), file)
    file.seek(0)
    ours = parameters(theirs)
    optimizer = AdaFactor(ours, factored_axes="last")
    optimizer.load_state_dict(saved(torch.load(file, weights_only=True)))
    steps(peer, theirs, 4, 4 + steps_here)
    steps(optimizer, ours, 4, 4 + steps_here)
    return theirs, ours, optimizer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"warmup_init": True},
        FIXED,
        FIXED | {"clip_threshold": 0.5, "decay_rate": -0.5, "eps": (1e-20, 0.1)},
        UNSCALED,
        UNSCALED | {"weight_decay": 0.1},
    ],
)
def test_the_trajectory_goes_on(options):
    theirs, ours, _ = continued(options)
    for there, here in zip(theirs, ours, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-12, atol=1e-12)


def test_with_steps_of_constant_size_the_momentum_goes_on_too():
    theirs, ours, _ = continued(UNSCALED | {"beta1": 0.9})
    for there, here in zip(theirs, ours, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [FIXED, {}])
def test_with_scaled_steps_the_momentum_goes_on_but_for_the_change_of_the_scale(options):
    theirs, ours, _ = continued(options | {"beta1": 0.9}, steps_here=2)
    for there, here, x in zip(theirs, ours, parameters(), strict=True):
        moved = (there - x).norm()
        assert 0 < (here - there).norm() < 0.02 * moved


def test_the_options_come_along_and_are_saved_as_ours():
    _, ours, optimizer = continued({})
    group = optimizer.state_dict()["param_groups"][0]
    assert group["lr"] is None
    assert (group["beta1"], group["beta2"], group["beta2_decay"]) == (0.0, None, 0.8)
    assert (group["min_dim_size_to_factor"], group["factored_axes"]) == (0, "last")
    assert "decay_rate" not in group
    assert "relative_step" not in group
    again = AdaFactor(ours)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[ours[0]]["step"].item() == 7


def test_the_averages_keep_their_place():
    theirs, ours, optimizer = continued({}, steps_here=0)
    assert optimizer.state[ours[0]]["row"].shape == (6, 1)
    assert optimizer.state[ours[0]]["col"].shape == (1, 5)
    assert optimizer.state[ours[2]]["row"].shape == (3, 2, 1)
    assert optimizer.state[ours[2]]["col"].shape == (3, 1, 4)
    assert optimizer.state[ours[3]]["v"].shape == (7,)
    assert [p.shape for p in theirs] == [p.shape for p in ours]


def test_half_parameters_get_their_state_in_float32():
    theirs = [nn.Parameter(draws(6, 5).bfloat16())]
    peer = HuggingFace(theirs, **FIXED)
    theirs[0].grad = draws(6, 5, seed=1).bfloat16()
    peer.step()
    ours = parameters(theirs)
    optimizer = AdaFactor(ours, factored_axes="last")
    optimizer.load_state_dict(copy.deepcopy(peer.state_dict()))
    assert optimizer.state[ours[0]]["row"].dtype == torch.float32
    wanted = peer.state[theirs[0]]["exp_avg_sq_row"]
    assert torch.equal(optimizer.state[ours[0]]["row"].squeeze(-1), wanted)


def change(**options):
    def changed(state):
        state["param_groups"][0].update(options)
        return state

    return changed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FIXED | {"weight_decay": 0.1}, r"decays by 0\.1 times RMS\(X\).*set its 'weight_decay'"),
        ({"scale_parameter": False}, "20 times shorter here"),
    ],
)
def test_what_would_train_otherwise_here_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        continued(options)


def test_a_momentum_of_steps_of_no_length_is_refused_and_the_way_out_works():
    options = UNSCALED | {"beta1": 0.9}
    with pytest.raises(ValueError, match=r"steps of length 0.*set 'lr' in the state_dict"):
        continued(options, saved=change(lr=0.0))
    continued(options, saved=change(lr=0.02))


def test_the_ways_out_of_the_other_refusals_work_too():
    continued(FIXED | {"weight_decay": 0.1}, saved=change(weight_decay=0.0))
    continued({"scale_parameter": False}, saved=change(relative_step=False, lr=1e-3))


def test_other_axes_are_refused():
    peer = HuggingFace(parameters(), **FIXED)
    with pytest.raises(ValueError, match="build it with factored_axes='last'"):
        AdaFactor(parameters()).load_state_dict(peer.state_dict())


def test_another_number_of_groups_is_refused():
    peer = HuggingFace([{"params": [p]} for p in parameters()], **FIXED)
    optimizer = AdaFactor(parameters(), factored_axes="last")
    with pytest.raises(ValueError, match=r"had 5 parameter groups.*has 1"):
        optimizer.load_state_dict(peer.state_dict())


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.AdamW])
def test_the_states_of_other_classes_are_foreign(kind):
    params = parameters()
    peer = kind(params)
    steps(peer, params, 1, 2)
    with pytest.raises(ValueError, match="not saved by AdaFactor"):
        AdaFactor(parameters(), factored_axes="last").load_state_dict(peer.state_dict())


def test_our_own_state_is_not_touched():
    state = AdaFactor(parameters()).state_dict()
    assert from_hugging_face(state, AdaFactor(parameters()).param_groups) is state
