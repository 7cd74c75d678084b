"""Accumulation hidden in the moments of Adam and SGD: the claims of S29, one test each."""

import io
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from kexue.optim.hidden_accumulation import HiddenAccumulation, check_accumulation, stretched_beta
from kexue.optim.tiger import Tiger
from naive.hidden_accumulation import naive_adam


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def parameter(*shape, dtype=torch.float64):
    return nn.Parameter(normal(*shape, dtype=dtype))


def run(optimizer, x, gradients):
    values = []
    for g in gradients:
        x.grad = None if g is None else torch.as_tensor(g, dtype=x.dtype)
        optimizer.step()
        values.append(x.detach().clone())
    return values


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=0, atol=tolerance)


SGDS = [
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.0, "dampening": 0.5},
    {"momentum": 0.9, "weight_decay": 0.1, "maximize": True},
]
ADAMS = [
    (Adam, {}),
    (Adam, {"weight_decay": 0.1}),
    (AdamW, {"weight_decay": 0.1}),
    (AdamW, {"betas": (0.0, 0.9), "maximize": True}),
]


@pytest.mark.parametrize("options", SGDS)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_sgd_is_exactly_a_step_on_the_mean_gradient(k, options):
    x, y = parameter(4, 3), parameter(4, 3)
    hidden, plain = HiddenAccumulation(SGD([x], lr=0.1, **options), k), SGD([y], lr=0.1, **options)
    for group in range(6):
        gradients = [normal(4, 3, seed=10 * group + s) for s in range(k)]
        run(hidden, x, gradients), run(plain, y, [sum(gradients) / k])
        close(x.detach(), y.detach())


@pytest.mark.parametrize(("kind", "options"), ADAMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_with_one_micro_batch_it_is_torchs_adam(kind, options, dtype):
    x, y = parameter(4, 3, dtype=dtype), parameter(4, 3, dtype=dtype)
    hidden, plain = HiddenAccumulation(kind([x], lr=0.01, **options), 1), kind([y], 0.01, **options)
    for seed in range(30):
        g = normal(4, 3, seed=seed, dtype=dtype)
        run(hidden, x, [g]), run(plain, y, [g])
    close(x.detach(), y.detach(), 1e-12 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize(("kind", "options"), ADAMS)
@pytest.mark.parametrize("k", [2, 4])
def test_with_equal_gradients_in_each_group_it_is_torchs_adam(kind, options, k):
    if kind is Adam:
        options = {}  # coupled decay makes no difference inside a group either, but x is shared
    x, y = parameter(4, 3), parameter(4, 3)
    hidden, plain = HiddenAccumulation(kind([x], lr=0.01, **options), k), kind([y], 0.01, **options)
    for seed in range(8):
        g = normal(4, 3, seed=seed)
        run(hidden, x, [g] * k), run(plain, y, [g])
    close(x.detach(), y.detach())


@pytest.mark.parametrize(("kind", "options"), ADAMS[:3])
@pytest.mark.parametrize("k", [1, 3])
def test_adam_agrees_with_the_naive_twin(kind, options, k):
    gradients = [normal(1, seed=s) for s in range(5 * k)]
    x = parameter(1)
    start = x.item()
    hidden = HiddenAccumulation(kind([x], lr=0.05, betas=(0.8, 0.9), eps=1e-3, **options), k)
    values = run(hidden, x, gradients)[k - 1 :: k]
    chosen = {"decoupled": kind is AdamW, "weight_decay": options.get("weight_decay", 0.0)}
    numbers = [g.item() for g in gradients]
    naive = naive_adam(start, numbers, lr=0.05, betas=(0.8, 0.9), eps=1e-3, k=k, **chosen)
    close(torch.cat(values), [one[0] for one in naive])
    state = hidden.state[x]
    assert state["exp_avg"].item() == pytest.approx(naive[-1][1], abs=1e-14)
    assert state["exp_avg_sq"].item() == pytest.approx(naive[-1][2], abs=1e-14)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.0)])
@pytest.mark.parametrize(
    ("gradients", "step"), [((1, 1), 1.0), ((1, 0), 0.707106781187), ((1, -1), 0.0)]
)
def test_the_first_step_of_adam_is_shorter_where_gradients_differ(betas, gradients, step):
    x = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    hidden = HiddenAccumulation(Adam([x], lr=0.01, betas=betas, eps=0.0), 2)
    run(hidden, x, [[float(g)] for g in gradients])
    assert -x.item() / 0.01 == pytest.approx(step, abs=1e-12)


def test_adams_m_is_the_true_one_and_its_v_is_no_smaller_and_at_most_k_times_larger():
    k = 4
    x, y = parameter(50), parameter(50)
    hidden, true = HiddenAccumulation(Adam([x], lr=0.0), k), Adam([y], lr=0.0)
    for group in range(5):
        gradients = [normal(50, seed=10 * group + s) for s in range(k)]
        run(hidden, x, gradients), run(true, y, [sum(gradients) / k])
        close(hidden.state[x]["exp_avg"], true.state[y]["exp_avg"])
    v, v_true = hidden.state[x]["exp_avg_sq"], true.state[y]["exp_avg_sq"]
    assert (v > v_true).all()
    # Over many weights of pure noise the factor is k; equal gradients gave 1 above.
    assert 0.5 * k < (v.sum() / v_true.sum()).item() < 2 * k


def test_nothing_moves_inside_a_group():
    x = parameter(5)
    start = x.detach().clone()
    values = run(HiddenAccumulation(AdamW([x]), 3), x, [normal(5, seed=s) for s in range(4)])
    assert torch.equal(values[0], start)
    assert torch.equal(values[1], start)
    assert not torch.equal(values[2], start)
    assert torch.equal(values[3], values[2])


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, momentum=0.9), AdamW])
def test_a_missing_or_broken_micro_gradient_counts_as_absent(make):
    g = normal(5, seed=1)
    ends = []
    for gradients in ([g, None], [None, g], [g, g * math.nan], [g * math.inf, g]):
        x, idle = parameter(5), parameter(5)
        optimizer = HiddenAccumulation(make([x, idle]), 2)
        run(optimizer, x, gradients * 2)
        ends.append(x.detach())
        assert idle not in optimizer.state
    for end in ends[1:]:
        assert torch.equal(end, ends[0])


def test_a_scheduler_on_either_optimizer_counts():
    for outer in (True, False):
        x = parameter(3)
        inner = SGD([x], lr=1.0)
        hidden = HiddenAccumulation(inner, 2)
        scheduled = hidden if outer else inner
        scheduler = torch.optim.lr_scheduler.StepLR(scheduled, 1, gamma=0.5)
        hidden.load_state_dict(hidden.state_dict())  # keeps what the two share
        run(hidden, x, [torch.ones(3)])
        scheduler.step()  # without a warning that the inner optimizer was never stepped
        assert hidden.param_groups[0]["lr"] == inner.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, momentum=0.9, dampening=0.3), AdamW])
def test_a_saved_state_goes_on_in_the_middle_of_a_group(make):
    gradients = [normal(6, seed=s, dtype=torch.float32) for s in range(9)]
    x = parameter(6, dtype=torch.float32)
    optimizer = HiddenAccumulation(make([x]), 3)
    run(optimizer, x, gradients[:4])
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    y = nn.Parameter(x.detach().clone())
    inner = make([y])
    resumed = HiddenAccumulation(inner, 3)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert resumed.param_groups is inner.param_groups
    run(optimizer, x, gradients[4:]), run(resumed, y, gradients[4:])
    assert torch.equal(x, y)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, momentum=0.9), AdamW])
def test_in_backward_gives_the_same(make, k):
    def train(in_backward):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1)).double()
        optimizer = HiddenAccumulation(make(model.parameters()), k)
        if in_backward:
            optimizer.step_in_backward(model)
        for seed in range(3 * k):
            model(normal(5, 4, seed=seed)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(train(True), train(False))


def test_named_parameters_and_groups_are_kept():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    pairs = list(model.named_parameters())
    inner = AdamW([{"params": pairs[:2], "lr": 0.5}, {"params": pairs[2:], "weight_decay": 0.3}])
    groups = HiddenAccumulation(inner, 2, nonfinite="raise").param_groups
    assert [g["param_names"] for g in groups] == [["0.weight", "0.bias"], ["1.weight", "1.bias"]]
    assert (groups[0]["lr"], groups[1]["weight_decay"]) == (0.5, 0.3)


def test_a_half_model_keeps_its_moments_in_float32():
    x = nn.Parameter(normal(5).bfloat16())
    optimizer = HiddenAccumulation(AdamW([x], lr=0.1), 2)
    run(optimizer, x, [normal(5), normal(5, seed=1)])
    state = optimizer.state[x]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32


@pytest.mark.parametrize("k", [2, 4, 100])
@pytest.mark.parametrize("beta", [0.9, 0.99, 0.999])
def test_a_stretched_beta_forgets_in_k_steps_what_beta_forgets_in_one(beta, k):
    stretched = stretched_beta(beta, k)
    assert beta <= stretched**k <= beta + (1 - beta) ** 2 / 2
    assert stretched_beta(beta, 1) == pytest.approx(beta, abs=1e-15)
    with pytest.raises(ValueError, match=r"beta in \[0, 1\)"):
        stretched_beta(1.0, 2)


class TestWhatIsRefused:
    def test_accumulating_twice(self):
        x = parameter(3)
        with pytest.raises(ValueError, match=r"Tiger accumulates by itself \(accum_steps=2\)"):
            HiddenAccumulation(Tiger([x], accum_steps=2), 2)
        with pytest.raises(ValueError, match="HiddenAccumulation accumulates by itself"):
            HiddenAccumulation(HiddenAccumulation(SGD([x], 0.1), 2), 2)

    @pytest.mark.parametrize("make", [torch.optim.RMSprop, torch.optim.Adagrad])
    def test_another_optimizer(self, make):
        with pytest.raises(TypeError, match=f"not for {make.__name__}"):
            HiddenAccumulation(make([parameter(3)]), 2)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda x: AdamW([x], amsgrad=True), "amsgrad needs the mean gradient"),
            (lambda x: SGD([x], 0.1, momentum=0.9, nesterov=True), "nesterov needs the mean"),
        ],
    )
    def test_rules_that_need_the_mean_gradient(self, make, message):
        with pytest.raises(ValueError, match=message):
            HiddenAccumulation(make(parameter(3)), 2)

    @pytest.mark.parametrize("k", [0, -1, 1.5])
    def test_accum_steps(self, k):
        with pytest.raises((ValueError, TypeError), match="accum_steps"):
            HiddenAccumulation(AdamW([parameter(3)]), k)

    def test_an_optimizer_that_was_stepped(self):
        x = parameter(3)
        inner = AdamW([x])
        run(inner, x, [torch.ones(3)])
        with pytest.raises(ValueError, match="has been stepped already"):
            HiddenAccumulation(inner, 2)

    def test_a_loop_that_accumulates_too(self):
        from accelerate import Accelerator
        from transformers import TrainingArguments

        hidden = HiddenAccumulation(AdamW([parameter(3)]), 4)
        twice = (
            Accelerator(cpu=True, gradient_accumulation_steps=2),
            TrainingArguments(use_cpu=True, gradient_accumulation_steps=2),
            SimpleNamespace(accumulate_grad_batches=2),
            SimpleNamespace(args=SimpleNamespace(gradient_accumulation_steps=2)),
        )
        for runner in twice:
            with pytest.raises(ValueError, match="=2 and the optimizer's accum_steps=4 both"):
                check_accumulation(hidden, runner)
            check_accumulation(Tiger([parameter(3)]), runner)
            check_accumulation(AdamW([parameter(3)]), runner)
        check_accumulation(hidden, SimpleNamespace(gradient_accumulation_steps=1))
        with pytest.raises(TypeError, match="has neither gradient_accumulation_steps nor"):
            check_accumulation(hidden, object())
