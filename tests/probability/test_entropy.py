"""Entropy normalisation: worked numbers, properties, gradients, complaints."""

import math

import numpy as np
import pytest
import torch

from kexue.probability.entropy import entropy_normalize, entropy_normalized_softmax
from kexue.probability.entropy_solver import PART, entropy_and_variance
from naive.entropy import article_rounds, naive_entropy, naive_gamma, naive_normalize

P = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
SHARP = torch.tensor([0.999, 0.0005, 0.0005], dtype=torch.float64)


def close(found, expected, atol=1e-10):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


def exact(p=None, **options):
    return entropy_normalize(p, **{"tol": 1e-13, **options})


def entropy(q):
    return torch.special.entr(q.double()).sum(-1)


def rows(seed=0, count=40, n=12, zeros=False):
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(count, n, generator=generator, dtype=torch.float64) ** 4
    if zeros:
        p = p * (torch.rand(count, n, generator=generator) > 0.2)
    return p / p.sum(-1, keepdim=True)


def within(p, share=0.4):
    """Targets inside each row's range."""
    return (p > 0).sum(-1).double().log() * share


# --- worked numbers

WORKED = [
    (
        *(P, 0.5, 2.9629705727735742),
        (0.8583896475517225, 0.1100883728150323, 0.024233164804823848, 0.007288814828421267),
    ),
    (
        *(P, 1.0, 1.5558298060231004),
        (0.6347094540487748, 0.2158855266587451, 0.09751347434767013, 0.05189154494480989),
    ),
    (
        *(P, 1.3, 0.6844943867001274),
        (0.41785585065038255, 0.25999987854867473, 0.1832816227131884, 0.1388626480877544),
    ),
    (
        *(SHARP, 1.0, 0.11764186879262879),
        (0.5500615755259423, 0.2249692122370289, 0.2249692122370289),
    ),
]


@pytest.mark.parametrize(("p", "target", "gamma", "q"), WORKED)
def test_the_worked_powers_and_distributions(p, target, gamma, q):
    found, power = exact(p, target_entropy=target, return_gamma=True)
    close(found, q)
    close(power, gamma)
    close(naive_normalize(p, target), q)


def test_the_worked_entropy():
    assert naive_entropy(P) == pytest.approx(1.207973687592232, abs=1e-14)
    close(exact(P, target_entropy=1.207973687592232, return_gamma=True)[1], 1.0)


def test_the_worked_gradients():
    logits = P.log().requires_grad_()
    target = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    q = exact(logits=logits, target_entropy=target)
    (q * torch.arange(1, 5)).sum().backward()
    by_logits = (0.01907848585393916, -0.0294353639801726, -0.00920988555147556)
    close(logits.grad, (*by_logits, 0.019566763677709003))
    close(target.grad, 2.5968720620952492)


@pytest.mark.parametrize(
    ("target", "entropies"),
    [
        (0.5, (0.454283134, 0.502048312, 0.500003529, 0.5)),
        (1.0, (0.971401120, 0.999957952, 1.0)),
    ],
)
def test_the_worked_rounds_of_the_article(target, entropies):
    literal = article_rounds(P, target, len(entropies))
    for number, expected in enumerate(entropies, start=1):
        q = entropy_normalize(P, target_entropy=target, method="article", max_iter=number)
        close(entropy(q), expected, atol=6e-10)
        close(literal[number - 1], q, atol=1e-12)


@pytest.mark.parametrize(
    ("p", "target", "gamma"),
    [
        (SHARP, 1.0, 0.11764186879),
        (torch.tensor([0.9, 0.06, 0.03, 0.01], dtype=torch.float64), 1.3, None),
        (torch.tensor([0.26, 0.25, 0.25, 0.24], dtype=torch.float64), 0.2, 98.50173),
    ],
)
def test_where_the_articles_rounds_diverge_the_solver_does_not(p, target, gamma):
    assert article_rounds(p, target, 10)[-1].isnan().any()
    with pytest.raises(ValueError, match=r'row 0: the iteration of method="article" diverged'):
        entropy_normalize(p, target_entropy=target, method="article", max_iter=10)
    q, power = exact(p, target_entropy=target, return_gamma=True)
    close(entropy(q), target, atol=1e-12)
    close(power, naive_gamma(p, target), atol=1e-8)
    if gamma is not None:
        close(power, gamma, atol=5e-6)


def test_the_articles_first_factor_turns_the_order_round():
    entropy_now, variance = entropy_and_variance(
        SHARP.log()[None] - SHARP.log().max(), torch.ones(1, dtype=torch.float64)
    )
    close(1 + (entropy_now - 1.0) / variance, [-16.18], atol=5e-3)
    first = article_rounds(SHARP, 1.0, 1)[0]
    close(first, [0.0, 0.5, 0.5], atol=1e-10)


# --- properties


@pytest.mark.parametrize("share", [0.05, 0.4, 0.8, 0.99])
@pytest.mark.parametrize("zeros", [False, True])
def test_the_entropy_is_the_target_the_sum_is_one_and_the_order_stays(share, zeros):
    p = rows(zeros=zeros)
    target = within(p, share)
    q = exact(p, target_entropy=target)
    close(entropy(q), target, atol=1e-11)
    close(q.sum(-1), torch.ones(len(p)), atol=1e-12)
    order = p.argsort(-1)
    sorted_q = q.gather(-1, order)
    rises = sorted_q.diff(dim=-1)
    strict = (p.gather(-1, order).diff(dim=-1) > 0) & (sorted_q[..., 1:] > 0)
    assert (rises >= 0).all()
    assert (rises[strict] > 0).all()
    assert (q[p == 0] == 0).all()


@pytest.mark.parametrize("n", [2, 3, 100])
def test_rows_agree_with_bisection(n):
    p = rows(seed=n, count=3, n=n)
    target = within(p, 0.5)
    found, power = exact(p, target_entropy=target, return_gamma=True)
    for row in range(3):
        close(found[row], naive_normalize(p[row], float(target[row])), atol=1e-11)
        assert float(power[row]) == pytest.approx(naive_gamma(p[row], float(target[row])), rel=1e-9)


def test_ties_stay_ties():
    q = exact(torch.tensor([0.4, 0.2, 0.2, 0.2], dtype=torch.float64), target_entropy=1.0)
    assert q[1] == q[2] == q[3]


@pytest.mark.parametrize("power", [0.1, 3.0, 40.0])
def test_powers_and_scales_of_the_input_change_nothing(power):
    p = rows()
    target = within(p)
    plain = exact(p, target_entropy=target)
    close(exact(logits=power * p.log() + 7, target_entropy=target), plain, atol=1e-11)
    close(exact(1000 * p, target_entropy=target), plain, atol=1e-12)


SCALES = [
    *((torch.float32, scale) for scale in (1e-30, 1e-12, 1e-3, 1e3, 1e12, 1e30, 1e37)),
    *((torch.float64, scale) for scale in (1e-300, 1e-30, 1e30, 1e150, 1e300)),
]


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
def test_logits_of_any_scale_are_solved_and_the_power_is_the_inverse_scale(dtype, scale):
    logits, near = normal(30, 50, dtype=dtype), 1e-6 if dtype is torch.float32 else 1e-11
    plain, one = exact(logits=logits, perplexity=8.0, return_gamma=True)
    q, power = exact(logits=scale * logits, perplexity=8.0, return_gamma=True, max_iter=9)
    close(entropy(q), [math.log(8)] * 30, atol=near)
    close(q, plain, atol=near)
    close(power * scale / one, torch.ones(30), atol=10 * near)


def test_rows_of_very_different_scales_do_not_disturb_each_other():
    scales = torch.tensor([1e-30, 1e-6, 1.0, 1e6, 1e30])[:, None]
    q = entropy_normalize(logits=scales * normal(5, 200, dtype=torch.float32), perplexity=9.0)
    close(entropy(q), torch.full((5,), math.log(9)), atol=1.5e-6)


@pytest.mark.parametrize("outlier", [1e30, -1e30, -3.3e38])
def test_an_entry_far_from_the_others_hides_nothing(outlier):
    logits = normal(2, 2000, dtype=torch.float32)
    logits[:, 7] = outlier
    q = entropy_normalize(logits=logits, perplexity=5.0)
    close(entropy(q), torch.full((2,), math.log(5)), atol=2e-6)
    assert (q[:, 7] == 0).all() or (q[:, 7] == q.amax(-1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("perplexity", [1.5, 5.0, 700.0])
def test_without_a_tolerance_every_row_is_as_near_as_its_precision_allows(dtype, perplexity):
    q = entropy_normalize(logits=3 * normal(60, 1000, dtype=dtype), perplexity=perplexity, tol=0.0)
    near = 3e-6 if dtype is torch.float32 else 1e-13
    close(entropy(q), [math.log(perplexity)] * 60, atol=near)


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_the_gradient_falls_as_the_scale_of_the_logits_grows(scale):
    found = []
    for factor in (1.0, scale):
        logits = (factor * normal(3, 20)).requires_grad_()
        (exact(logits=logits, perplexity=4.0) * torch.arange(20)).sum().backward()
        found.append(factor * logits.grad)
    close(found[1], found[0], atol=1e-9)


def test_the_gradient_is_orthogonal_to_ones_and_to_the_logits():
    logits = rows().log().requires_grad_()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    (exact(logits=logits, perplexity=3.0) * weights).sum().backward()
    close(logits.grad.sum(-1), torch.zeros(40), atol=1e-12)
    close((logits.grad * logits.detach()).sum(-1), torch.zeros(40), atol=1e-11)


def test_permutations_and_padding_with_zeros_commute():
    p = rows()
    plain = exact(p, perplexity=3.0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    close(exact(p[:, order], perplexity=3.0), plain[:, order], atol=1e-12)
    padded = torch.cat((p, torch.zeros(40, 5).double()), dim=-1)
    close(exact(padded, perplexity=3.0)[:, :12], plain, atol=1e-12)


def test_first_to_one_entropy_and_then_to_another_is_directly_to_the_other():
    p = rows()
    close(exact(exact(p, perplexity=7.0), perplexity=3.0), exact(p, perplexity=3.0), atol=1e-11)


def test_the_power_falls_as_the_target_grows():
    targets = torch.linspace(0.05, 1.38, 60).double()
    _, power = exact(P.expand(60, 4), target_entropy=targets, return_gamma=True)
    assert (power.diff() < 0).all()


def test_near_the_limits_the_result_is_uniform_on_the_support_or_on_the_ties():
    p = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1, 0.0], dtype=torch.float64)
    flat = exact(p, target_entropy=math.log(5) - 1e-10)
    close(flat, [0.2] * 5 + [0.0], atol=1e-4)
    close(exact(p, target_entropy=math.log(2) + 1e-10), [0.5, 0.5, 0, 0, 0, 0], atol=1e-10)


def test_gradients_agree_with_differences_twice():
    logits = rows(count=3, n=5).log().requires_grad_()
    target = torch.tensor([0.5, 0.9, 1.4], dtype=torch.float64, requires_grad=True)

    def normalised(logits, target):
        return exact(logits=logits, target_entropy=target)

    assert torch.autograd.gradcheck(normalised, (logits, target))
    assert torch.autograd.gradgradcheck(normalised, (logits, target))


def test_gradients_by_probabilities_and_through_the_power_agree_with_differences():
    p = rows(count=2, n=5).requires_grad_()

    def both(p):
        return exact(p, perplexity=2.5, return_gamma=True)

    assert torch.autograd.gradcheck(both, (p,))


def test_the_implicit_gradient_is_the_unrolled_one_where_the_article_converges():
    found = []
    for options in ({"method": "article", "max_iter": 12}, {"tol": 1e-14}):
        logits = P.log().requires_grad_()
        q = entropy_normalize(logits=logits, target_entropy=1.0, **options)
        (q * torch.arange(4)).sum().backward()
        found.append(logits.grad)
    close(found[0], found[1], atol=1e-10)


def test_the_entropy_of_the_result_follows_the_target_one_to_one():
    target = within(rows()).requires_grad_()
    entropy(exact(rows(), target_entropy=target)).sum().backward()
    close(target.grad, torch.ones(40), atol=1e-10)


def test_it_is_a_softmax_with_the_temperature_one_over_gamma():
    logits = rows().log()
    q, power = exact(logits=logits, perplexity=4.0, return_gamma=True)
    close(q, (logits * power[:, None]).softmax(-1), atol=1e-13)


def test_a_batch_is_its_rows():
    p = rows()
    together = exact(p, perplexity=3.0)
    for row in (0, 17, 39):
        close(together[row], exact(p[row], perplexity=3.0), atol=1e-12)


# --- forms of the input


def test_perplexity_bits_and_nats_say_the_same():
    nats = exact(P, target_entropy=math.log(3))
    close(exact(P, perplexity=3), nats, atol=1e-12)
    close(exact(P, target_entropy=math.log2(3), bits=True), nats, atol=1e-12)
    close(exact(P, perplexity=torch.tensor(3.0).double()), nats, atol=1e-12)


def test_any_axis_and_one_target_per_row():
    p = rows(count=6).view(2, 3, 12)
    target = torch.tensor([[0.5], [1.5]], dtype=torch.float64)
    plain, power = exact(p, target_entropy=target, return_gamma=True)
    assert power.shape == (2, 3)
    close(entropy(plain), target.expand(2, 3))
    turned = exact(p.movedim(-1, 0), target_entropy=target, dim=0)
    close(turned.movedim(0, -1), plain, atol=1e-12)


def test_a_mask_takes_entries_out():
    p = rows()
    mask = torch.ones(12, dtype=torch.bool)
    mask[[2, 5]] = False
    q = exact(p, perplexity=3.0, mask=mask)
    assert (q[:, ~mask] == 0).all()
    close(q[:, mask], exact(p[:, mask], perplexity=3.0), atol=1e-12)


def test_zeros_get_gradient_zero_and_masked_entries_too():
    p = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.4], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, True, True, True, False])
    q = exact(p, perplexity=2.5, mask=mask)
    (q * torch.arange(5)).sum().backward()
    assert p.grad.isfinite().all()
    assert p.grad[3] == p.grad[4] == 0
    assert (p.grad[:3] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_solved_in_float32(dtype):
    logits = (3 * torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))).to(dtype)
    q = entropy_normalize(logits=logits, perplexity=20.0)
    assert q.dtype == torch.float32
    close(entropy(q), torch.full((4,), math.log(20)), atol=1e-5)


@pytest.mark.parametrize("top", [1.0, -1.0])
def test_the_lowest_number_as_a_logit_is_a_zero(top):
    low = torch.finfo(torch.float32).min
    row = torch.tensor([top, top - 0.5, top - 1, low])
    q = entropy_normalize(logits=row, perplexity=2.5)
    close(q[:3], entropy_normalize(logits=row[:3], perplexity=2.5), 1e-6)
    assert q[3] == 0
    flat = entropy_normalize(logits=row, perplexity=4.0, on_unreachable="clamp")
    close(flat, [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-7)


def test_no_rows_are_no_distributions():
    q, power = entropy_normalize(torch.ones(0, 2, 4), perplexity=2.0, return_gamma=True)
    assert (q.shape, power.shape) == ((0, 2, 4), (0, 2))


def test_many_rows_in_parts_equal_the_rows_with_a_gradient_to_keep():
    n = 2000
    logits = torch.randn(3 * PART // n, n, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        parts = entropy_normalize(logits=logits, perplexity=50.0)
    whole = entropy_normalize(logits=logits.requires_grad_(), perplexity=50.0)
    close(parts, whole.detach(), atol=1e-7)
    logits.detach_()[-1, 7] = torch.nan
    with pytest.raises(ValueError, match=f"in row {len(logits) - 1}, column 7"):
        entropy_normalize(logits=logits, perplexity=50.0)


def test_vmap_of_the_gradient_is_the_batched_gradient():
    logits, target = rows(count=4).log(), torch.tensor([0.5, 0.9, 1.2, 1.4]).double()

    def loss(logits, target):
        return (exact(logits=logits, target_entropy=target) * torch.arange(12)).sum()

    alone = torch.func.vmap(torch.func.grad(loss))(logits, target)
    logits.requires_grad_()
    loss(logits, target).backward()
    close(alone, logits.grad, atol=1e-12)


def test_vmap_of_rows_that_reach_a_limit_or_are_empty_is_the_batch():
    logits = normal(3, 4, 9)
    logits[0, 0, 1:] = -torch.inf
    logits[1, 2] = -torch.inf
    logits[2, 1] = 0
    logits[2, 3, :4] = logits[2, 3].max()  # a tie above the perplexity

    def normalised(logits):
        return exact(logits=logits, perplexity=3.0, on_unreachable="clamp", return_gamma=True)

    for alone, together in zip(
        torch.func.vmap(normalised)(logits), normalised(logits), strict=True
    ):
        close(alone, together, atol=1e-14)
    assert normalised(logits)[1][[0, 1, 2, 2], [0, 2, 1, 3]].tolist() == [0, 0, math.inf, math.inf]


# --- rounds

DRAWS = {
    "10 classes": lambda draw: draw.dirichlet([0.1] * 10, 500),
    "100 classes": lambda draw: draw.dirichlet([0.1] * 100, 500),
    "1000 classes, almost all 0": lambda draw: draw.gamma(0.01, size=(200, 1000)),
    "32000 tokens": lambda draw: draw.gamma(0.1, size=(8, 32000)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_nine_rounds_are_enough(name):
    draw = np.random.default_rng(0)
    p = torch.from_numpy(DRAWS[name](draw))
    share = torch.from_numpy(draw.uniform(0.05, 0.95, len(p)))
    target = share * (p > 0).sum(-1).double().log()
    q = entropy_normalize(p, target_entropy=target, tol=1e-10, max_iter=9)
    there = ((entropy(q) - target).abs() < 2e-9).double().mean()
    assert there >= 0.995
    close(entropy(exact(p, target_entropy=target, max_iter=11)), target, atol=1e-10)


# --- limits and complaints

TIED = torch.tensor([[0.4, 0.4, 0.2, 0.0], [0.5, 0.3, 0.2, 0.0]], dtype=torch.float64)


def test_what_ties_put_out_of_reach_is_named_with_row_and_range():
    with pytest.raises(
        ValueError, match=r"row 0: entropy 0\.5 nats \(0\.721348 bits, perplexity"
    ) as e:
        entropy_normalize(TIED, target_entropy=0.5)
    assert "strictly between ln 2 = 0.693147 (2 maximal) and ln 3 = 1.09861" in str(e.value)
    assert "in 1 of 2 rows" in str(e.value)
    with pytest.raises(ValueError, match=r"perplexity 3\) is out of reach.* in 2 of 2 rows"):
        entropy_normalize(TIED, perplexity=3.0)


def test_clamped_rows_become_uniform_on_the_ties_or_on_the_support():
    q, power = entropy_normalize(
        TIED, target_entropy=0.5, on_unreachable="clamp", return_gamma=True
    )
    close(q[0], [0.5, 0.5, 0, 0])
    close(entropy(q[1]), 0.5, atol=1e-6)
    assert power[0] == math.inf
    q, power = entropy_normalize(TIED, perplexity=4.0, on_unreachable="clamp", return_gamma=True)
    close(q, [[1 / 3, 1 / 3, 1 / 3, 0]] * 2)
    assert power.tolist() == [0, 0]


def test_clamped_rows_have_gradient_zero_and_do_not_disturb_the_others():
    p = TIED.clone().requires_grad_()
    q = entropy_normalize(p, target_entropy=0.5, on_unreachable="clamp", tol=1e-12)
    (q * torch.arange(4)).sum().backward()
    assert (p.grad[0] == 0).all()
    assert p.grad[1, :3].abs().min() > 0
    assert p.grad.isfinite().all()


def test_a_uniform_row_keeps_its_own_entropy_and_can_have_no_other():
    flat = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0], dtype=torch.float64)
    q, power = entropy_normalize(flat, perplexity=4.0, return_gamma=True)
    close(q, flat)
    assert power == 1
    with pytest.raises(ValueError, match="out of reach"):
        entropy_normalize(flat, perplexity=3.0)
    close(entropy_normalize(flat, perplexity=3.0, on_unreachable="clamp"), flat)


def test_a_single_entry_is_certain():
    q = entropy_normalize(torch.tensor([[3.0], [0.5]]), target_entropy=0.0)
    assert q.tolist() == [[1.0], [1.0]]


BAD = [
    (torch.tensor([[0.5, 0.5], [1.1, -0.1]]), "p is negative, NaN or infinite in row 1, column 1"),
    (torch.tensor([[0.5, torch.nan]]), "p is negative, NaN or infinite in row 0, column 1"),
    (torch.tensor([[torch.inf, 0.5]]), "p is negative, NaN or infinite in row 0, column 0"),
    (torch.tensor([[0.5, 0.4], [0.0, 0.0]]), "row 1 of p sums to 0"),
]


@pytest.mark.parametrize(("p", "message"), BAD)
def test_rows_that_are_no_distributions_are_named(p, message):
    with pytest.raises(ValueError, match=message):
        entropy_normalize(p, target_entropy=0.3)


def test_logits_that_are_none_are_named():
    with pytest.raises(ValueError, match=r"logits is NaN or \+inf in row 1, column 0"):
        entropy_normalize(logits=torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]), target_entropy=0.3)
    with pytest.raises(ValueError, match=r"row 0 of logits has no finite logit"):
        entropy_normalize(logits=torch.full((1, 3), -torch.inf), target_entropy=0.3)
    with pytest.raises(ValueError, match=r"target entropy of row 0 is nan"):
        entropy_normalize(P, target_entropy=math.nan)


def test_the_articles_rounds_name_bad_rows_and_know_the_limits_too():
    def article(p, **options):
        return entropy_normalize(p, method="article", **options)

    for p, message in BAD:
        with pytest.raises(ValueError, match=message):
            article(p, target_entropy=0.3, max_iter=4)
    with pytest.raises(ValueError, match=r"row 0: entropy 0\.5 nats .* out of reach"):
        article(TIED, target_entropy=0.5, max_iter=4)
    rows = torch.cat((TIED, torch.zeros(1, 4)))
    q, power = article(
        rows, target_entropy=0.5, max_iter=12, on_unreachable="clamp", return_gamma=True
    )
    close(q, exact(rows, target_entropy=0.5, on_unreachable="clamp"), atol=1e-10)
    assert power[[0, 2]].tolist() == [math.inf, 0]
    assert (q[2] == 0).all()


def test_two_turns_of_the_order_are_no_convergence():
    p = torch.tensor([0.9, 0.06, 0.03, 0.01], dtype=torch.float64)
    with pytest.raises(ValueError, match="diverged"):
        entropy_normalize(p, target_entropy=1.3, method="article", max_iter=4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"p": [0.5, 0.5], "perplexity": 2.0}, TypeError, "floating tensor, got list|Type-check"),
        ({"p": P.long(), "perplexity": 2.0}, TypeError, r"got torch\.int64|Type-check"),
        ({"p": P[0], "perplexity": 2.0}, ValueError, "at least one axis"),
        ({"p": P, "perplexity": 2.0, "tol": math.nan}, ValueError, "tol must be ≥ 0.* got nan"),
        (
            {"p": P.expand(5, 4), "perplexity": torch.ones(5, 1)},
            ValueError,
            r"broadcast to the rows, \(5,\), got shape \(5, 1\)",
        ),
        (
            {"p": P, "perplexity": 2.0, "mask": torch.ones(3, dtype=torch.bool)},
            ValueError,
            r"mask must broadcast to the distributions, \(4,\), got shape \(3,\)",
        ),
        (
            {"p": P, "perplexity": 2.0, "mask": torch.ones(4).long()},
            TypeError,
            r"of torch\.bool|Type-check",
        ),
        ({"p": P}, ValueError, "exactly one of target_entropy and perplexity"),
        ({"perplexity": 2.0}, ValueError, "exactly one of p and logits"),
        ({"p": P, "logits": P, "perplexity": 2.0}, ValueError, "exactly one of p and logits"),
        ({"p": P, "perplexity": 0.5}, ValueError, r"at least 1, got 0\.5"),
        ({"p": P, "perplexity": 2.0, "max_iter": 0}, ValueError, "max_iter ≥ 1"),
        ({"p": P[:0], "perplexity": 2.0}, ValueError, "at least one entry"),
    ],
)
def test_senseless_calls_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        entropy_normalize(**options)


# --- attention


def test_attention_rows_have_the_perplexity_that_their_keys_allow():
    scores = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    weights = entropy_normalized_softmax(scores, 3.0, mask=causal)
    counts = torch.tensor([1.0, 2.0, 3.0, 3.0, 3.0, 3.0]).double()
    torch.testing.assert_close(entropy(weights).exp(), counts.expand(2, 6), rtol=1e-5, atol=0)
    assert (weights[:, ~causal] == 0).all()


def test_a_row_without_keys_is_zeros_and_its_gradient_too():
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.tensor([[True] * 4, [False] * 4, [True, True, True, False]])
    weights = entropy_normalized_softmax(scores, 2.0, mask=mask)
    weights.square().sum().backward()
    assert (weights[1] == 0).all()
    assert scores.grad.isfinite().all()
    assert (scores.grad[1] == 0).all()


def test_the_scale_of_attention_scores_is_dead_weight():
    scores = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)).double()
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    entropy_normalized_softmax(scores * scale, 3.0).square().sum().backward()
    assert scale.grad.abs() < 1e-14


def test_perplexity_thirty_of_squared_distances_is_t_sne():
    from sklearn.datasets import load_digits
    from sklearn.manifold import _utils

    x = load_digits().data[:150].astype(np.float64)
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    theirs = _utils._binary_search_perplexity(squared.astype(np.float32), 30.0, 0)
    ours = entropy_normalize(
        logits=-torch.from_numpy(squared), perplexity=30.0, mask=~torch.eye(150, dtype=torch.bool)
    )
    close(ours, theirs, atol=1e-5)
