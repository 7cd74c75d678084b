"""Length-bucketed batches: everything once, within budget, the same for every process."""

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue.data.batching import Batch, LengthBatches, pad_rows

lengths_of = st.lists(st.integers(1, 60), min_size=1, max_size=80)
options = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 12),
        "max_tokens": st.none() | st.integers(1, 200),
        "rows": st.sampled_from([1, 4]),
        "shuffle": st.booleans(),
        "window": st.integers(1, 4),
        "seed": st.integers(0, 5),
    }
)
worlds = pytest.mark.parametrize("world", [1, 2, 3])


def plans(lengths, world, **given):
    """The plan of every process."""
    return [LengthBatches(lengths, rank=r, world_size=world, **given) for r in range(world)]


def own(step):
    """The counted features of one process's step."""
    return [i for micro in step if micro.counted for i in micro.indices]


@worlds
@given(lengths=lengths_of, given=options)
def test_every_feature_comes_exactly_once_an_epoch(world, lengths, given):
    seen = [
        i for plan in plans(lengths, world, **given) for step in plan.epoch(0) for i in own(step)
    ]
    assert sorted(seen) == list(range(len(lengths)))


@worlds
@given(lengths=lengths_of, given=options)
def test_a_step_of_all_processes_is_the_step_of_one(world, lengths, given):
    shares = [plan.epoch(2) for plan in plans(lengths, world, **given)]
    alone = LengthBatches(lengths, **given).epoch(2)
    assert {len(steps) for steps in shares} == {len(alone)}
    for step, *parts in zip(alone, *shares, strict=True):
        assert sorted(itertools.chain(*map(own, parts))) == sorted(own(step))


@worlds
@given(lengths=lengths_of, given=options)
def test_every_process_has_the_same_number_of_micro_batches(world, lengths, given):
    shares = [plan.epoch(1) for plan in plans(lengths, world, **given)]
    for parts in zip(*shares, strict=True):
        assert len({len(part) for part in parts}) == 1


@worlds
@given(lengths=lengths_of, given=options)
def test_a_step_holds_batch_size_features_but_the_last(world, lengths, given):
    plan = LengthBatches(lengths, **given)
    sizes = sorted(len(own(step)) for step in plan.epoch(0))
    full, rest = divmod(len(lengths), given["batch_size"])
    assert sizes == ([rest] if rest else []) + [given["batch_size"]] * full
    assert len(plan) == len(sizes)


@worlds
@given(lengths=lengths_of, given=options)
def test_padded_tokens_stay_within_the_budget(world, lengths, given):
    if given["max_tokens"] is None:
        return
    for plan in plans(lengths, world, **given):
        for micro in itertools.chain(*plan.epoch(0)):
            widest = max(lengths[i] for i in micro.indices)
            padded = widest * given["rows"] * len(micro.indices)
            assert padded <= given["max_tokens"] or len(micro.indices) == 1


@given(lengths=lengths_of, given=options)
def test_a_feature_larger_than_the_budget_goes_alone(lengths, given):
    plan = LengthBatches(lengths, **{**given, "max_tokens": 1})
    assert all(len(micro.indices) == 1 for step in plan.epoch(0) for micro in step)


@worlds
def test_a_process_without_a_feature_keeps_step_uncounted(world):
    shares = [plan.epoch(0) for plan in plans([5], world, batch_size=4)]
    counted = [micro.counted for [[micro]] in shares]
    assert counted == [True] + [False] * (world - 1)
    assert all(micro.indices == [0] for [[micro]] in shares)


@given(lengths=lengths_of, given=options, epoch=st.integers(0, 4))
def test_the_same_seed_and_epoch_give_the_same_plan(lengths, given, epoch):
    assert LengthBatches(lengths, **given).epoch(epoch) == LengthBatches(
        np.array(lengths), **given
    ).epoch(epoch)


def test_a_plan_does_not_depend_on_the_epochs_asked_before():
    plan = LengthBatches(range(1, 100), batch_size=8)
    third = plan.epoch(3)
    plan.epoch(0)
    assert plan.epoch(3) == third


def test_another_epoch_and_another_seed_give_another_order():
    lengths = [7] * 200
    orders = [
        [own(step) for step in LengthBatches(lengths, batch_size=8, seed=seed).epoch(epoch)]
        for seed, epoch in itertools.product(range(3), range(3))
    ]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_who_is_in_a_batch_with_whom_changes_from_epoch_to_epoch():
    plan = LengthBatches([7] * 200, batch_size=8, window=2)
    first, second = ({frozenset(own(s)) for s in plan.epoch(e)} for e in (0, 1))
    assert not first & second


def test_long_and_short_batches_come_mixed():
    lengths = np.random.default_rng(0).integers(1, 500, size=3200)
    plan = LengthBatches(lengths, batch_size=32)
    widths = [lengths[own(step)].mean() for step in plan.epoch(0)]
    assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.35


def test_without_shuffling_the_shortest_come_first():
    assert [own(s) for s in LengthBatches([3, 9, 4, 8], batch_size=2, shuffle=False).epoch(5)] == [
        [0, 2],
        [3, 1],
    ]


def waste(plan, lengths):
    """Share of the computed tokens that are padding."""
    padded = used = 0
    for micro in itertools.chain(*plan.epoch(0)):
        own = [int(lengths[i]) for i in micro.indices]
        padded += max(own) * len(own)
        used += sum(own)
    return 1 - used / padded


@pytest.mark.parametrize("max_tokens", [None, 4096])
def test_padding_wastes_less_than_five_percent_on_lengths_of_real_texts(max_tokens):
    """Log-normal, as lengths of sentences are; random batches would waste more than a third."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(3.6, 0.6, size=20_000), 5, 128).astype(int)
    plan = LengthBatches(lengths, batch_size=32, max_tokens=max_tokens)
    assert waste(plan, lengths) < 0.05
    assert waste(LengthBatches(lengths, batch_size=32, window=1), lengths) > 0.33


def test_three_hundred_thousand_features_are_planned_in_seconds():
    lengths = np.random.default_rng(0).integers(5, 512, size=300_000)
    began = time.process_time()
    LengthBatches(lengths, batch_size=32, max_tokens=8192).epoch(0)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", ["batch_size", "max_tokens", "rows", "window", "world_size"])
@pytest.mark.parametrize("value", [0, -3])
def test_a_size_below_one_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
        LengthBatches([1, 2], **{"batch_size": 2, name: value})


@pytest.mark.parametrize("lengths", [[], [[1, 2]]])
def test_lengths_that_are_no_list_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths must be a non-empty list, got shape"):
        LengthBatches(np.array(lengths), batch_size=2)


# Padding


@given(
    st.lists(st.lists(st.integers(0, 99), max_size=9), min_size=1, max_size=6), st.integers(0, 9)
)
@settings(max_examples=60)
def test_padded_rows_are_those_of_the_naive_twin(rows, pad):
    ids, mask = pad_rows(rows, pad)
    width = max(map(len, rows))
    assert ids.tolist() == [row + [pad] * (width - len(row)) for row in rows]
    assert mask.tolist() == [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    assert ids.dtype == mask.dtype == torch.int64


def test_a_batch_moves_with_all_it_holds():
    batch = Batch({"a": torch.ones(2)}, {"b": torch.zeros(2)}, count=2, examples=[3, 4], tokens=5)
    moved = batch.to(torch.device("cpu"))
    assert (moved.count, moved.examples, moved.tokens) == (2, [3, 4], 5)
    assert torch.equal(moved.inputs["a"], batch.inputs["a"])
    assert torch.equal(moved.targets["b"], batch.targets["b"])
