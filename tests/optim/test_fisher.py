"""Fisher information by sample, and the masks of its largest entries."""

import math
from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kexue.optim.gradient_mask.fisher import fisher_diagonal
from kexue.optim.gradient_mask.top_share import topk_masks
from naive.fisher import naive_fisher, naive_topk


class Logistic(nn.Module):
    """Two classes whose logits are 0 and w·x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.2, -0.4], dtype=torch.float64))

    def forward(self, x):
        score = x @ self.w
        return torch.stack([torch.zeros_like(score), score], dim=-1)


X = torch.tensor([[1, 2], [-1, 0.5], [0.3, -1]], dtype=torch.float64)
Y = torch.tensor([1, 0, 1])


def network(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    layers = nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)
    return nn.Sequential(*layers).double()


def data(n=10, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (n,), generator=generator)


def batches(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def mean_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def test_the_worked_logistic_regression():
    fisher = fisher_diagonal(Logistic(), [(X, Y)], include="")["w"]
    expected = torch.tensor([0.197133960808, 0.619169729827], dtype=torch.float64)
    torch.testing.assert_close(fisher, expected, rtol=0, atol=5e-13)


def test_the_worked_squared_mean_gradient_ranks_the_other_way():
    per_sample = fisher_diagonal(Logistic(), [(X, Y)], include="")["w"]
    mean = fisher_diagonal(Logistic(), [(X, Y)], include="", per_sample=False)["w"]
    expected = torch.tensor([0.150302086988, 0.055016926616], dtype=torch.float64)
    torch.testing.assert_close(mean, expected, rtol=0, atol=5e-13)
    assert round((per_sample[1] / per_sample[0]).item(), 1) == 3.1
    assert round((mean[1] / mean[0]).item(), 2) == 0.37


@pytest.mark.parametrize("size", [1, 3, 10])
def test_it_is_the_naive_sum_whatever_the_batches(size):
    model, (x, y) = network(), data()
    found = fisher_diagonal(model, batches(x, y, size), include="")
    expected = naive_fisher(model, batches(x, y, 1), mean_loss)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0)


def test_a_loss_function_of_model_and_batch_gives_the_same():
    model, (x, y) = network(), data()
    named = fisher_diagonal(model, batches(x, y, 4), include="")
    own = fisher_diagonal(model, batches(x, y, 4), mean_loss, include="")
    for name, value in named.items():
        torch.testing.assert_close(own[name], value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_per_sample_fisher_is_at_least_the_squared_mean_gradient(seed):
    model, (x, y) = network(seed), data(7, seed)
    per_sample = fisher_diagonal(model, [(x, y)], include="")
    mean = fisher_diagonal(model, [(x, y)], include="", per_sample=False)
    for name, value in mean.items():
        assert (per_sample[name] >= value * (1 - 1e-12)).all()
        assert (per_sample[name] > value).any()


class Undecided(nn.Sequential):
    """Reads a value, which vmap cannot do."""

    seen: list[int]

    def forward(self, x):
        self.seen.append(len(x))
        return super().forward(x) * (1 if x.sum().item() < 1e9 else 2)


def test_a_model_that_vmap_cannot_run_is_run_sample_by_sample():
    model, (x, y) = network(), data()
    hard = Undecided(*model)
    hard.seen = []
    found = fisher_diagonal(hard, batches(x, y, 5), include="")
    assert hard.seen == [1] * 11  # one failed attempt, then every sample
    for name, value in fisher_diagonal(model, [(x, y)], include="").items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0)


def test_an_error_of_the_model_itself_is_not_swallowed():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fisher_diagonal(network(), [(torch.ones(2, 5).double(), Y[:2])], include="")


def test_large_models_are_differentiated_in_blocks(monkeypatch):
    model, (x, y) = network(), data()
    whole = fisher_diagonal(model, [(x, y)], include="")
    entries = sum(p.numel() for p in model.parameters())
    for block in (entries, 3 * entries):
        monkeypatch.setattr("kexue.optim.gradient_mask.fisher.BLOCK", block)
        for name, value in fisher_diagonal(model, [(x, y)], include="").items():
            torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=0)


def test_the_authors_form_clips_each_tensor_before_squaring():
    model, (x, y) = network(), data()
    found = fisher_diagonal(
        model, batches(x, y, 5), include="", per_sample=False, max_grad_norm=0.01
    )
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in batches(x, y, 5):
        model.zero_grad()
        mean_loss(model, batch).backward()
        for name, p in model.named_parameters():
            nn.utils.clip_grad_norm_(p, 0.01)
            expected[name] += p.grad**2 / 2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=0)


def test_eval_mode_is_used_and_every_module_gets_its_mode_back():
    model, (x, y) = network(dropout=0.5), data()
    model.train()
    model[0].eval()
    still = [fisher_diagonal(model, [(x, y)], include="")["0.weight"] for _ in range(2)]
    torch.testing.assert_close(still[0], still[1], rtol=0, atol=0)
    noisy = fisher_diagonal(model, [(x, y)], include="", training=True)["0.weight"]
    assert not torch.equal(noisy, still[0])
    assert [m.training for m in model] == [False, True, True, True]


def test_sampled_labels_give_the_fisher_information_itself():
    """E over y of the squared gradient, by summing over the classes."""
    model, (x, _) = network(), data(40)
    logits = model(x).softmax(-1).detach()
    expected = torch.zeros_like(model[3].weight)
    for row, chances in zip(x, logits, strict=True):
        for label, chance in enumerate(chances):
            one = fisher_diagonal(
                model, [(row[None], torch.tensor([label]))], include="3.weight", exclude="bias"
            )
            expected += chance * one["3.weight"] / len(x)
    generator = torch.Generator().manual_seed(0)
    n = 100
    copies = [(x.repeat(n, 1), torch.zeros(n * len(x), dtype=torch.long))]
    found = fisher_diagonal(
        model, copies, include="3.weight", labels="sampled", generator=generator
    )["3.weight"]
    assert ((found - expected).abs() < 0.15 * expected).all()
    empirical = fisher_diagonal(model, copies, include="3.weight")["3.weight"]
    assert ((empirical - expected).abs() > 0.3 * expected).any()


def test_sampled_labels_follow_the_generator():
    model, (x, y) = network(), data()
    found = [
        fisher_diagonal(
            model,
            [(x, y)],
            include="",
            labels="sampled",
            generator=torch.Generator().manual_seed(seed),
        )["0.weight"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_n_samples_stops_in_the_middle_of_a_batch_and_reads_no_further():
    model, (x, y) = network(), data()

    def loader():
        yield from batches(x, y, 4)[:2]
        raise AssertionError("read too far")

    found = fisher_diagonal(model, loader(), include="", n_samples=6)
    for name, value in fisher_diagonal(model, [(x[:6], y[:6])], include="").items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0)


class Tagger(nn.Module):
    """Logits for every token, in an object, from keyword arguments."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 5).double()
        self.layer = nn.ModuleList([nn.Linear(5, 3).double()])

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.layer[0](self.embed(input_ids)))


def test_a_tagger_sums_over_its_positions_and_leaves_ignored_ones_out():
    model = Tagger()
    ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(0))
    labels = ids % 3
    labels[:, 4:] = -100
    batch = UserDict(input_ids=ids, labels=labels)
    found = fisher_diagonal(model, [batch])
    assert set(found) == {"layer.0.weight", "layer.0.bias"}  # embeddings are no block
    short = naive_fisher(
        model,
        list(zip(ids[:, :4], labels[:, :4], strict=True)),
        lambda m, s: F.cross_entropy(m(s[0]).logits, s[1], reduction="sum"),
    )
    for name, value in found.items():
        torch.testing.assert_close(value, short[name], rtol=1e-12, atol=0)
    sampled = [
        fisher_diagonal(
            model,
            [{"input_ids": i, "labels": y}],
            labels="sampled",
            generator=torch.Generator().manual_seed(3),
        )["layer.0.weight"]
        for i, y in ((ids, labels), (ids, labels.where(labels == -100, 0)))
    ]
    assert torch.equal(*sampled)  # what was given does not matter


def test_half_precision_gradients_are_squared_in_float32():
    """Gradients near 1e-4 have squares near 1e-8, which float16 rounds to zero."""
    model = nn.Linear(4, 1, bias=False).half()
    x = torch.full((3, 4), 1e-4).half()
    for per_sample in (True, False):
        found = fisher_diagonal(
            model, [(x,)], lambda m, b: m(b[0]).mean(), include="", per_sample=per_sample
        )["weight"]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.full((1, 4), 1e-8), rtol=1e-2, atol=0)


def test_what_the_loss_does_not_reach_is_zero():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})

    def loss(m, batch):
        return m["used"](batch[0]).square().mean()

    for per_sample in (True, False):
        found = fisher_diagonal(
            model, [(torch.ones(3, 2),)], loss, include="", per_sample=per_sample
        )
        assert found["unused.weight"].eq(0).all()
        assert found["used.weight"].gt(0).any()


def test_it_leaves_no_gradient_and_changes_no_parameter():
    model, (x, y) = network(), data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        fisher_diagonal(model, [(x, y)], include="")
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


@pytest.mark.parametrize("per_sample", [False, True])
def test_running_statistics_come_back_after_train_mode(per_sample):
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(6, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = torch.arange(12.0).view(4, 1, 3), torch.tensor([0, 1, 0, 1])
    fisher_diagonal(model, [batch], include="", training=True, per_sample=per_sample)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


def test_patterns_are_found_in_the_names_without_wrappers():
    model, batch = network(), data()
    wrapped = nn.Module()
    wrapped.module = model
    wrapped.forward = model.forward
    found = fisher_diagonal(wrapped, [batch], include="^0")
    assert found.keys() == {"0.weight", "0.bias"}
    for name, value in fisher_diagonal(model, [batch], include="^0").items():
        assert torch.equal(found[name], value)


def test_frozen_parameters_are_left_out():
    model, (x, y) = network(), data()
    model[0].requires_grad_(False)
    assert set(fisher_diagonal(model, [(x, y)], include="")) == {"3.weight", "3.bias"}


def test_a_transformer_of_hugging_face_works_and_agrees_with_one_at_a_time():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).eval()
    ids = torch.randint(50, (4, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 1])}
    found = fisher_diagonal(model, [batch])
    assert set(found) == {n for n, _ in model.named_parameters() if "layer" in n}
    samples = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(4)]
    expected = naive_fisher(model, samples, lambda m, s: m(**s).loss)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-12)


def fisher_of(*sizes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"t{i}": torch.randn(size, generator=generator, dtype=dtype).square()
        for i, size in enumerate(sizes)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keep_prob", [0.001, 0.1, 0.2, 0.5, 0.999, 1.0])
def test_global_top_k_keeps_exactly_the_largest(keep_prob, dtype):
    fisher = fisher_of((31, 17), (1000,), (5, 4, 3), dtype=dtype)
    masks = topk_masks(fisher, keep_prob)
    keep = round(keep_prob * (31 * 17 + 1000 + 60))
    assert sum(int(mask.sum()) for mask in masks.values()) == keep
    for name, mask in naive_topk(fisher, keep).items():
        assert torch.equal(masks[name], mask)


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1e-45, 1e-30, 0.5, 1.0, 3e38]), max_size=9), max_size=4)
    .map(lambda rows: {str(i): torch.tensor(row) for i, row in enumerate(rows)})
    .filter(lambda fisher: any(value.any() for value in fisher.values())),
    st.floats(0.01, 1),
)
@settings(max_examples=200, deadline=None)
def test_ties_keep_no_more_and_the_first_win(fisher, keep_prob):
    keep = round(keep_prob * sum(value.numel() for value in fisher.values()))
    if keep == 0:
        with pytest.raises(ValueError, match="keeps none"):
            topk_masks(fisher, keep_prob)
        return
    masks = topk_masks(fisher, keep_prob)
    for name, mask in naive_topk(fisher, keep).items():
        assert torch.equal(masks[name], mask)


def test_tensors_of_several_precisions_are_compared_by_value():
    fisher = {
        "half": torch.tensor([1.0, 4.0], dtype=torch.bfloat16),
        "double": torch.tensor([2.0, 3.0], dtype=torch.float64),
        "single": torch.tensor([-0.0, 5.0]),
    }
    masks = topk_masks(fisher, 0.5)
    assert {n: m.tolist() for n, m in masks.items()} == {
        "half": [False, True],
        "double": [False, True],
        "single": [False, True],
    }


def test_the_scope_tensor_keeps_the_share_of_each():
    fisher = fisher_of((100,), (10, 5))
    fisher["t0"] *= 1e-6
    assert not topk_masks(fisher, 0.2)["t0"].any()
    masks = topk_masks(fisher, 0.2, scope="tensor")
    assert [int(mask.sum()) for mask in masks.values()] == [20, 10]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep_prob": 0.0}, "above 0 and at most 1, got 0.0"),
        ({"keep_prob": 1.5}, "above 0 and at most 1, got 1.5"),
        ({"keep_prob": 1e-4}, "keeps none"),
        ({"scope": "row"}, "'global' or 'tensor', got 'row'"),
        ({"fisher": {}}, "fisher is empty"),
        ({"fisher": {"a": torch.zeros(5)}}, r"all Fisher values are zero \(a\)"),
        ({"fisher": {"a": torch.tensor([1.0, math.nan])}}, "of a must be finite"),
        ({"fisher": {"a": torch.tensor([1.0, math.inf])}}, "of a must be finite"),
        ({"fisher": {"a": torch.tensor([1.0, -1.0])}}, "of a must be finite and not negative"),
    ],
)
def test_masks_that_make_no_sense_are_refused(change, message):
    arguments = {"fisher": fisher_of((10,)), "keep_prob": 0.5} | change
    with pytest.raises(ValueError, match=message):
        topk_masks(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "true"}, "'empirical' or 'sampled', got 'true'"),
        ({"loss": "mse"}, r"a function of \(model, batch\), got 'mse'"),
        ({"loss": mean_loss, "labels": "sampled"}, "needs loss='nll'"),
        ({"max_grad_norm": 1.0}, "needs per_sample=False"),
        ({"n_samples": 0}, "at least 1, got 0"),
        ({"include": "layer"}, "no trainable parameter matches include='layer'.*0.weight"),
        ({"dataloader": []}, "no sample"),
        ({"dataloader": [(X, Y[:2])]}, r"one row per sample, got tuple of torch.Size\(\[3, 2\]\)"),
        ({"dataloader": [("words", Y)]}, "got tuple of str"),
        ({"dataloader": [{"x": X, "y": Y}]}, "must have the key 'labels', got x, y"),
    ],
)
def test_a_fisher_that_makes_no_sense_is_refused(change, message):
    arguments = {"dataloader": [data()], "include": ""} | change
    with pytest.raises(ValueError, match=message):
        fisher_diagonal(network(), **arguments)
