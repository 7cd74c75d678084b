"""Residual designs: the claims about them, one test each."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.nn.deepnorm import DeepNorm
from kexue.nn.residual import (
    AlphaRamp,
    LayerScale,
    PostNorm,
    PreNorm,
    ReZero,
    ScaledResidual,
    SkipInit,
    fixup_init_,
)
from kexue.nn.residual_sum import branch_output, float32_norm, weighted_sum

DIM = 6
TAKE_OUTPUTS = [
    PostNorm(DIM),
    DeepNorm(DIM, 1.7),
    ReZero(),
    SkipInit(0.375),
    LayerScale(DIM, 0.25),
    AlphaRamp(5),
]
ALL = [PreNorm(DIM), *TAKE_OUTPUTS]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def name(wrapper):
    return type(wrapper).__name__


def norm(x, eps=1e-5):
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()


FORMULAS = [
    (PostNorm(DIM), lambda x, f: norm(x + f(x))),
    (PreNorm(DIM), lambda x, f: x + f(norm(x))),
    (DeepNorm(DIM, 1.7), lambda x, f: norm(1.7 * x + f(x))),
    (ReZero(), lambda x, f: x + 0 * f(x)),
    (SkipInit(0.375), lambda x, f: x + 0.375 * f(x)),
    (LayerScale(DIM, 0.25), lambda x, f: x + 0.25 * f(x)),
    (AlphaRamp(5), lambda x, f: x + 0 * f(x)),
]


@pytest.mark.parametrize(("wrapper", "formula"), FORMULAS, ids=lambda one: name(one))
def test_each_wrapper_is_its_formula_in_value_and_gradient(wrapper, formula):
    wrapper, branch = copy.deepcopy(wrapper).double(), nn.Linear(DIM, DIM).double()
    found = []
    for function in (wrapper, formula):
        x = draw(2, 3, DIM).requires_grad_()
        branch.zero_grad()
        y = function(x, branch)
        (y * draw(2, 3, DIM, seed=1)).sum().backward()
        found.append((y.detach(), x.grad, branch.weight.grad.clone()))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrapper", TAKE_OUTPUTS, ids=name)
def test_the_output_of_the_branch_does_in_place_of_the_branch(wrapper):
    x, branch = draw(2, 3, DIM, dtype=torch.float32), nn.Linear(DIM, DIM)
    assert torch.equal(wrapper(x, branch), wrapper(x, branch(x)))


def test_pre_norm_refuses_an_output_and_says_what_it_needs():
    with pytest.raises(TypeError, match=r"must call the branch itself.*shape \(2, 6\)"):
        PreNorm(DIM)(torch.zeros(2, DIM), torch.zeros(2, DIM))


@pytest.mark.parametrize("wrapper", ALL, ids=name)
def test_a_branch_that_changes_the_shape_is_refused_instead_of_broadcast(wrapper):
    with pytest.raises(ValueError, match=r"shape \(2, 1\).*shape \(2, 6\)"):
        wrapper(torch.zeros(2, DIM), lambda h: h[:, :1])


def test_a_branch_that_returns_a_tuple_is_told_how_to_wrap_it():
    attention, x = nn.MultiheadAttention(DIM, 1, batch_first=True), torch.zeros(1, 2, DIM)
    with pytest.raises(TypeError, match=r"returned a tuple, not a tensor; wrap it"):
        branch_output(x, lambda h: attention(h, h, h))


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm, lambda dim: nn.LayerNorm(dim, 1e-12)])
@pytest.mark.parametrize("wrapper", [PostNorm, PreNorm])
def test_the_norm_is_chosen_by_its_class_or_by_a_function(wrapper, kind):
    made = wrapper(DIM, norm=kind)
    assert type(made.norm) is type(kind(DIM))
    assert made(torch.ones(2, DIM), nn.Identity()).shape == (2, DIM)


# What the designs do to a deep stack.


def emit(vectors):
    """Branches that ignore the stream and return given vectors."""
    return [lambda h, v=v: v.expand_as(h) for v in vectors]


@pytest.mark.parametrize("sigma2", [1.0, 0.25])
@pytest.mark.parametrize("layers", [1, 3, 12])
def test_post_norm_leaves_the_first_input_the_weight_of_a_geometric_series(layers, sigma2):
    dim = 16
    axes = torch.eye(dim, dtype=torch.float64) * dim**0.5  # orthogonal, of second moment 1
    wrapper = PostNorm(dim, norm=lambda d: nn.RMSNorm(d, eps=0.0)).double()
    x = axes[0]
    for branch in emit(axes[1 : layers + 1] * sigma2**0.5):
        x = wrapper(x, branch)
    weights = x / dim**0.5  # the coefficients of x_0, F_1, F_2, …
    shrink = (1 + sigma2) ** -0.5
    torch.testing.assert_close(weights[0].item(), shrink**layers, rtol=1e-12, atol=0)
    for i in range(1, layers + 1):
        expected = sigma2**0.5 * shrink ** (layers - i + 1)
        torch.testing.assert_close(weights[i].item(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(weights.square().sum().item(), 1.0, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sigma2", [1.0, 0.25])
def test_the_pre_norm_stream_grows_by_sigma_squared_per_branch(sigma2):
    dim = 16
    axes = torch.eye(dim, dtype=torch.float64) * dim**0.5
    wrapper, x = PreNorm(dim, norm=nn.RMSNorm).double(), axes[0]
    for i, branch in enumerate(emit(axes[1:] * sigma2**0.5), start=1):
        x = wrapper(x, branch)
        torch.testing.assert_close(x.square().mean().item(), 1 + i * sigma2, rtol=1e-12, atol=0)


class Stack(nn.Module):
    """Eight branches inside wrappers of one kind."""

    def __init__(self, make):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(DIM, 9), nn.ReLU(), nn.Linear(9, 9), nn.Linear(9, DIM))
            for _ in range(8)
        )
        self.wrappers = nn.ModuleList(make() for _ in self.branches)

    def forward(self, x):
        for wrapper, branch in zip(self.wrappers, self.branches, strict=True):
            x = wrapper(x, branch)
        return x


@pytest.mark.parametrize("make", [ReZero, SkipInit, lambda: AlphaRamp(9)])
def test_the_network_is_the_identity_at_the_start(make):
    x = draw(4, DIM, dtype=torch.float32)
    assert torch.equal(Stack(make)(x), x)


def test_rezero_starts_with_a_gradient_for_its_numbers_and_none_for_the_branches():
    stack = Stack(ReZero).double()
    x = draw(4, DIM).requires_grad_()
    (stack(x) * draw(4, DIM, seed=2)).sum().backward()
    assert all(wrapper.alpha.grad != 0 for wrapper in stack.wrappers)
    assert all((p.grad == 0).all() for p in stack.branches.parameters())
    assert torch.equal(x.grad, draw(4, DIM, seed=2))


def test_fixup_makes_the_network_the_identity_and_scales_the_inner_layers():
    stack = Stack(SkipInit)
    for wrapper in stack.wrappers:
        nn.init.ones_(wrapper.alpha)
    before = copy.deepcopy(stack.branches)
    fixup_init_(list(stack.branches))
    x = draw(4, DIM, dtype=torch.float32)
    assert torch.equal(stack(x), x)
    for old, new in zip(before, stack.branches, strict=True):
        for k in (0, 2):  # of m = 3 layers: 8^(−1/4)
            torch.testing.assert_close(new[k].weight, old[k].weight * 8**-0.25)
            assert torch.equal(new[k].bias, old[k].bias)
        assert not new[3].weight.any()
        assert not new[3].bias.any()


def test_fixup_counts_a_packed_projection_as_one_layer_and_takes_the_depth_it_is_given():
    branch = nn.MultiheadAttention(4, 2)
    packed = branch.in_proj_weight.detach().clone()
    fixup_init_([branch], num_layers=100)  # m = 2: 100^(−1/2)
    torch.testing.assert_close(branch.in_proj_weight, packed / 10)
    assert not branch.out_proj.weight.any()


def test_fixup_of_a_single_layer_makes_it_zero():
    branch = nn.Linear(3, 3)
    fixup_init_([branch], num_layers=7)
    assert not branch.weight.any()


def test_fixup_refuses_what_has_no_matrix_or_no_depth():
    with pytest.raises(ValueError, match="branch 1, a ReLU, has no weight matrix"):
        fixup_init_([nn.Linear(2, 2), nn.ReLU()])
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        fixup_init_([])


def test_the_ramp_rises_linearly_and_stays_at_one():
    ramp, seen = AlphaRamp(4), []
    for _ in range(7):
        seen.append(ramp.alpha.item())
        ramp.step()
    assert seen == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert list(ramp.parameters()) == []
    assert torch.equal(ramp(torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))


def test_the_ramp_is_saved_and_resumed_and_survives_half_precision():
    ramp = AlphaRamp(1000)
    for _ in range(333):
        ramp.step()
    resumed = AlphaRamp(1000)
    resumed.load_state_dict(ramp.state_dict())
    assert resumed.alpha.item() == pytest.approx(0.333)
    resumed.half().step()
    assert resumed.alpha.item() == pytest.approx(0.334)


def test_a_hook_of_the_optimizer_moves_the_ramp():
    stack = Stack(lambda: AlphaRamp(10))
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.1)
    ramps = [one for one in stack.modules() if isinstance(one, AlphaRamp)]
    optimizer.register_step_post_hook(lambda *_: [ramp.step() for ramp in ramps] and None)
    for _ in range(3):
        stack(torch.ones(1, DIM)).sum().backward()
        optimizer.step()
    assert {round(ramp.alpha.item(), 6) for ramp in ramps} == {0.3}


def test_layer_norm_forgets_scale_and_shift_and_rms_norm_only_scale():
    x, nothing = draw(5, DIM), lambda h: torch.zeros_like(h)
    layer = PostNorm(DIM, norm=lambda d: nn.LayerNorm(d, eps=0.0)).double()
    rms = PostNorm(DIM, norm=lambda d: nn.RMSNorm(d, eps=0.0)).double()
    torch.testing.assert_close(layer(3 * x + 2, nothing), layer(x, nothing), rtol=0, atol=1e-12)
    torch.testing.assert_close(rms(3 * x, nothing), rms(x, nothing), rtol=0, atol=1e-12)
    assert (rms(x + 2, nothing) - rms(x, nothing)).abs().max() > 0.1
    for one in (layer, rms):
        torch.testing.assert_close(one(-2 * x, nothing), -one(x, nothing), rtol=0, atol=1e-12)


def test_deepnorm_is_post_norm_with_the_branch_divided_by_alpha():
    alpha, x, branch = 2.5, draw(4, DIM), nn.Linear(DIM, DIM).double()
    exact = lambda d: nn.LayerNorm(d, eps=0.0)  # noqa: E731
    deep, post = DeepNorm(DIM, alpha, exact).double(), PostNorm(DIM, exact).double()
    scaled = post(x, lambda h: branch(h) / alpha)
    torch.testing.assert_close(deep(x, branch), scaled, rtol=0, atol=1e-12)


def test_scaled_residual_adds_a_share_of_its_branch():
    x, branch = draw(3, DIM), nn.Linear(DIM, DIM).double()
    y = ScaledResidual(branch, 0.25)(x)
    torch.testing.assert_close(y, x + 0.25 * branch(x), rtol=0, atol=1e-14)
    assert torch.equal(ScaledResidual(branch, 0.0)(x), x)
    with pytest.raises(ValueError, match="eps must be a finite number, got inf"):
        ScaledResidual(branch, float("inf"))


# Precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrapper", ALL, ids=name)
def test_half_precision_is_the_rounded_float32_result(wrapper, dtype):
    branch = nn.Linear(DIM, DIM).to(dtype)
    half = copy.deepcopy(wrapper).to(dtype)
    x = draw(64, DIM, dtype=torch.float32).to(dtype)
    y = half(x, branch)
    assert y.dtype == dtype
    wide = copy.deepcopy(half).float()
    through = lambda h: branch(h.to(dtype)).float()  # noqa: E731
    torch.testing.assert_close(y, wide(x.float(), through).to(dtype), rtol=0, atol=0)


def test_the_sum_is_kept_in_float32_until_the_norm():
    deep = DeepNorm(4, 8.0, lambda d: nn.LayerNorm(d, eps=0.0))
    x = torch.tensor([[256.0, 256.0, 256.0, 256.0]], dtype=torch.bfloat16)
    output = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.bfloat16)
    assert torch.equal(deep(x, output), output)  # 8 · 256 ± 1 would round to 2048 and give 0/0
    assert weighted_sum(x, output, 8.0).dtype == torch.float32


@pytest.mark.parametrize("wrapper", ALL, ids=name)
def test_under_autocast_the_stream_keeps_its_dtype_and_its_precision(wrapper):
    branch = nn.Linear(DIM, DIM)
    x = draw(8, DIM, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = wrapper(x, branch)
    assert y.dtype == torch.float32
    through = lambda h: F.linear(h.bfloat16(), branch.weight.bfloat16(), branch.bias.bfloat16())  # noqa: E731
    torch.testing.assert_close(y, wrapper(x, through))


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_with_half_precision_weights_trains_through_the_widened_ones(kind):
    made = kind(DIM).bfloat16()
    x = draw(3, DIM, dtype=torch.float32).requires_grad_()
    float32_norm(made, x).square().sum().backward()
    wide = kind(DIM)
    leaf = x.detach().clone().requires_grad_()
    wide(leaf).square().sum().backward()
    assert torch.equal(x.grad, leaf.grad)
    torch.testing.assert_close(made.weight.grad, wide.weight.grad.bfloat16())


@pytest.mark.parametrize("wrapper", [*ALL, ScaledResidual(nn.Identity(), 0.5)], ids=name)
def test_wrappers_are_pickled_copied_and_described(wrapper):
    again = pickle.loads(pickle.dumps(wrapper))
    assert repr(again) == repr(wrapper)
    assert again.state_dict().keys() == wrapper.state_dict().keys()


@pytest.mark.parametrize("wrapper", ALL, ids=name)
def test_an_empty_batch_passes(wrapper):
    assert wrapper(torch.zeros(0, DIM), nn.Identity()).shape == (0, DIM)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        AlphaRamp(0)
    with pytest.raises(ValueError, match="alpha must be positive and finite, got -1"):
        DeepNorm(4, -1.0)


def test_fixup_scales_a_matrix_once_that_several_branches_share():
    branch = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 4))
    before = branch[0].weight.clone()
    fixup_init_([branch, branch, branch])
    torch.testing.assert_close(branch[0].weight, before / 3**0.5)  # m = 2, L = 3
