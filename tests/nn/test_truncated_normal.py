"""The truncated normal (S04): moments, cuts, dtypes, layouts, shards."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kexue.nn import truncated_normal
from kexue.nn.truncated_normal import trunc_normal_, truncated_moments
from naive.truncated_normal import by_rejection

GAMMA, WIDER = 0.7737413035499232, 1.1368472343385565


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_samples_have_the_deviation_asked_for_and_stay_within_the_cut():
    t = trunc_normal_(torch.empty(1_000_000), 0.1, 0.02, generator=seeded())
    assert t.std().item() == pytest.approx(0.02, rel=0.003)
    assert t.mean().item() == pytest.approx(0.1, abs=0.0001)
    reach = (t - 0.1).abs().max().item()
    assert 0.999 * 2 * WIDER * 0.02 < reach <= 2 * WIDER * 0.02 + 1e-8


def test_uncorrected_samples_are_twelve_percent_narrower_like_those_of_tensorflow():
    t = trunc_normal_(torch.empty(1_000_000), std=0.02, corrected=False, generator=seeded())
    assert t.std().item() == pytest.approx(0.8796256610342398 * 0.02, rel=0.003)
    assert t.std().item() == pytest.approx(0.017593, rel=0.003)
    assert t.abs().max().item() <= 0.04


def test_torch_cuts_at_absolute_values_so_that_a_small_deviation_is_not_cut_at_all():
    torchs = torch.nn.init.trunc_normal_(torch.empty(200_000), std=0.02, a=-2.0, b=2.0)
    assert torchs.abs().max().item() > 3.5 * 0.02


def test_the_constants_of_the_usual_cut():
    mean, variance = truncated_moments()
    assert mean == 0
    assert variance == pytest.approx(GAMMA, rel=1e-14)
    assert math.sqrt(variance) == pytest.approx(0.8796256610342398, rel=1e-14)
    assert variance**-0.5 == pytest.approx(WIDER, rel=1e-14)


@pytest.mark.parametrize(
    ("cut", "variance"),
    [
        (1, 0.29112509477279314),
        (1.5, 0.5515244157615512),
        (2.5, 0.911256360935392),
        (3, 0.9733369246625415),
    ],
)
def test_worked_variances_of_symmetric_cuts(cut, variance):
    mean, found = truncated_moments(-float(cut), float(cut))
    assert mean == 0
    assert found == pytest.approx(variance, rel=1e-12)


def test_worked_moments_of_an_asymmetric_cut():
    mean, variance = truncated_moments(-1.0, 2.5)
    assert mean == pytest.approx(0.2687498456249214, rel=1e-12)
    assert variance == pytest.approx(0.5855636404906, rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(a=st.floats(-6, 6), width=st.floats(0.05, 8))
def test_moments_are_those_of_scipy(a, width):
    peer = stats.truncnorm(a, a + width)
    mean, variance = truncated_moments(a, a + width)
    assert mean == pytest.approx(peer.mean(), rel=1e-7, abs=1e-9)
    assert variance == pytest.approx(peer.var(), rel=1e-5)


@pytest.mark.parametrize("end", [0.0, 1.0, 3.0])
def test_infinite_ends_are_allowed(end):
    mean, variance = truncated_moments(end, math.inf)
    peer = stats.truncnorm(end, math.inf)
    assert (mean, variance) == pytest.approx((peer.mean(), peer.var()), rel=1e-9)
    assert truncated_moments(-math.inf, math.inf) == (0, 1)


CUTS = [(-2, 2), (-1, 2.5), (0, 3), (1, 3), (-5, 5), (3, 4), (6, 9), (-9, -6), (0, math.inf)]


@pytest.mark.parametrize(("a", "b"), [*CUTS, (-math.inf, math.inf)])
def test_samples_follow_the_distribution(a, b):
    t = trunc_normal_(
        torch.empty(20_000), 0.0, 1.0, float(a), float(b), corrected=False, generator=seeded()
    )
    assert stats.kstest(t.double().numpy(), stats.truncnorm(a, b).cdf).pvalue > 1e-3
    assert a <= t.min().item()
    assert t.max().item() <= b


@pytest.mark.parametrize(("a", "b"), [(-2.0, 2.0), (-1.0, 2.5), (0.5, 3.0)])
def test_samples_are_those_of_drawing_again(a, b):
    t = trunc_normal_(torch.empty(5_000), 0.0, 1.0, a, b, corrected=False, generator=seeded(1))
    slow = by_rejection(5_000, a, b, seeded(2))
    assert stats.ks_2samp(t.double().numpy(), slow.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("a", "b"), [(-1.0, 2.5), (3.0, 4.0), (0.0, math.inf)])
def test_the_correction_makes_the_deviation_exact_and_does_not_centre(a, b):
    t = trunc_normal_(torch.empty(400_000), 1.0, 0.5, a, b, generator=seeded())
    mean, variance = truncated_moments(a, b)
    assert t.std().item() == pytest.approx(0.5, rel=0.01)
    assert t.mean().item() == pytest.approx(1 + mean * 0.5 / math.sqrt(variance), abs=0.004)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
)
def test_every_float_dtype_gets_the_float32_samples_rounded(dtype):
    t = trunc_normal_(torch.empty(70_001, dtype=dtype), std=0.5, generator=seeded())
    assert t.dtype == dtype
    if dtype == torch.float64:
        assert t.std().item() == pytest.approx(0.5, rel=0.02)
    else:
        same = trunc_normal_(torch.empty(70_001), std=0.5, generator=seeded())
        assert torch.equal(t.float(), same.to(dtype).float())


def test_half_precision_keeps_the_tail():
    t = trunc_normal_(torch.empty(1_000_000, dtype=torch.bfloat16), generator=seeded()).float()
    assert t.std().item() == pytest.approx(1, rel=0.003)
    share = 2 * stats.truncnorm(-2, 2).sf(2.2578125 / WIDER)  # what rounds to more than 2.25
    assert (t.abs() > 2.25).float().mean().item() == pytest.approx(share, rel=0.1)


def test_the_same_generator_gives_the_same_weights_and_advances():
    random = seeded(7)
    first, second = (trunc_normal_(torch.empty(1000), generator=random) for _ in range(2))
    assert torch.equal(first, trunc_normal_(torch.empty(1000), generator=seeded(7)))
    assert not torch.equal(first, second)


def test_without_a_generator_the_seed_of_torch_decides():
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(trunc_normal_(torch.empty(10)))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.T,
        lambda t: t[:, 3:50],
        lambda t: t[::2],
        lambda t: t[:, :, None].expand(-1, -1, 1)[..., 0],
        lambda t: t.view(20, 10, 60).permute(2, 0, 1),
    ],
)
def test_views_are_filled_in_place_and_nothing_else(view, monkeypatch):
    monkeypatch.setitem(truncated_normal.BLOCK, "cpu", 97)
    whole = torch.full((200, 60), 100.0)
    part = view(whole)
    assert trunc_normal_(part, generator=seeded()) is part
    assert part.abs().max() < 3
    assert part.std().item() == pytest.approx(1, abs=0.05)
    assert (whole == 100).sum() == whole.numel() - part.numel()


def test_no_block_is_larger_than_asked_for(monkeypatch):
    sizes = []
    monkeypatch.setitem(truncated_normal.BLOCK, "cpu", 1000)
    truncated_normal.draw_blocks_(
        torch.empty(300, 70, dtype=torch.bfloat16), lambda block: sizes.append(block.numel())
    )
    assert sum(sizes) == 21_000
    assert max(sizes) == 1000


def test_a_meta_tensor_stays_and_takes_nothing_from_the_generator():
    random = seeded(3)
    before = random.get_state()
    t = torch.empty(5, 4, device="meta")
    assert trunc_normal_(t, generator=random) is t
    assert torch.equal(random.get_state(), before)


def test_parameters_are_filled_without_a_trace_in_autograd():
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    trunc_normal_(weight)
    assert weight.requires_grad
    assert weight.is_leaf
    assert weight.grad_fn is None


def test_empty_tensors_and_zero_deviation_are_no_special_case():
    assert trunc_normal_(torch.empty(0, 3)).shape == (0, 3)
    assert torch.equal(trunc_normal_(torch.empty(5), 2.0, 0.0), torch.full((5,), 2.0))
    one_sided = trunc_normal_(torch.empty(5), 2.0, 0.0, 0.0, math.inf)
    assert torch.equal(one_sided, torch.full((5,), 2.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"std": -1.0}, "std must be a number of at least 0, got -1.0"),
        ({"std": math.nan}, "std must be"),
        ({"mean": math.inf}, "mean must be finite"),
        ({"a": 2.0, "b": 2.0}, "needs a < b, got a = 2.0 and b = 2.0"),
        ({"a": math.nan}, "needs a < b"),
        ({"a": 40.0, "b": 41.0}, "never within"),
        ({"a": 1.0, "b": 1.000001}, "too narrow to correct"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        trunc_normal_(torch.empty(3), **arguments)


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"floating tensors, got torch\.int64"):
        trunc_normal_(torch.empty(3, dtype=torch.long))
