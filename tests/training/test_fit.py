"""The loop: gradients, schedule, what is kept, when it stops, what it refuses."""

import math
import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from kexue.data.batching import LengthBatches
from kexue.training.optimizers import scale
from kexue.training.settings import FitSettings

PLAIN = {"optimizer": "sgd", "max_grad_norm": None, "weight_decay": 0.0}


class Slope(nn.Module):
    """One weight whose gradient is the same at every step."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.slope = slope

    def objective(self, model, batch):
        return model.w.sum() * self.slope


def walk(toy, folder, slope=1.0, **settings):
    """Where the weight of a `Slope` stands after every step; an epoch is one step."""
    model, seen = Slope(slope), [0.0]

    def evaluate(model):
        seen.append(model.w.item())
        return {"accuracy": 0.0}

    toy.train(
        folder,
        model=model,
        objective=model.objective,
        evaluate=evaluate,
        **{**PLAIN, "batch_size": toy.rows, **settings},
    )
    return [before - after for before, after in pairwise(seen)]


def scores(*values):
    """An `evaluate` that returns these, one after the other."""
    rest = iter(values)
    return lambda model: {"accuracy": float(next(rest))}


def close(a, b, atol=1e-6):
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol)


# Gradients


@pytest.mark.parametrize("budget", [1, 20, 37, 60])
def test_weights_do_not_depend_on_how_a_step_is_cut(toy, tmp_path, budget):
    whole, _ = toy.train(tmp_path / "whole", max_tokens=100_000, epochs=3, **PLAIN)
    cut, _ = toy.train(tmp_path / "cut", max_tokens=budget, epochs=3, **PLAIN)
    plan = LengthBatches(toy.features.lengths, batch_size=5, max_tokens=budget)
    assert max(len(step) for step in plan.epoch(0)) > 1
    close(whole, cut)


def test_cut_steps_equal_plain_training_on_whole_batches(toy, tmp_path):
    settings = FitSettings(epochs=3, batch_size=5, learning_rate=0.1, **PLAIN)
    plan = LengthBatches(toy.features.lengths, batch_size=5)
    assert toy.rows % 5, "the last step of an epoch must be a smaller one"
    model, steps = toy.model(), 3 * len(plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    taken = 0
    for epoch in range(3):
        for [micro] in plan.epoch(epoch):
            optimizer.param_groups[0]["lr"] = 0.1 * scale(settings, taken, steps)
            optimizer.zero_grad()
            toy.objective(model, toy.collate(toy.features.rows(micro.indices))).backward()
            optimizer.step()
            taken += 1
    cut, _ = toy.train(tmp_path, epochs=3, max_tokens=20, **PLAIN)
    close(model.state_dict(), cut)


def test_micro_batches_weigh_what_they_count(toy, tmp_path):
    shares = []

    class Weighed(Slope):
        def objective(self, model, batch):
            shares.append(batch.count)
            return model.w.sum() * len(shares)

    model = Weighed()
    steps = []
    toy.train(
        tmp_path,
        model=model,
        objective=model.objective,
        evaluate=lambda m: steps.append(-m.w.item()) or {"accuracy": 0.0},
        epochs=1,
        batch_size=toy.rows,
        max_tokens=60,
        warmup=0.0,
        **PLAIN,
    )
    assert len(set(shares)) > 1
    assert sum(shares) == toy.rows
    mean = sum(count * (i + 1) for i, count in enumerate(shares)) / toy.rows
    assert steps == [pytest.approx(0.1 * mean, rel=1e-6)]


def test_gradients_are_scaled_down_to_the_norm_and_never_up(toy, tmp_path):
    options = {"epochs": 1, "warmup": 0.0, "learning_rate": 0.1}
    [clipped] = walk(toy, tmp_path / "a", slope=10.0, max_grad_norm=2.0, **options)
    [small] = walk(toy, tmp_path / "b", slope=0.5, max_grad_norm=2.0, **options)
    [free] = walk(toy, tmp_path / "c", slope=10.0, max_grad_norm=None, **options)
    assert clipped == pytest.approx(0.2, rel=1e-5)
    assert small == pytest.approx(0.05, rel=1e-5)
    assert free == pytest.approx(1.0, rel=1e-5)


def test_vectors_do_not_decay_and_matrices_do(toy, tmp_path):
    model = toy.model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    after, _ = toy.train(
        tmp_path,
        model=model,
        objective=lambda m, b: sum((p * 0.0).sum() for p in m.parameters()),
        epochs=1,
        batch_size=toy.rows,
        warmup=0.0,
        weight_decay=0.5,
        optimizer="adamw",
    )
    for name, value in before.items():
        factor = 1 - 0.1 * 0.5 if value.ndim > 1 else 1.0
        torch.testing.assert_close(after[name], value * factor)


# Schedule


def test_the_rate_climbs_over_the_warm_up_and_falls_to_zero(toy, tmp_path):
    rates = walk(toy, tmp_path, epochs=10, warmup=0.25, learning_rate=1.0)
    expected = [1 / 3, 2 / 3, 1, *[left / 7 for left in range(7, 0, -1)]]
    assert rates == pytest.approx(expected, rel=1e-5)


def test_the_linear_schedule_reaches_zero_after_the_last_step():
    settings = FitSettings(warmup=0.1)
    assert scale(settings, 100, 100) == 0
    assert scale(settings, 10, 100) == 1


def test_the_constant_schedule_stays_at_the_peak_after_the_warm_up(toy, tmp_path):
    rates = walk(toy, tmp_path, epochs=6, warmup=0.5, schedule="constant", learning_rate=1.0)
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1], rel=1e-5)


def test_without_warm_up_the_first_step_has_the_peak_rate(toy, tmp_path):
    assert walk(toy, tmp_path, epochs=2, warmup=0.0, learning_rate=1.0) == pytest.approx([1, 0.5])


def test_a_warm_up_over_all_steps_never_falls(toy, tmp_path):
    rates = walk(toy, tmp_path, epochs=4, warmup=1.0, learning_rate=1.0)
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0])


# What is kept


def test_the_best_epoch_is_kept_and_a_tie_keeps_the_earlier(toy, tmp_path):
    kept = []
    _, result = toy.train(
        tmp_path,
        epochs=5,
        evaluate=scores(10, 30, 30, 20, 30),
        keep=lambda model: kept.append(len(kept)),
    )
    assert len(kept) == 2
    assert (result.best_epoch, result.best, result.epochs) == (2, {"accuracy": 30.0}, 5)
    assert [h["accuracy"] for h in result.history] == [10, 30, 30, 20, 30]


def test_the_weights_kept_are_those_that_were_scored(toy, tmp_path):
    scored, kept = [], []

    def copy(model):
        return {name: value.clone() for name, value in model.state_dict().items()}

    values = iter([1.0, 3.0, 2.0])

    def evaluate(model):
        scored.append(copy(model))
        return {"accuracy": next(values)}

    toy.train(tmp_path, epochs=3, evaluate=evaluate, keep=lambda m: kept.append(copy(m)))
    close(scored[1], kept[-1], atol=0)


def test_an_epoch_that_scores_zero_is_kept_if_it_is_the_first(toy, tmp_path):
    kept = []
    _, result = toy.train(tmp_path, evaluate=scores(0, 0), keep=kept.append)
    assert (len(kept), result.best_epoch) == (1, 1)


def test_training_stops_when_patience_runs_out(toy, tmp_path):
    _, result = toy.train(tmp_path, epochs=9, patience=2, evaluate=scores(1, 3, 2, 3, 9))
    assert (result.epochs, result.best_epoch) == (4, 2)


def test_patience_starts_anew_with_every_gain(toy, tmp_path):
    _, result = toy.train(tmp_path, epochs=5, patience=2, evaluate=scores(1, 0, 2, 1, 3))
    assert (result.epochs, result.best_epoch) == (5, 5)


# Randomness


def test_the_same_seed_gives_the_same_bits(toy, same, tmp_path):
    first, _ = toy.train(tmp_path / "a", dropout=0.3, seed=1)
    torch.manual_seed(99)  # whatever happened before
    second, _ = toy.train(tmp_path / "b", dropout=0.3, seed=1)
    same(first, second)


def test_another_seed_gives_other_bits(toy, tmp_path):
    first, _ = toy.train(tmp_path / "a", dropout=0.3, seed=1)
    second, _ = toy.train(tmp_path / "b", dropout=0.3, seed=2)
    assert not torch.equal(first["table.weight"], second["table.weight"])


def test_dropout_differs_from_step_to_step(toy, tmp_path):
    drawn = []

    def objective(model, batch):
        drawn.append(torch.rand(1).item())
        return toy.objective(model, batch)

    toy.train(tmp_path, objective=objective)
    assert len(set(drawn)) == len(drawn) == 2 * toy.steps


# Records


def test_metrics_hold_losses_rates_and_scores_in_order(toy, tmp_path):
    _, result = toy.train(tmp_path, epochs=3, max_tokens=20)
    lines = toy.metrics(tmp_path)
    losses = [line for line in lines if "loss" in line]
    dev = [line for line in lines if "dev" in line]
    assert [line["step"] for line in losses] == [1, 10, 15]
    assert [line["step"] for line in dev] == [5, 10, 15]
    assert [line["epoch"] for line in dev] == [1, 2, 3]
    assert [line["dev"] for line in dev] == result.history
    assert all(line["step"] <= after["step"] for line, after in pairwise(lines))
    for line in losses:
        settings = FitSettings(learning_rate=0.1)
        assert line["learning_rate"] == pytest.approx(0.1 * scale(settings, line["step"] - 1, 15))
        assert line["tokens_per_second"] > line["samples_per_second"] > 0


def test_the_logged_loss_is_the_mean_over_the_step(toy, tmp_path):
    toy.train(tmp_path, epochs=1, batch_size=toy.rows, max_tokens=20)
    whole = toy.collate(toy.features.rows(list(range(toy.rows))))
    expected = toy.objective(toy.model(), whole).item()
    assert toy.metrics(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-6)


# Precision


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_training_runs_in_the_precision_asked_for_and_evaluation_in_fp32(
    toy, tmp_path, precision, dtype
):
    trained, scored = set(), set()

    def objective(model, batch):
        logits = model(**batch.inputs)
        trained.add(logits.dtype)
        return nn.functional.cross_entropy(logits.float(), batch.targets["label"])

    def evaluate(model):
        batch = toy.collate(toy.features.rows([0, 1]))
        scored.add(model(**batch.inputs).dtype)
        return {"accuracy": 0.0}

    after, _ = toy.train(tmp_path, precision=precision, objective=objective, evaluate=evaluate)
    assert (trained, scored) == ({dtype}, {torch.float32})
    assert all(value.dtype == torch.float32 for value in after.values())


def test_training_goes_on_in_training_mode_after_an_evaluation(toy, tmp_path):
    modes = []

    def objective(model, batch):
        modes.append(model.training)
        return toy.objective(model, batch)

    toy.train(tmp_path, objective=objective)
    assert modes == [True] * (2 * toy.steps)


# Refusals


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [1, 3, 5, 7])
def test_a_loss_that_is_not_finite_names_its_step_and_is_never_saved(toy, tmp_path, bad, at):
    calls, kept = [], []

    def objective(model, batch):
        calls.append(1)
        return toy.objective(model, batch) * (bad if len(calls) == at else 1.0)

    with pytest.raises(FloatingPointError, match=rf"the loss or its gradient is nan at step {at};"):
        toy.train(tmp_path, objective=objective, keep=kept.append)
    assert len(kept) == (1 if at > toy.steps else 0)
    for checkpoint in (tmp_path / "checkpoints").glob("*"):
        assert int(checkpoint.name.removeprefix("step-")) < at


def test_an_unknown_optimizer_is_refused_with_the_names_known():
    with pytest.raises(ValueError, match=r"no optimizer is called 'adamm'; known: .*adamw, .*sgd"):
        FitSettings(optimizer="adamm")


@pytest.mark.parametrize("name", ["lbfgs", "SparseAdam", "optimizer", "lr_scheduler", "muon"])
def test_optimizers_that_cannot_train_here_are_not_known(name):
    with pytest.raises(ValueError, match="no optimizer is called"):
        FitSettings(optimizer=name)


def known_optimizers():
    with pytest.raises(ValueError, match="known: ") as caught:
        FitSettings(optimizer="")
    return str(caught.value).partition("known: ")[2].split(", ")


@pytest.mark.parametrize("name", ["SGD", *known_optimizers()])
def test_every_optimizer_named_in_the_message_trains(toy, tmp_path, name):
    before = toy.model().state_dict()
    after, _ = toy.train(tmp_path, optimizer=name, learning_rate=0.01)
    assert not torch.equal(before["out.weight"], after["out.weight"])
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"schedule": "cosine"}, "schedule must be one of linear, constant, got 'cosine'"),
        ({"precision": "fp16"}, "precision must be one of auto, bf16, fp32, got 'fp16'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_tokens": -1}, "max_tokens must be at least 1, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        ({"learning_rate": -1e-3}, "learning_rate must be positive and finite, got -0.001"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite, got nan"),
        ({"learning_rate": math.inf}, "learning_rate must be positive and finite, got inf"),
        ({"warmup": 1.5}, "warmup is a share of the steps, 0 to 1, got 1.5"),
        ({"warmup": math.nan}, "warmup is a share of the steps, 0 to 1, got nan"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive, got 0.0"),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes must not be negative, got -1.0"),
        ({"checkpoint_minutes": math.nan}, "checkpoint_minutes must not be negative, got nan"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_value(setting, message):
    start, _, got = message.rpartition(", got ")
    with pytest.raises(ValueError, match=rf"{re.escape(start)}.*, got {re.escape(got)}"):
        FitSettings(**setting)
