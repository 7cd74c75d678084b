"""S31: scheduled sampling in two passes, and the gap it is meant to close."""

import math
import pickle

import pytest
import torch
from jaxtyping import TypeCheckError
from torch.nn import functional as F

from kexue.losses.exposure import (
    ExponentialDecay,
    ExposureGap,
    InverseSigmoidDecay,
    LinearDecay,
    ParallelScheduledSampling,
    exposure_gap,
    free_running,
)
from kexue.losses.exposure.places import next_labels
from kexue.losses.exposure.scheduled_sampling import sampled_ids
from naive import exposure as naive

BOS, EOS, PAD, V = 0, 1, 2, 17
MIXES = ("argmax", "sample", "softmax", "gumbel")


def batch(rows=6, n=7, seed=0):
    """Encoder-decoder rows, every second one two tokens shorter."""
    words = torch.randint(3, V, (rows, n), generator=torch.Generator().manual_seed(seed))
    words[::2, -2:] = PAD
    inputs = torch.cat([torch.full((rows, 1), BOS), words], 1)
    labels = torch.cat([words, torch.full((rows, 1), EOS)], 1)
    labels[::2, -1], labels[::2, -3] = PAD, EOS
    inputs[::2, -2:] = PAD
    return inputs, labels.masked_fill(labels == PAD, -100)


def own(labels):
    return F.pad(labels[:, :-1] != -100, (1, 0))


# Schedules


def test_the_three_schedules_have_the_values_computed_by_hand():
    assert LinearDecay(0.001, floor=0.1)(500) == pytest.approx(0.5, abs=1e-10)
    assert ExponentialDecay(0.999)(500) == pytest.approx(0.606378944861185, abs=1e-10)
    assert InverseSigmoidDecay(100.0)(500) == pytest.approx(0.4025551639907581, abs=1e-10)
    assert LinearDecay(0.001, floor=0.1)(10_000) == 0.1
    assert InverseSigmoidDecay(100.0)(0) == pytest.approx(100 / 101)
    assert InverseSigmoidDecay(100.0)(round(100 * math.log(100))) == pytest.approx(0.5, abs=1e-2)


@pytest.mark.parametrize(
    "schedule", [LinearDecay(1e-3), ExponentialDecay(0.99), InverseSigmoidDecay(1.0)], ids=str
)
def test_schedules_only_fall_stay_in_range_and_survive_a_million_updates(schedule):
    rates = [schedule(i) for i in range(0, 1_000_000, 50_000)]
    assert rates == sorted(rates, reverse=True)
    assert 0 <= rates[-1] <= rates[0] <= 1
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearDecay(-1.0), "slope >= 0"),
        (lambda: LinearDecay(0.1, floor=0.9, start=0.5), "floor <= start"),
        (lambda: ExponentialDecay(1.1), "k must be between 0 and 1, got 1.1"),
        (lambda: InverseSigmoidDecay(0.5), "k must be at least 1, got 0.5"),
        (lambda: ParallelScheduledSampling(1.0, temperature=0.0), "temperature must be positive"),
        (lambda: ParallelScheduledSampling(1.0, "softmax", top_k=0), "top_k must be at least 1"),
        (lambda: ParallelScheduledSampling(1.0, top_k=5), "gives ids: top_k"),
        (lambda: ParallelScheduledSampling(1.0, through_first_pass=True), "gives ids"),
        (lambda: ParallelScheduledSampling(1.5).gold_rate, "schedule gave 1.5 at update 0"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_unknown_mix_is_refused():
    with pytest.raises((ValueError, TypeCheckError), match="mix"):  # the hook may be first
        ParallelScheduledSampling(1.0, "beam")


def test_logits_and_embeddings_that_do_not_fit_are_refused():
    inputs, labels = batch()
    with pytest.raises(ValueError, match="give embedding=the input table"):
        ParallelScheduledSampling(1.0, "softmax")(inputs, labels, torch.zeros(6, 8, V))
    with pytest.raises(ValueError, match="hold no target"):
        ParallelScheduledSampling(1.0)(inputs, labels * 0 - 100, torch.zeros(6, 8, V))


# Properties


@pytest.mark.parametrize("mix", MIXES)
def test_a_gold_rate_of_one_is_teacher_forcing_to_the_bit(mix):
    inputs, labels = batch()
    model = naive.Causal(V)
    sampling = ParallelScheduledSampling(1.0, mix)
    for _ in range(10):
        mixed = sampling(inputs, labels, model(inputs), embedding=model.table)
        gold = inputs if mix in ("argmax", "sample") else model.table(inputs)
        assert torch.equal(mixed, gold)


@pytest.mark.parametrize("mix", MIXES)
def test_a_gold_rate_of_zero_uses_predictions_only(mix):
    inputs, labels = batch()
    model, own_places = naive.Causal(V), own(labels)
    sampling = ParallelScheduledSampling(0.0, mix, seed=1)
    logits = model(inputs)
    mixed = sampling(inputs, labels, logits, embedding=model.table)
    other = inputs.masked_fill(own_places, 5)  # the gold tokens are not even looked at
    again = ParallelScheduledSampling(0.0, mix, seed=1)(
        other, labels, logits, embedding=model.table
    )
    assert torch.equal(mixed, again)
    if mix == "argmax":
        words = logits.argmax(-1).roll(1, 1)
        assert torch.equal(mixed, torch.where(own_places, words, inputs))
    if mix == "softmax":
        mean = (logits.softmax(-1) @ model.table.weight).roll(1, 1)
        expected = torch.where(own_places[..., None], mean, model.table(inputs))
        torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("labels_of", ["next", "own"])
def test_the_same_seed_gives_the_same_inputs_whatever_the_padding(mix, labels_of):
    inputs, labels = batch()
    if labels_of == "own":
        labels = torch.where((inputs == BOS) | (inputs == PAD), -100, inputs)
    model = naive.Causal(V)
    logits = model(inputs)

    def run(before, after):
        sampling = ParallelScheduledSampling(0.5, mix, seed=3)
        mixed = sampling(
            F.pad(inputs, (before, after), value=PAD),
            F.pad(labels, (before, after), value=-100),
            F.pad(logits, (0, 0, before, after)),
            labels_of=labels_of,
            embedding=model.table,
        )
        return mixed[:, before : before + inputs.shape[1]]

    assert torch.equal(run(0, 9), run(0, 0))
    assert torch.equal(run(4, 2), run(0, 0))


@pytest.mark.parametrize("mix", MIXES)
def test_the_prediction_of_a_word_uses_neither_it_nor_later_words_in_both_passes(mix):
    model = naive.Causal(V)
    inputs, labels = batch()
    inputs, labels = inputs[1::2], labels[1::2]  # full rows

    def second_pass(x, y):
        mixed = ParallelScheduledSampling(0.3, mix, seed=1)(x, y, model(x), embedding=model.table)
        return model(mixed) if mixed.dtype == torch.long else model(embeddings=mixed)

    plain = second_pass(inputs, labels)
    for t in range(inputs.shape[1]):
        other, x = labels.clone(), inputs.clone()
        other[:, t:] = (other[:, t:] + 5) % (V - 3) + 3
        x[:, t + 1 :] = other[:, t:-1]
        changed = second_pass(x, other)
        torch.testing.assert_close(changed[:, : t + 1], plain[:, : t + 1], rtol=0, atol=0)
        if t + 1 < inputs.shape[1]:
            assert not torch.equal(changed[:, t + 1 :], plain[:, t + 1 :])


def test_padding_the_first_input_and_protected_ids_stay():
    inputs, labels = batch()
    inputs[:, 2], labels[:, 1] = 9, 9
    model = naive.Causal(V)
    mixed = ParallelScheduledSampling(0.0, "sample", protect=(9, None))(
        inputs, labels, model(inputs)
    )
    fixed = ~own(labels) | (inputs == 9)
    assert torch.equal(mixed[fixed], inputs[fixed])
    mask = torch.zeros_like(inputs)
    assert torch.equal(ParallelScheduledSampling(0.0)(inputs, labels, model(inputs), mask), inputs)


@pytest.mark.parametrize("labels_of", ["next", "own"])
def test_mixing_agrees_with_the_token_by_token_twin(labels_of):
    inputs, labels = batch(rows=20, n=12)
    if labels_of == "own":
        labels = torch.where((inputs == BOS) | (inputs == PAD), -100, inputs)
    logits = naive.Causal(V)(inputs)
    sampling = ParallelScheduledSampling(0.4, seed=5)
    key = ParallelScheduledSampling(0.4, seed=5).stream(torch.device("cpu"))
    ours = sampling(inputs, labels, logits, labels_of=labels_of)
    words = logits.argmax(-1).tolist()
    twin = naive.mixed_inputs(
        inputs.tolist(), labels.tolist(), words, key=key, gold_rate=0.4, labels_of=labels_of
    )
    assert ours.tolist() == twin


def test_the_share_of_gold_tokens_is_the_gold_rate():
    inputs = torch.zeros(2000, 21, dtype=torch.long)
    labels = torch.zeros_like(inputs)
    logits = F.one_hot(torch.ones_like(inputs), 3).float()
    mixed = ParallelScheduledSampling(0.7, seed=1)(inputs, labels, logits)[:, 1:]
    assert abs((mixed == 0).double().mean().item() - 0.7) < 4 * (0.21 / 40_000) ** 0.5


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_words_follow_the_softmax(temperature):
    logits = torch.tensor([0.0, 1.0, -1.0, -torch.inf, 2.0, -torch.inf])
    draw = torch.randint(2**31, (400, 100), generator=torch.Generator().manual_seed(0))
    drawn = sampled_ids(logits.expand(400, 100, 6), draw, temperature)
    share = torch.bincount(drawn.flatten(), minlength=6) / drawn.numel()
    p = (logits / temperature).softmax(0)
    assert ((share - p).abs() <= 4 * (p * (1 - p) / drawn.numel()).sqrt()).all()
    assert share[3] == share[5] == 0


def test_the_smallest_and_largest_draws_pick_a_word_with_a_probability():
    logits = torch.full((1, 2, 5), -torch.inf)
    logits[..., 2] = 0.3
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        drawn = sampled_ids(logits.to(dtype), torch.tensor([[0, 2**31 - 1]]))
        assert drawn.tolist() == [[2, 2]]


def test_gumbel_weights_at_low_temperature_are_samples_of_the_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0]).expand(300, 51, 4)
    inputs = torch.zeros(300, 51, dtype=torch.long)
    table = torch.nn.Embedding.from_pretrained(torch.eye(4))
    sampling = ParallelScheduledSampling(0.0, "gumbel", temperature=1e-3, seed=1)
    mixed = sampling(inputs, inputs, logits, embedding=table)[:, 1:].flatten(0, 1)
    share, p = mixed.mean(0), logits[0, 0].softmax(0)
    assert ((share - p).abs() <= 4 * (p * (1 - p) / len(mixed)).sqrt()).all()
    assert (mixed.max(1).values > 0.99).float().mean() > 0.99


@pytest.mark.parametrize("mix", ["softmax", "gumbel"])
def test_all_ids_or_the_best_v_of_them_mix_to_the_same(mix):
    inputs, labels = batch()
    model = naive.Causal(V)
    logits = model(inputs)
    every, best, one = (
        ParallelScheduledSampling(0.2, mix, top_k=k, seed=2)(
            inputs, labels, logits, embedding=model.table
        )
        for k in (None, V, 1)
    )
    torch.testing.assert_close(every, best, rtol=0, atol=1e-12)
    hard = ParallelScheduledSampling(0.2, seed=2)(inputs, labels, logits)
    torch.testing.assert_close(one, model.table(hard), rtol=0, atol=1e-12)


@pytest.mark.parametrize("through", [True, False])
def test_gradients_reach_the_first_pass_only_where_asked(through):
    inputs, labels = batch()
    model = naive.Causal(V)
    first = model(inputs).detach().requires_grad_()
    sampling = ParallelScheduledSampling(0.2, "softmax", through_first_pass=through, seed=1)
    second = model(embeddings=sampling(inputs, labels, first, embedding=model.table))
    F.cross_entropy(second.flatten(0, 1), labels.flatten()).backward()
    assert (first.grad is not None and bool(first.grad.abs().sum() > 0)) == through


def test_the_gradient_of_the_mean_embeddings_is_right():
    inputs, labels = batch(rows=2, n=4)
    table = torch.nn.Embedding(V, 3, dtype=torch.float64)

    def mixed(logits, weight):
        sampling = ParallelScheduledSampling(
            0.3, "gumbel", top_k=4, through_first_pass=True, seed=1
        )
        return sampling(inputs, labels, logits, embedding=lambda ids: F.embedding(ids, weight))

    logits = torch.randn(2, 5, V, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixed, (logits, table.weight))


def test_only_training_mixes_and_a_resumed_run_goes_on_with_its_schedule():
    inputs, labels = batch()
    logits = naive.Causal(V)(inputs)
    sampling = ParallelScheduledSampling(LinearDecay(0.1), seed=1)
    for _ in range(3):
        sampling(inputs, labels, logits)
        sampling.step()
    assert sampling.gold_rate == pytest.approx(0.7)
    resumed = ParallelScheduledSampling(LinearDecay(0.1), seed=8)
    resumed.load_state_dict(sampling.state_dict())
    assert resumed.updates == 3
    a, b = (one(inputs, labels, logits) for one in (sampling, resumed))
    assert torch.equal(a, b)
    assert not torch.equal(a, inputs)
    assert sampling.eval()(inputs, labels, logits) is inputs


# The gap


@pytest.mark.parametrize("labels_of", ["next", "own"])
@pytest.mark.parametrize("seed", range(4))
def test_the_fixed_point_is_greedy_decoding(labels_of, seed):
    inputs, labels = batch(rows=10, n=9, seed=seed)
    if labels_of == "own":
        labels = torch.where((inputs == BOS) | (inputs == PAD), -100, inputs)
    model = naive.Causal(V, seed)
    forced, free = free_running(model, inputs, labels, labels_of=labels_of)
    assert torch.equal(forced, model(inputs).argmax(-1))
    asked = next_labels(labels, labels_of) != -100
    assert torch.equal(free[asked], naive.greedy(model, inputs, labels, labels_of)[asked])
    assert not torch.equal(free[asked], forced[asked])


def test_a_right_model_has_no_gap_and_needs_one_pass():
    inputs, labels = batch()
    calls = []

    def oracle(ids):
        calls.append(1)
        return F.one_hot(labels.clamp(min=0), V).float()

    gap = exposure_gap(oracle, inputs, labels)
    assert gap.teacher_forced == gap.free_running == gap.exact_match == 1
    assert gap.gap == 0
    assert gap.by_position.abs().sum() == 0
    assert len(calls) == 1


def test_one_error_that_spreads_is_counted_at_the_positions_it_spoils():
    chain = torch.tensor([1, 2, 3, 4, 5, 6, 0])  # token k is followed by k + 1
    table = F.one_hot(chain, 7).float()
    inputs = torch.tensor([[0, 1, 5, 6], [0, 1, 2, 3]])
    labels = torch.tensor([[1, 5, 6, -100], [1, 2, 3, 4]])  # the model says 2 where 5 is right
    gap = exposure_gap(lambda ids: table[ids], inputs, labels)
    assert gap.forced.tolist() == [2, 1, 2, 1]
    assert gap.free.tolist() == [2, 1, 1, 1]
    assert gap.count.tolist() == [2, 2, 2, 1]
    assert gap.by_position.tolist() == [0, 0, 0.5, 0]
    assert (gap.exact, gap.rows) == (1, 2)
    assert gap.gap == pytest.approx(1 / 7)


def test_the_counts_of_batches_add_up_to_those_of_the_whole_whatever_the_padding():
    inputs, labels = batch(rows=8)
    model = naive.Causal(V)
    whole = exposure_gap(model, inputs, labels)
    half = exposure_gap(model, inputs[:4], labels[:4])
    rest = exposure_gap(
        model, F.pad(inputs[4:], (0, 3), value=PAD), F.pad(labels[4:], (0, 3), value=-100)
    )
    total = half + rest
    for name in ("forced", "free", "count"):
        assert torch.equal(getattr(total, name), getattr(whole, name))
    assert (total.exact, total.rows) == (whole.exact, whole.rows)
    short = ExposureGap(*(torch.tensor([1]) for _ in range(3)), 1, 1)
    assert (short + whole).count.tolist()[0] == whole.count.tolist()[0] + 1


def test_a_model_that_looks_ahead_or_draws_is_refused():
    inputs, labels = batch()
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"did not settle in 9 rounds.*causal and deterministic"):
        free_running(lambda ids: torch.rand(6, 8, V, generator=generator), inputs, labels)
