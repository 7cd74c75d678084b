"""S31: random replacement against exposure bias, and what the article says about the problem."""

import pickle

import pytest
import torch
from torch.nn import functional as F

from kexue.losses.adversarial import FGM
from kexue.losses.exposure import RandomReplace, change_rates, random_replace
from kexue.losses.exposure.draws import KeyStream, mixed, numbers, row_keys, threshold
from kexue.losses.exposure.places import check_aligned
from kexue.losses.exposure.pools import id_table
from kexue.losses.gradient_penalty import EmbeddingGradientPenalty
from naive import exposure as naive

CPU = torch.device("cpu")
BOS, EOS, PAD = 0, 1, 2
MARKS = (BOS, EOS, PAD)


def ragged(rows=64, longest=12, vocabulary=30, seed=0, width=None):
    """Encoder-decoder inputs and labels with right padding."""
    generator = torch.Generator().manual_seed(seed)
    width = width or longest + 1
    inputs = torch.full((rows, width), PAD)
    labels = torch.full((rows, width), -100)
    inputs[:, 0] = BOS
    for row in range(rows):
        n = int(torch.randint(2, longest + 1, (), generator=generator))
        words = torch.randint(3, vocabulary, (n,), generator=generator)
        inputs[row, 1 : n + 1] = words
        labels[row, :n], labels[row, n] = words, EOS
    return inputs, labels


def single(rows, n, distinct=True, seed=0):
    """UniLM rows: [SEP] y1 … yn with labels y1 … yn, -100; every token of y can be replaced."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.stack([torch.randperm(n, generator=generator) for _ in range(rows)]) + 3
    if not distinct:
        words = words // 2
    mark, nothing = torch.full((rows, 1), EOS), torch.full((rows, 1), -100)
    return torch.cat([mark, words], 1), torch.cat([words, nothing], 1)


# Properties


@pytest.mark.parametrize("rates", [(0.0, 0.3), (0.5, 0.0), (0.0, 0.0)])
def test_a_rate_of_zero_is_the_identity_to_the_bit(rates):
    inputs, labels = ragged()
    for _ in range(20):
        assert torch.equal(RandomReplace(*rates)(inputs, labels), inputs)


def test_labels_and_inputs_are_never_written_to():
    inputs, labels = ragged()
    kept = inputs.clone(), labels.clone()
    changed = RandomReplace(1.0, 1.0, protect=MARKS)(inputs, labels)
    assert not torch.equal(changed, inputs)
    assert torch.equal(inputs, kept[0])
    assert torch.equal(labels, kept[1])


@pytest.mark.parametrize("pool", ["target", "sequence", "vocab"])
def test_protected_ids_padding_and_the_first_input_never_change(pool):
    inputs, labels = ragged()
    inputs[:, 3], labels[:, 2] = 7, 7
    replace = RandomReplace(1.0, 1.0, pool, (*MARKS, 7), vocab_size=30)
    fixed = (inputs < 3) | (inputs == 7)
    fixed[:, 0] = True
    for _ in range(20):
        changed = replace(inputs, labels)
        assert torch.equal(changed[fixed], inputs[fixed])
        assert not torch.isin(changed[~fixed], torch.tensor([*MARKS, 7])).any()
        assert not torch.equal(changed, inputs)


def test_the_first_input_and_padding_stay_even_without_a_list_of_protected_ids():
    inputs, labels = ragged(width=20)
    read = torch.zeros_like(inputs, dtype=torch.bool)
    read[:, 1:] = labels[:, :-1] != -100
    for _ in range(20):
        changed = RandomReplace(1.0, 1.0, "vocab", vocab_size=30)(inputs, labels)
        assert torch.equal(changed[~read], inputs[~read])


def test_the_selected_share_of_a_row_has_the_mean_and_variance_of_a_common_switch():
    rows, n = 40_000, 20
    inputs, labels = single(rows, n)
    weights = torch.zeros(100)
    weights[99] = 1  # selected tokens show themselves
    changed = RandomReplace(0.5, 0.3, weights, seed=1)(inputs, labels)
    share = (changed[:, 1:] == 99).double().mean(1)
    variance = 0.5 * 0.3 * 0.7 / n + 0.25 * 0.3**2
    assert variance == pytest.approx(0.02775)
    assert abs(share.mean().item() - 0.15) < 4 * (variance / rows) ** 0.5
    assert share.var().item() == pytest.approx(variance, rel=0.03)
    clean = 0.5 + 0.5 * 0.7**n
    error = (clean * (1 - clean) / rows) ** 0.5
    assert abs((share == 0).double().mean().item() - clean) < 4 * error


def test_selected_tokens_of_a_row_are_independent_of_each_other():
    inputs, labels = single(20_000, 6)
    weights = torch.zeros(100)
    weights[99] = 1
    hit = (RandomReplace(1.0, 0.3, weights, seed=2)(inputs, labels) == 99)[:, 1:].double()
    correlation = torch.corrcoef(hit.T) - torch.eye(6)
    assert correlation.abs().max() < 4 / 20_000**0.5
    across = torch.corrcoef(hit[:, 0].view(2, -1))[0, 1]
    assert abs(across) < 4 / 10_000**0.5


def test_with_the_pool_target_every_replacement_occurs_in_the_labels_of_its_row():
    inputs, labels = ragged(rows=300)
    changed = RandomReplace(1.0, 1.0, protect=MARKS, seed=0)(inputs, labels)
    for before, after, words in zip(inputs, changed, labels, strict=True):
        allowed = set(words.tolist()) - {-100, EOS}
        assert set(after[before != after].tolist()) <= allowed


def test_the_pool_target_is_uniform_over_positions_so_repeats_count():
    rows = 30_000
    words = torch.tensor([[5, 5, 5, 6, 7]]).expand(rows, 5)
    inputs = torch.cat([torch.full((rows, 1), EOS), words], 1)
    labels = torch.cat([words, torch.full((rows, 1), -100)], 1)
    drawn = RandomReplace(1.0, 1.0, seed=4)(inputs, labels)[:, 1:]
    for token, share in ((5, 0.6), (6, 0.2), (7, 0.2)):
        error = (share * (1 - share) / drawn.numel()) ** 0.5
        assert abs((drawn == token).double().mean().item() - share) < 4 * error


@pytest.mark.parametrize("pool", ["target", "sequence", "vocab"])
@pytest.mark.parametrize("labels_of", ["next", "own"])
def test_the_same_seed_gives_the_same_tokens_whatever_the_padding(pool, labels_of):
    inputs, labels = ragged()
    if labels_of == "own":
        labels = torch.where((inputs == BOS) | (inputs == PAD), -100, inputs)

    def run(before, after, rows=64):
        x = F.pad(inputs[:rows], (before, after), value=PAD)
        y = F.pad(labels[:rows], (before, after), value=-100)
        replace = RandomReplace(0.5, 0.5, pool, MARKS, vocab_size=30, seed=9)
        replace(x, y, labels_of=labels_of)
        second = replace(x, y, labels_of=labels_of)
        return second[:, before : before + inputs.shape[1]]

    plain = run(0, 0)
    assert not torch.equal(plain, inputs)
    assert torch.equal(run(0, 7), plain)
    assert torch.equal(run(5, 0), plain)
    assert torch.equal(run(3, 40, rows=10), plain[:10])


def test_a_penalty_has_the_closed_form_of_a_linear_model_and_falls_by_the_square():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    table = torch.nn.Embedding(5, 4, dtype=torch.float64)
    tokens, y = torch.tensor([0, 3, 3, 1]), torch.tensor([2, 0, 5, 1])

    def loss(repeat):
        logits = table(tokens) @ weight.T
        shared = F.cross_entropy(logits, y, reduction="sum")
        return shared / (len(y) * repeat)

    rows = (F.softmax(table(tokens) @ weight.T, 1) - F.one_hot(y, 6)) @ weight / len(y)
    dense = torch.zeros_like(table.weight).index_add(0, tokens, rows)
    penalty = EmbeddingGradientPenalty(table, coef=1.0)(loss(1))
    torch.testing.assert_close(penalty, dense.square().sum(), rtol=1e-12, atol=0)
    assert penalty > 0
    halved = EmbeddingGradientPenalty(table, coef=1.0)(loss(2))
    torch.testing.assert_close(halved, penalty / 4, rtol=1e-12, atol=0)


@pytest.mark.parametrize("epsilon", [0.5, 1.0])
def test_fgm_moves_the_table_by_epsilon_and_brings_it_back_to_the_bit(epsilon):
    model = naive.Causal(20)
    inputs, labels = single(4, 6)
    before = model.table.weight.detach().clone()
    F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten()).backward()
    with FGM(model.table, epsilon).perturbed():
        length = (model.table.weight - before).norm().item()
    assert length == pytest.approx(epsilon, rel=1e-10)
    assert torch.equal(model.table.weight, before)


def test_no_prediction_depends_on_targets_from_its_own_on_with_the_pool_vocab():
    model = naive.Causal(30)
    inputs, labels = single(6, 10)
    for t in range(10):
        other_inputs, other = inputs.clone(), labels.clone()
        other[:, t:-1] = (other[:, t:-1] + 5) % 25 + 3
        other_inputs[:, t + 1 :] = other[:, t:-1]
        outputs = [
            model(RandomReplace(1.0, 0.5, "vocab", vocab_size=30, seed=1)(x, y))[:, : t + 1]
            for x, y in ((inputs, labels), (other_inputs, other))
        ]
        assert torch.equal(*outputs)


def test_the_pool_target_gives_random_hints_of_words_to_come():
    inputs, labels = single(2000, 10)
    changed = RandomReplace(1.0, 0.5, seed=1)(inputs, labels)
    position = {t: (changed[:, 2] == labels[:, t]).double().mean().item() for t in (5, 9)}
    assert 0.03 < position[5] < 0.07  # one tenth of the replaced half
    without = RandomReplace(1.0, 0.5, "vocab", vocab_size=1000, seed=1)(inputs, labels)
    assert (without[:, 2] == labels[:, 5]).double().mean().item() < 0.01


# Worked numbers


def test_every_trained_conditional_may_be_right_and_beam_search_still_leaves_for_the_untrained():
    conditional = {
        (): {"a": 0.6, "c": 0.4},
        ("a",): {"b": 0.55, "d": 0.45},
        ("c",): {"b": 0.1, "d": 0.9},
    }
    joint = dict(naive.beam_search(conditional, 2, 4))
    expected = {("a", "b"): 0.33, ("a", "d"): 0.27, ("c", "b"): 0.04, ("c", "d"): 0.36}
    assert joint == pytest.approx(expected, abs=1e-12)
    assert naive.beam_search(conditional, 2, 1)[0][0] == ("a", "b")
    best, probability = naive.beam_search(conditional, 2, 2)[0]
    assert best == ("c", "d")
    assert probability == pytest.approx(0.36, abs=1e-12)


def test_the_rates_of_twenty_distinct_targets_are_those_computed_by_hand():
    inputs, labels = single(3, 20)
    changed, unchanged = change_rates(inputs, labels)
    torch.testing.assert_close(
        changed, torch.full((3,), 2.85, dtype=torch.float64), rtol=0, atol=1e-12
    )
    expected = torch.full((3,), 0.5006096644059774, dtype=torch.float64)
    torch.testing.assert_close(unchanged, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("distinct", [True, False])
def test_the_rates_are_those_that_replacement_has(distinct):
    rows, n = 40_000, 20
    inputs, labels = single(rows, n, distinct)
    drawn = RandomReplace(seed=6)(inputs, labels)
    changed, unchanged = change_rates(inputs[:1], labels[:1])
    count = (drawn != inputs).sum(1).double()
    error = count.std().item() / rows**0.5
    assert abs(count.mean().item() - changed.item()) < 4 * error
    share = unchanged.item()
    error = (share * (1 - share) / rows) ** 0.5
    assert abs((count == 0).double().mean().item() - share) < 4 * error


@pytest.mark.parametrize("at", ["table", "lookups"])
def test_the_gradient_penalty_of_two_tokens_is_the_one_computed_by_hand(at):
    weight = torch.tensor([[1.0, 0], [0, 1], [-1, -1]], dtype=torch.float64)
    rows = torch.tensor([[0.5, -0.2], [0.1, 0.3]], dtype=torch.float64)
    table = torch.nn.Embedding.from_pretrained(rows, freeze=False)
    penalty = EmbeddingGradientPenalty(table, coef=0.5, at=at)
    loss = F.cross_entropy(table(torch.tensor([0, 1])) @ weight.T, torch.tensor([0, 2]))
    (grad,) = torch.autograd.grad(loss, table.weight, retain_graph=True)
    expected = torch.tensor(
        [
            [-0.35850583323112906, 0.012142451610927502],
            [0.569568352953539, 0.6087140338173253],
        ],
        dtype=torch.float64,
    )
    assert loss.item() == pytest.approx(1.1026390655564369, abs=1e-10)
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-10)
    assert grad.square().sum().item() == pytest.approx(0.8236147552442369, abs=1e-10)
    assert (loss + penalty(loss)).item() == pytest.approx(1.5144464431785554, abs=1e-10)


# Twins


@pytest.mark.parametrize("labels_of", ["next", "own"])
@pytest.mark.parametrize("pool", ["target", "sequence", "source", "unigram"])
@pytest.mark.parametrize("protect", [(), MARKS, (*MARKS, 7, 8)])
def test_replacement_agrees_with_the_token_by_token_twin(pool, protect, labels_of):
    inputs, labels = ragged(rows=40, seed=3)
    if labels_of == "own":
        labels = torch.where((inputs == BOS) | (inputs == PAD), -100, inputs)
    mask = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    options = {"p_sequence": 0.7, "p_token": 0.6, "protect": protect, "labels_of": labels_of}
    slow, fast = {}, {"pool": "sequence" if pool in ("sequence", "source") else "target"}
    if pool == "unigram":
        weights = [0.0, 0, 0, 5] + [0.5 + t % 3 for t in range(26)]
        weights = [0.0 if t in protect else w for t, w in enumerate(weights)]
        fast["pool"], slow["weights"] = id_table(torch.tensor(weights), protect), weights
    else:
        slow["pool"] = fast["pool"]
    if pool == "source":
        sequence = torch.randint(3, 30, (40, 9), generator=torch.Generator().manual_seed(2))
        keep = torch.rand(40, 9, generator=torch.Generator().manual_seed(1)) < 0.5
        keep[:, 0], sequence[:, 0] = True, 11
        fast |= {"sequence": sequence, "sequence_mask": keep}
        slow |= {"sequence": sequence.tolist(), "sequence_mask": keep.tolist()}
    elif pool == "sequence":
        fast["sequence_mask"] = inputs != PAD
        slow["sequence_mask"] = (inputs != PAD).tolist()
    for key in (1, -(2**62), 2**63 - 1):
        ours = random_replace(inputs, labels, mask, key=torch.tensor(key), **options, **fast)
        twin = naive.random_replace(
            inputs.tolist(), labels.tolist(), mask.tolist(), key=key, **options, **slow
        )
        assert ours.tolist() == twin
        assert twin != inputs.tolist()


def test_the_hash_is_splitmix64():
    # The first outputs of the published generator for seed 0.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    ours = row_keys(torch.tensor(0), 3, CPU)
    assert [word % 2**64 for word in ours.tolist()] == published
    words = torch.randint(-(2**63), 2**63 - 1, (1000,))
    assert [w % 2**64 for w in mixed(words).tolist()] == [naive.mixed(w) for w in words.tolist()]


def test_numbers_are_uniform_and_streams_do_not_repeat_each_other():
    keys = row_keys(torch.tensor(5), 200, CPU)
    index = torch.arange(500).expand(200, 500)
    drawn = torch.stack([numbers(keys, index, stream).flatten() for stream in range(4)])
    assert drawn.min() >= 0
    assert drawn.max() < 2**31
    counts = torch.histc((drawn.double() / 2**31).float(), 64, 0, 1)
    expected = drawn.numel() / 64
    assert ((counts - expected).square() / expected).sum() < 103.4  # 0.1 % of chi² with 63
    assert (torch.corrcoef(drawn.double()) - torch.eye(4)).abs().max() < 4 / 100_000**0.5
    assert threshold(0.0) == 0
    assert threshold(1.0) == 2**31


# Streams


def test_every_call_draws_anew_and_a_resumed_stream_goes_on():
    inputs, labels = ragged()
    replace = RandomReplace(seed=1, protect=MARKS)
    first = replace(inputs, labels)
    state = {name: value.clone() for name, value in replace.state_dict().items()}
    second, third = replace(inputs, labels), replace(inputs, labels)
    assert not torch.equal(first, second)
    resumed = RandomReplace(seed=77, protect=MARKS)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(inputs, labels), second)
    assert torch.equal(pickle.loads(pickle.dumps(resumed))(inputs, labels), third)


def test_ranks_draw_different_numbers_and_a_shared_batch_may_ask_for_the_same():
    inputs, labels = ragged()
    drawn = [RandomReplace(seed=1, rank=rank)(inputs, labels) for rank in (0, 1, 2, 1)]
    assert torch.equal(drawn[1], drawn[3])
    assert not any(torch.equal(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(RandomReplace(seed=1)(inputs, labels), drawn[0])


def test_keys_may_come_from_a_generator_or_from_torch_itself():
    inputs, labels = ragged()

    def with_generator():
        return RandomReplace(generator=torch.Generator().manual_seed(4))

    assert torch.equal(with_generator()(inputs, labels), with_generator()(inputs, labels))
    torch.manual_seed(3)
    first = RandomReplace()(inputs, labels)
    torch.manual_seed(3)
    assert torch.equal(RandomReplace()(inputs, labels), first)
    assert RandomReplace().state_dict() == {}


class Collator:
    def __init__(self):
        self.replace = RandomReplace(1.0, 0.5, protect=MARKS, seed=1)

    def __call__(self, rows):
        inputs, labels = ragged(rows=8)
        return self.replace(inputs, labels)


def test_in_a_collator_workers_and_epochs_draw_different_numbers():
    loader = torch.utils.data.DataLoader(
        range(4), batch_size=1, collate_fn=Collator(), num_workers=2,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    drawn = [*loader, *loader]
    pairs = [(i, j) for i in range(8) for j in range(i)]
    assert not any(torch.equal(drawn[i], drawn[j]) for i, j in pairs)
    loader.generator.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(loader, drawn, strict=False))


def test_in_evaluation_nothing_happens_and_nothing_is_drawn():
    inputs, labels = ragged()
    replace = RandomReplace(1.0, 1.0, seed=1).eval()
    state = replace.state_dict()["stream.state"].clone()
    assert replace(inputs, labels) is inputs
    assert torch.equal(replace.state_dict()["stream.state"], state)


def test_as_a_part_of_a_model_it_follows_half_and_train_without_harm():
    inputs, labels = ragged()
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.replace = RandomReplace(pool="vocab", vocab_size=30, seed=1)
    alone = RandomReplace(pool="vocab", vocab_size=30, seed=1)(inputs, labels)
    assert torch.equal(model.half().train().replace(inputs, labels), alone)


# Layouts


def test_in_a_causal_model_only_answer_tokens_change_and_never_the_prompt():
    ids = torch.arange(3, 15)[None].repeat(50, 1)
    labels = ids.clone()
    labels[:, :5] = -100
    changed = RandomReplace(1.0, 1.0, "vocab", vocab_size=1000)(ids, labels, labels_of="own")
    assert torch.equal(changed[:, :5], ids[:, :5])
    assert (changed[:, 5:] != ids[:, 5:]).double().mean() > 0.99


def test_the_two_layouts_of_the_labels_mean_the_same():
    ids = torch.arange(3, 15)[None].repeat(50, 1)
    own = ids.clone()
    own[:, :5] = -100
    following = torch.cat([own[:, 1:], torch.full((50, 1), -100)], 1)
    a = RandomReplace(seed=1)(ids, own, labels_of="own")
    assert torch.equal(a, RandomReplace(seed=1)(ids, following, labels_of="next"))
    assert not torch.equal(a, ids)


def test_the_turns_of_a_chat_change_and_what_lies_between_them_does_not():
    ids = torch.arange(3, 23)[None].repeat(50, 1)
    labels = torch.full_like(ids, -100)
    labels[:, 4:8], labels[:, 12:18] = ids[:, 4:8], ids[:, 12:18]
    changed = RandomReplace(1.0, 1.0, "vocab", (7,), vocab_size=1000)(ids, labels, labels_of="own")
    moved = (changed != ids).any(0)
    expected = labels[0] != -100
    expected[4] = False  # id 7 is a marker
    assert torch.equal(moved, expected)


def test_the_code_of_the_author_draws_from_the_whole_row_and_spares_the_last_sep_of_the_source():
    source, target = torch.arange(3, 9), torch.arange(20, 25)
    ids = torch.cat([torch.tensor([BOS]), source, torch.tensor([EOS]), target, torch.tensor([EOS])])
    ids = ids[None].repeat(400, 1)
    segment = torch.arange(ids.shape[1]) >= 8
    labels = torch.where(segment, ids, -100)
    labels = torch.cat([labels[:, 1:], torch.full((400, 1), -100)], 1)
    replace = RandomReplace(1.0, 1.0, "sequence", seed=3)
    changed = replace(ids, labels, sequence_mask=torch.ones_like(ids))
    assert torch.equal(changed[:, :8], ids[:, :8])
    assert set(changed[:, 8:].unique().tolist()) == set(ids.unique().tolist())


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_token": 1.5}, "p_token must be between 0 and 1, got 1.5"),
        ({"p_sequence": -0.1}, "p_sequence must be between 0 and 1"),
        ({"pool": "vocab"}, "needs vocab_size"),
        ({"pool": torch.tensor([0.5, -1.0])}, "one finite weight >= 0 per id"),
        ({"pool": torch.tensor([1.0, 0.0]), "protect": (0,)}, "the pool is empty"),
        ({"seed": 1, "generator": torch.Generator()}, "a seed or a generator, got both"),
        ({"rank": -1}, "rank must be 0 or more"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RandomReplace(**options)


def test_bad_batches_are_refused_with_what_was_given():
    inputs, labels = ragged(rows=3)
    replace = RandomReplace(1.0, 1.0, protect=MARKS)
    with pytest.raises(ValueError, match="hold no target: all are -100"):
        replace(inputs, torch.full_like(labels, -100))
    with pytest.raises(ValueError, match=r"decoder_input_ids \(3, 12\) and labels \(3, 13\)"):
        check_aligned(inputs[:, 1:], labels)
    with pytest.raises(ValueError, match=r"mask \(3, 2\) must have the shape \(3, 13\)"):
        check_aligned(inputs, labels, torch.ones(3, 2))
    with pytest.raises(ValueError, match="would draw padding"):
        RandomReplace(pool="sequence")(inputs, labels)
    source = torch.full((3, 4), PAD)
    with pytest.raises(ValueError, match="row 0 has inputs to replace but its pool is empty"):
        RandomReplace(pool="sequence", protect=MARKS)(inputs, labels, sequence=source)


def test_a_row_without_target_is_left_alone_among_others_and_an_empty_batch_is_fine():
    inputs, labels = ragged(rows=3)
    labels[1] = -100
    changed = RandomReplace(1.0, 1.0, seed=1)(inputs, labels)
    assert torch.equal(changed[1], inputs[1])
    assert not torch.equal(changed[0], inputs[0])
    assert RandomReplace()(inputs[:0], labels[:0]).shape == (0, 13)
    assert RandomReplace()(inputs[:, :0], labels[:, :0]).shape == (3, 0)


def test_narrow_ids_stay_narrow():
    inputs, labels = ragged()
    narrow = RandomReplace(seed=1)(inputs.int(), labels.int())
    assert narrow.dtype == torch.int32
    assert torch.equal(narrow.long(), RandomReplace(seed=1)(inputs, labels))


def test_a_stream_without_seed_has_no_state():
    assert KeyStream().state is None
