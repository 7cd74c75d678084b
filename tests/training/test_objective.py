"""Tricks of the loss: how they stack, and what is refused."""

import pytest
import torch

from kexue.data.batching import Batch
from kexue.training import objective as module
from kexue.training.objective import apply_tricks, parse_trick, register_trick, tricks

MODEL, BATCH = torch.nn.Identity(), Batch({})


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Two tricks that do not commute."""
    monkeypatch.setattr(module, "REGISTRY", {})

    @register_trick("times")
    def times(objective, value, facts):
        return lambda model, batch: objective(model, batch) * value

    @register_trick("plus")
    def plus(objective, value, facts):
        return lambda model, batch: objective(model, batch) + value

    return module.REGISTRY


def loss(model, batch):
    return torch.tensor(5.0)


def test_the_first_trick_named_is_the_innermost():
    assert apply_tricks(loss, ["times=2", "plus=1"])(MODEL, BATCH) == 11
    assert apply_tricks(loss, ["plus=1", "times=2"])(MODEL, BATCH) == 12


def test_the_same_trick_may_be_stacked_twice():
    assert apply_tricks(loss, ["times=2", "times=3"])(MODEL, BATCH) == 30


def test_without_tricks_the_objective_is_the_one_given():
    assert apply_tricks(loss, []) is loss


def test_a_wrapped_objective_passes_model_and_batch_through():
    seen = apply_tricks(lambda model, batch: (model, batch), [])
    assert seen("model", "batch") == ("model", "batch")


def test_known_names_are_listed_in_order():
    assert tricks() == ("plus", "times")


def test_an_unknown_trick_is_refused_with_the_names_known():
    with pytest.raises(ValueError, match=r"no trick is called 'fgm'; known: plus, times"):
        apply_tricks(loss, ["fgm=1"])


def test_an_unknown_trick_is_refused_also_where_none_is_installed(registry):
    registry.clear()
    with pytest.raises(ValueError, match=r"no trick is called 'fgm'; known: none is installed"):
        parse_trick("fgm=1")


@pytest.mark.parametrize("text", ["times", "", "times 2"])
def test_a_trick_without_a_value_is_refused_and_repeated(text):
    with pytest.raises(ValueError, match=rf"--trick needs name=value, got '{text}'"):
        parse_trick(text)


@pytest.mark.parametrize("value", ["", "much", "1=2", "0,5"])
def test_a_value_that_is_no_number_is_refused_and_repeated(value):
    with pytest.raises(ValueError, match=rf"--trick times must be a number, got '{value}'"):
        parse_trick(f"times={value}")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_value_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match=rf"--trick times must be a number, got '{value}'"):
        parse_trick(f"times={value}")


def test_a_name_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="a trick called plus is registered already"):
        register_trick("plus")(lambda objective, value: objective)
    assert apply_tricks(loss, ["plus=1"])(MODEL, BATCH) == 6


def test_a_bad_trick_is_refused_before_any_is_applied(registry):
    made = []
    registry["noisy"] = lambda objective, value: made.append(value)
    with pytest.raises(ValueError, match="no trick is called"):
        apply_tricks(loss, ["noisy=1", "missing=1"])
    assert made == []


def test_the_raw_loss_is_kept_beside_the_modified_one():
    objective = apply_tricks(loss, ["times=2", "plus=1"])
    assert objective(MODEL, BATCH) == 11
    assert objective.raw == 5


def test_of_several_passes_in_one_call_the_first_is_the_raw_loss(registry):
    @register_trick("twice")
    def twice(objective, value, facts):
        return lambda model, batch: objective(model, batch) + objective(model, batch)

    given = iter([torch.tensor(3.0), torch.tensor(4.0), torch.tensor(6.0), torch.tensor(7.0)])
    objective = apply_tricks(lambda model, batch: next(given), ["twice=1"])
    assert (objective(MODEL, BATCH), objective.raw) == (7, 3)
    assert (objective(MODEL, BATCH), objective.raw) == (13, 6)


def test_a_trick_is_told_of_the_task(registry):
    told = []

    @register_trick("asks")
    def asks(objective, value, facts):
        told.append(facts)
        return objective

    facts = module.TaskFacts("tnews", "softmax")
    apply_tricks(loss, ["asks=1"], facts)
    apply_tricks(loss, ["asks=1"])
    assert told == [facts, module.TaskFacts()]
