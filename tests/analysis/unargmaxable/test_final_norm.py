"""The box of a final norm holds every feature that the norm can give, and is no larger."""

import math

import pytest
import torch
from torch import nn

from kexue.analysis.unargmaxable.final_norm import FinalNorm, norm_box


def affine(kind, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    gamma = torch.randn(d, dtype=torch.float64, generator=generator)
    beta = torch.randn(d, dtype=torch.float64, generator=generator)
    module = (nn.LayerNorm if kind == "layer" else nn.RMSNorm)(d, eps=1e-300, dtype=torch.float64)
    module.weight.data = gamma
    if kind == "layer":
        module.bias.data = beta
    return module, gamma, beta if kind == "layer" else None


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("d", [2, 7, 64])
def test_no_output_of_the_norm_leaves_the_box(kind, d):
    module, gamma, beta = affine(kind, d)
    lower, upper = norm_box(gamma, beta, kind)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2000, d, dtype=torch.float64, generator=generator) ** 5
    z = module(x).detach()
    assert bool(((z >= lower - 1e-9) & (z <= upper + 1e-9)).all())


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("d", [2, 7, 64])
def test_every_side_of_the_box_is_reached(kind, d):
    module, gamma, beta = affine(kind, d)
    lower, upper = norm_box(gamma, beta, kind)
    corners = module(torch.cat((torch.eye(d), -torch.eye(d))).double()).detach()
    torch.testing.assert_close(corners.amax(dim=0), upper, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(corners.amin(dim=0), lower, rtol=1e-12, atol=1e-12)


def test_a_factor_of_zero_leaves_one_value():
    lower, upper = norm_box(torch.tensor([0.0, 2.0]), torch.tensor([3.0, 1.0]))
    assert (lower[0], upper[0]) == (3, 3)
    assert (lower[1], upper[1]) == (-1, 3)


def test_worked_numbers_of_both_kinds():
    gamma, beta = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.25, 0.0, -1.0])
    lower, upper = norm_box(gamma, beta, "layer")
    root = math.sqrt(2)
    assert lower.tolist() == pytest.approx([0.25 - root, -2 * root, -1 - root / 2], abs=1e-12)
    assert upper.tolist() == pytest.approx([0.25 + root, 2 * root, -1 + root / 2], abs=1e-12)
    root = math.sqrt(3)
    assert norm_box(gamma, None, "rms")[1].tolist() == pytest.approx(
        [root, 2 * root, root / 2], abs=1e-12
    )


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_the_typical_size_is_the_root_mean_square_over_all_directions(kind):
    module, gamma, beta = affine(kind, 50)
    generator = torch.Generator().manual_seed(2)
    z = module(torch.randn(40_000, 50, dtype=torch.float64, generator=generator)).detach()
    seen = math.sqrt(float(z.square().sum(dim=1).mean()))
    assert FinalNorm(kind, gamma, beta).typical == pytest.approx(seen, rel=0.01)


def test_a_factor_after_the_norm_scales_box_and_size():
    gamma = torch.tensor([1.0, 2.0])
    one, half = FinalNorm("rms", gamma), FinalNorm("rms", gamma, scale=0.5)
    assert half.typical == one.typical / 2
    assert torch.equal(half.box[1], one.box[1] / 2)
    assert torch.equal(half.box[0], -half.box[1])


def test_half_precision_norms_are_boxed_in_float64():
    lower, upper = norm_box(torch.ones(5, dtype=torch.bfloat16))
    assert lower.dtype == upper.dtype == torch.float64
    assert upper.tolist() == [2.0] * 5


def test_other_kinds_and_shapes_are_refused():
    with pytest.raises(ValueError, match="kind must be one of layer, rms, got 'batch'"):
        norm_box(torch.ones(3), kind="batch")
    with pytest.raises(ValueError, match=r"shape of gamma, \(3,\), got \(2,\)"):
        FinalNorm("layer", torch.ones(3), torch.ones(2)).box  # noqa: B018
