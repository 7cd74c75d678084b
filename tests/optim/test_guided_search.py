"""S26: MGS on a model, against its naive twin and against its promises."""

import copy
import math
import random
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn
from torch.nn import functional as F

from kexue.optim.guided_search import MGS, effective_sample_size, mixture_log_density
from kexue.optim.guided_search.candidates import (
    CHUNK,
    Neighbourhood,
    draw_candidates,
    fill_normal,
    hashed,
    normal_levels,
    scoring_alike,
)
from naive.guided_search import naive_normal, naive_step

X = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()
BATCH = (X, Y)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def soft_errors(model, batch):
    """A loss that differs between any two candidates."""
    return model(batch[0]).softmax(1).gather(1, 1 - batch[1][:, None]).mean()


def errors(model, batch):
    return (model(batch[0]).argmax(1) != batch[1]).double().mean()


def likelihood(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


def moved(model, before):
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


# The update


@pytest.mark.parametrize("density", ["none", "mixture", "unit", "exact"])
@pytest.mark.parametrize(("noise", "sigma"), [("relative", 1.5), ("absolute", 0.3)])
@pytest.mark.parametrize("antithetic", [False, True])
def test_a_step_is_what_copies_of_the_model_give(density, noise, sigma, antithetic):
    model = network()
    settings = {"sigma": sigma, "noise": noise, "density": density}
    search = MGS(
        model, soft_errors, likelihood, **settings, n_candidates=6, mixture=0.4, temperature=0.05,
        step_size=3.0, max_grad_norm=0.2, antithetic=antithetic, seed=7,
    )  # fmt: skip
    twin, before = copy.deepcopy(model), state(model)
    report = search.step(BATCH)
    likelihood(twin, BATCH).backward()
    candidates = draw_candidates(6, 0.4, 7, 1, antithetic=antithetic)
    expected, losses, weights = naive_step(
        twin, soft_errors, BATCH, candidates, pi=0.4, alpha=0.05, eta=3.0, clip=0.2, **settings
    )
    torch.testing.assert_close(report["losses"].tolist(), losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(report["weights"].tolist(), weights, rtol=1e-9, atol=1e-12)
    for name, found in moved(model, before).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-9, atol=1e-12)
    assert report["ess"] == pytest.approx(1 / sum(w * w for w in weights))
    norm = math.sqrt(sum(float(e.square().sum()) for e in expected.values()))
    assert report["update_norm"] == pytest.approx(norm)
    assert report["loss"] == pytest.approx(soft_errors(twin.eval(), BATCH).item())


def test_one_candidate_is_the_update():
    model = network()
    before = state(model)
    MGS(model, soft_errors, likelihood, n_candidates=1, seed=3).step(BATCH)
    after = state(model)
    model.load_state_dict(before)
    likelihood(model, BATCH).backward()
    found = {}
    probe = MGS(model, lambda m, b: found.update(state(m)) or 0.0, n_candidates=1, seed=3)
    probe.score_current = False
    probe.rewrite_gradients(BATCH)
    for name, value in after.items():
        torch.testing.assert_close(value, found[name], rtol=0, atol=1e-15)


def test_equal_losses_give_the_plain_mean_of_the_candidates():
    model = network()
    before, seen = state(model), []
    search = MGS(model, lambda m, b: seen.append(state(m)) or 1.0, likelihood, score_current=False)
    report = search.step(BATCH)
    assert report["weights"].tolist() == [0.25] * 4
    assert report["loss"] is None
    for name, delta in moved(model, before).items():
        mean = torch.stack([one[name] - before[name] for one in seen]).mean(0)
        torch.testing.assert_close(delta, mean, rtol=0, atol=1e-14)


def test_on_a_constant_loss_blind_search_has_mean_zero():
    model = nn.Linear(50, 40, bias=False, dtype=torch.float64)
    options = {"mixture": 1, "noise": "absolute", "sigma": 0.1, "score_current": False}
    before, steps = model.weight.detach().clone(), 10
    search = MGS(model, lambda m, b: 0.0, n_candidates=4, **options)
    for _ in range(steps):
        search.step(None)
    walked = model.weight.detach() - before
    spread = 0.1 / math.sqrt(4) * math.sqrt(steps)
    assert abs(walked.mean()) < 5 * spread / math.sqrt(walked.numel())
    assert walked.std().item() == pytest.approx(spread, rel=0.1)


def test_the_mean_update_of_a_linear_loss_is_gradient_descent():
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    slope = torch.tensor([[0.6, -0.8]], dtype=torch.float64)
    search = MGS(
        model, lambda m, b: (m.weight * slope).sum(), mixture=1, noise="absolute", sigma=0.5,
        temperature=0.5, n_candidates=2_000, score_current=False, antithetic=True,
    )  # fmt: skip
    before = model.weight.detach().clone()
    search.step(None)
    torch.testing.assert_close(model.weight - before, -0.5 * slope, rtol=0, atol=0.07)


@pytest.mark.parametrize("seed", range(3))
def test_the_metric_falls_where_it_has_no_gradient(seed):
    model = network()
    search = MGS(model, errors, likelihood, n_candidates=8, step_size=0.5, seed=seed)
    reports = [search.step(BATCH) for _ in range(20)]
    assert reports[0]["loss"] == 7 / 12
    assert reports[-1]["loss"] <= 2 / 12


def test_a_tensor_without_a_gradient_stays_under_relative_noise_and_moves_under_absolute():
    for noise, moves in (("relative", False), ("absolute", True)):
        model = network()
        model.extra = nn.Parameter(torch.ones(3, dtype=torch.float64))
        MGS(model, soft_errors, likelihood, noise=noise, sigma=0.1).step(BATCH)
        assert model.extra.ne(1).any() == moves


def test_a_zero_gradient_under_relative_noise_moves_nothing_and_is_no_nan():
    model = network()
    before = state(model)
    for density in ("none", "exact", "mixture", "unit"):
        search = MGS(model, soft_errors, lambda m, b: likelihood(m, b) * 0, density=density)
        report = search.step(BATCH)
        assert report["weights"].tolist() == [0.25] * 4
    assert same(state(model), before)


def test_tied_weights_are_moved_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    model[1].weight = model[0].weight
    search = MGS(model, soft_errors, mixture=1, noise="absolute", sigma=0.1, n_candidates=1)
    assert list(search.params) == ["0.weight"]
    before = model[0].weight.detach().clone()
    search.step(BATCH)
    noise = naive_normal((3, 3), np.random.SFC64(hashed(0, 1, 1)))
    torch.testing.assert_close(model[0].weight - before, 0.1 * noise, rtol=0, atol=1e-12)
    assert model[1].weight is model[0].weight


def test_noise_does_not_depend_on_the_memory_layout_of_a_parameter():
    weights = [torch.zeros(4, 6), torch.zeros(6, 4).t()]
    for w in weights:
        around = Neighbourhood([w], [torch.zeros_like(w)], [1.0])
        around.move_to(draw_candidates(1, 1, 0, 0)[0])
    assert torch.equal(*weights)


def test_exact_is_the_mixture_density_up_to_a_constant():
    params = [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)]
    means = [torch.full_like(p, 0.1) for p in params]
    around = Neighbourhood(params, means, [0.5, 0.5])
    candidates, flat = draw_candidates(6, 0.3, 0, 0), []
    for c in candidates:
        around.move_to(c)
        flat.append(torch.cat([p.flatten() for p in params]))
    around.restore()
    log_q = around.log_density("exact", candidates, 0.3)
    full = mixture_log_density(
        torch.stack(flat), torch.full((10,), -0.1, dtype=torch.float64), 0.5, 0.3
    )
    torch.testing.assert_close((log_q - full).std(), torch.zeros(()).double(), rtol=0, atol=1e-12)


# The noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_is_normal_and_one_number_does_not_tell_the_next(dtype):
    x = fill_normal(torch.empty(1_000_001, dtype=dtype), np.random.SFC64(5)).double().numpy()
    root = math.sqrt(len(x))
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (x**power).mean() == pytest.approx(moment, abs=5 * math.sqrt(spread) / root)
    assert kstest(x, "norm").pvalue > 1e-3
    for lag in (1, 2, 3, 4, CHUNK):
        assert abs((x[lag:] * x[:-lag]).mean()) < 5 / math.sqrt(len(x) - lag)


def test_the_levels_of_the_noise_have_mean_zero_and_variance_one():
    levels = normal_levels(torch.float64)
    torch.testing.assert_close(levels, -levels.flip(0), rtol=0, atol=1e-12)
    assert levels.square().mean().item() == pytest.approx(1, abs=1e-14)
    assert levels.pow(4).mean().item() == pytest.approx(3, abs=0.001)
    assert 4.2 < levels.max() < 4.4
    reached, shares = torch.special.ndtr(levels), torch.arange(65537, dtype=torch.float64) / 65536
    assert max((reached - shares[:-1]).abs().max(), (reached - shares[1:]).abs().max()) < 1.01e-5


def test_the_noise_of_a_part_is_the_part_of_the_noise():
    whole = fill_normal(torch.empty(CHUNK + 9), np.random.SFC64(5))
    assert torch.equal(fill_normal(torch.empty(CHUNK), np.random.SFC64(5)), whole[:CHUNK])


# What scoring leaves behind


class Everything(nn.Module):
    """Dropout, batch norm, and a part that is frozen in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 2)
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x))))


def test_scoring_leaves_parameters_buffers_modes_and_random_numbers_as_they_were():
    torch.manual_seed(0)
    model = Everything().double()
    likelihood(model, BATCH).backward()
    before, rng = state(model), torch.get_rng_state()

    def greedy(m, batch):
        assert not m.training
        assert not m.drop.training
        assert not torch.is_grad_enabled()
        torch.rand(3)
        return soft_errors(m, batch)

    MGS(model, greedy).rewrite_gradients(BATCH)
    assert same(state(model), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training
    assert model.drop.training
    assert not model.frozen.training


def test_the_global_generators_of_torch_numpy_and_python_come_out_of_scoring_as_they_went_in():
    def states():
        legacy = np.random.get_state()[1].tolist()  # noqa: NPY002
        return random.getstate(), legacy, torch.get_rng_state().tolist()

    def chance():
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    model, before = network(), states()
    with scoring_alike(model, 3) as restart:
        restart()
        first = chance()
        restart()
        assert chance() == first
    assert states() == before


def test_candidates_see_the_same_random_numbers_and_steps_see_others():
    model = network()

    def chance(m, batch):
        return torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002

    search = MGS(model, chance, likelihood)
    first, second = search.step(BATCH), search.step(BATCH)
    assert len({first["loss"], *first["losses"].tolist()}) == 1
    assert first["loss"] != second["loss"]


def test_a_loss_that_runs_a_backward_pass_of_its_own_does_not_steer_the_search():
    def nosy(m, batch):
        with torch.enable_grad():
            likelihood(m, batch).backward()
        return soft_errors(m, batch)

    ends = []
    for loss in (soft_errors, nosy):
        model = network()
        search = MGS(model, loss, likelihood)
        search.step(BATCH)
        ends.append(state(model))
        assert all(p.grad is None for p in model.parameters())
    assert same(*ends)


def test_a_loss_that_fails_leaves_the_parameters_to_the_bit():
    model = network(torch.float32)
    before = state(model)

    def fails(m, batch):
        raise RuntimeError("decoder broke")

    with pytest.raises(RuntimeError, match="decoder broke"):
        MGS(model, fails, lambda m, b: likelihood(m, (X.float(), Y))).step(BATCH)
    assert same(state(model), before)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_candidates_differ_under_an_autocast_that_caches_cast_weights():
    model = network(torch.float32)
    batch = (X.float(), Y)
    search = MGS(
        model, lambda m, b: soft_errors(m, b).float(), likelihood, sigma=50.0, temperature=0.1
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = search.step(batch)
        with torch.no_grad():
            inside = model(batch[0])
    assert len(set(report["losses"].tolist())) == 4
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(model(batch[0]), inside)


# Losses that are not finite, and few effective candidates


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_when_no_candidate_can_be_scored_nothing_moves_and_the_message_says_so(bad):
    model = network()
    before = state(model)
    with pytest.raises(ValueError, match=r"none of the 4 candidate losses is finite.*make sigma"):
        MGS(model, lambda m, b: bad, likelihood).step(BATCH)
    assert same(state(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_a_candidate_that_cannot_be_scored_gets_no_weight_and_is_counted():
    calls = iter(range(100))
    search = MGS(
        network(), lambda m, b: math.nan if next(calls) % 5 == 2 else soft_errors(m, b), likelihood
    )
    with pytest.warns(UserWarning, match=r"1 of 4 .* not finite"):
        report = search.step(BATCH)
    assert report["weights"][2] == 0
    assert report["rejected"] == 1
    search.step(BATCH)  # told once
    assert search.rejected == 2


def test_a_surrogate_that_is_not_finite_is_named_and_nothing_moves():
    model = network()
    before = state(model)

    def broken(m, batch):
        return likelihood(m, batch) + m[2].bias.sum() * math.inf

    with pytest.raises(ValueError, match=r"gradient has norm .*2\.bias.*as before"):
        MGS(model, soft_errors, broken).step(BATCH)
    assert same(state(model), before)


def test_a_vote_of_one_is_warned_about_once():
    search = MGS(network(), soft_errors, likelihood, temperature=1e-12)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(45):
            search.step(BATCH)
    assert len(told) == 1
    assert "fewer than 1.5 of 4 candidates" in str(told[0].message)


def test_effective_sample_size_is_reported_between_one_and_k():
    search = MGS(network(), soft_errors, likelihood, n_candidates=5)
    for _ in range(5):
        report = search.step(BATCH)
        assert 1 <= report["ess"] <= 5
        assert report["ess"] == effective_sample_size(report["weights"]).item()


# Seeds and state


def run(seed, steps=3):
    model = network()
    search = MGS(model, soft_errors, likelihood, seed=seed)
    for _ in range(steps):
        search.step(BATCH)
    return model, search


def test_the_seed_decides_everything():
    one, same_seed, other = run(5)[0], run(5)[0], run(6)[0]
    assert same(state(one), state(same_seed))
    assert not same(state(one), state(other))


def test_a_generator_gives_the_seed():
    seeds = [
        MGS(network(), errors, likelihood, seed=torch.Generator().manual_seed(s)).seed
        for s in (1, 1, 2)
    ]
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_resumed_search_ends_in_the_same_bits():
    whole, _ = run(5, steps=5)
    model, search = run(5, steps=2)
    saved, weights = copy.deepcopy(search.state_dict()), state(model)
    resumed_model = network()
    resumed_model.load_state_dict(weights)
    resumed = MGS(resumed_model, soft_errors, likelihood, seed=99)
    resumed.load_state_dict(saved)
    for _ in range(3):
        resumed.step(BATCH)
    assert same(state(resumed_model), state(whole))
    with pytest.raises(ValueError, match=r"lacks \['seed'\]"):
        resumed.load_state_dict({"steps": 1, "low_steps": 0, "rejected": 0})


def test_neighbouring_seeds_steps_and_candidates_share_no_noise():
    seeds = {
        hashed(s, t, p, k) for s in range(5) for t in range(20) for p in (1, 2, 3) for k in range(8)
    }
    assert len(seeds) == 5 * 20 * 3 * 8


# Other optimizers and loops


def test_an_inner_sgd_of_rate_one_is_no_inner_optimizer():
    plain, _ = run(5)
    model = network()
    inner = torch.optim.SGD(model.parameters(), lr=1.0)
    search = MGS(model, soft_errors, likelihood, inner_optimizer=inner, seed=5)
    for _ in range(3):
        search.step(BATCH)
    assert same(state(model), state(plain))


def test_attached_to_an_optimizer_it_does_the_same_in_a_plain_loop():
    expected = network()
    inner = torch.optim.Adam(expected.parameters(), lr=0.1)
    search = MGS(expected, soft_errors, likelihood, inner_optimizer=inner, seed=5)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    attached = MGS(model, soft_errors, seed=5)
    handle = attached.attach(optimizer)
    for _ in range(3):
        report = search.step(BATCH)
        optimizer.zero_grad()
        likelihood(model, BATCH).backward()
        attached.batch = BATCH
        optimizer.step()
        assert attached.report["loss"] == report["loss"]
    assert same(state(model), state(expected))
    handle.remove()
    steps = attached.steps
    likelihood(model, BATCH).backward()
    optimizer.step()
    assert attached.steps == steps


def test_with_a_grad_scaler_the_surrogate_counts_unscaled():
    models = [network(torch.float32), network(torch.float32)]
    batch, ends = (X.float(), Y), []
    for model, scaler in zip(models, (None, torch.amp.GradScaler("cpu", 1024.0)), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        search = MGS(model, soft_errors, max_grad_norm=None)
        search.attach(optimizer)
        search.batch = batch
        loss = likelihood(model, batch)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
        ends.append(state(model))
    assert same(*ends)


def test_a_step_with_inf_under_a_scaler_is_skipped_whole():
    model = network(torch.float32)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1.0), torch.amp.GradScaler("cpu")
    search = MGS(model, soft_errors)
    search.attach(optimizer)
    before = state(model)
    scaler.scale(likelihood(model, (X.float(), Y)) * math.inf).backward()
    scaler.step(optimizer)
    assert search.steps == 0
    assert same(state(model), before)


def test_an_optimizer_that_lacks_a_searched_parameter_is_refused():
    model = network()
    head = torch.optim.SGD(model[2].parameters(), lr=1.0)
    with pytest.raises(ValueError, match=r"does not hold 0\.weight.*requires_grad_\(False\)"):
        MGS(model, errors, likelihood, inner_optimizer=head)
    with pytest.raises(ValueError, match=r"does not hold 0\.weight"):
        MGS(model, errors).attach(head)
    model[0].requires_grad_(False)
    MGS(model, errors, likelihood, inner_optimizer=head).step(BATCH)


def test_a_second_search_on_one_optimizer_is_refused_until_the_first_is_removed():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = MGS(model, errors).attach(optimizer)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"attached .* already.*remove\(\)"):
            MGS(model, errors).attach(optimizer)
        handle.remove()
        handle = MGS(model, errors).attach(optimizer)


def test_the_wrapper_of_accelerate_is_seen_through():
    accelerate = pytest.importorskip("accelerate")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    search = MGS(model, soft_errors)
    wrapped = accelerate.Accelerator(cpu=True).prepare_optimizer(optimizer)
    search.attach(wrapped)
    search.batch = BATCH
    likelihood(model, BATCH).backward()
    wrapped.step()
    assert search.steps == 1
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer"):
        search.attach(model)


def test_a_closure_still_scaled_gradients_and_a_missing_batch_are_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    search = MGS(model, soft_errors)
    search.attach(optimizer)
    likelihood(model, BATCH).backward()
    with pytest.raises(ValueError, match=r"set the attribute batch"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"closure.*rewrite_gradients\(batch\)"):
        optimizer.step(lambda: 0.0)
    optimizer.grad_scale = torch.tensor(2.0)
    with pytest.raises(ValueError, match=r"scaler\.unscale_\(optimizer\)"):
        optimizer.step()


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_candidates": 0}, "n_candidates must be at least 1, got 0"),
        ({"n_candidates": 3, "antithetic": True}, "even number .* got 3"),
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": "hot"}, "a positive number or \"adaptive\", got 'hot'"),
        ({"step_size": -1.0}, "step_size must be positive and finite, got -1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
        ({"mixture": 1.5}, "mixture must be between 0 and 1, got 1.5"),
        ({"noise": "uniform"}, "noise must be one of relative, absolute, got 'uniform'"),
        ({"density": "full"}, "density must be one of none, mixture, unit, exact, got 'full'"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_an_argument_out_of_range_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        MGS(network(), errors, likelihood, **options)


def test_half_precision_parameters_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"0\.weight is torch\.bfloat16.*float32.*autocast"):
        MGS(network(torch.bfloat16), errors, likelihood)


def test_a_frozen_model_and_a_missing_surrogate_are_refused():
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        MGS(network().requires_grad_(False), errors, likelihood)
    with pytest.raises(ValueError, match=r"give surrogate_fn.*mixture=1"):
        MGS(network(), errors).step(BATCH)


def test_a_sparse_gradient_is_refused():
    model = nn.Embedding(5, 2, sparse=True)
    search = MGS(model, lambda m, b: 0.0, lambda m, b: m(b).sum())
    with pytest.raises(ValueError, match=r"gradient of weight is sparse"):
        search.step(torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("loss", "said"), [(torch.ones(4), r"a tensor of shape \(4,\)"), (None, "None")]
)
def test_a_loss_that_is_not_one_number_is_refused(loss, said):
    with pytest.raises(TypeError, match=f"must return one number, got {said}"):
        MGS(network(), lambda m, b: loss, likelihood).step(BATCH)


@pytest.mark.parametrize("loss", [1, 1.0, np.float32(1), torch.ones(1), torch.ones((), dtype=int)])
def test_any_single_number_will_do(loss):
    assert MGS(network(), lambda m, b: loss, likelihood).step(BATCH)["loss"] == 1.0
