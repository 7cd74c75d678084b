"""The tricks that `--trick` knows: what each minimises, and where it is refused."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.data.batching import Batch
from kexue.losses.imbalance import logit_adjusted_loss, softmax_focal_loss
from kexue.training.loss_tricks import embedding_of, trainer_loss
from kexue.training.objective import TaskFacts, apply_tricks, tricks

COUNTS = torch.tensor([6, 3, 1])
CLASSES = TaskFacts("toy", "softmax", lambda: COUNTS)
ALL = {
    "flooding": 0.3,
    "r_drop": 4,
    "fgm": 0.5,
    "pgd": 0.5,
    "vat": 0.5,
    "gradient_penalty": 0.5,
    "weissi": 0.1,
    "logit_adjustment": 1,
    "focal": 2,
}


class Reader(nn.Module):
    """Mean of embeddings, dropout, two layers."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 6)
        self.dropout = nn.Dropout(dropout)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.double()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask):
        visible = attention_mask.unsqueeze(-1)
        mean = (self.words(input_ids) * visible).sum(1) / visible.sum(1)
        return self.body(self.dropout(mean))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(11, (5, 4), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    label = torch.tensor([0, 2, 1, 0, 1])
    return Batch({"input_ids": ids, "attention_mask": mask}, {"label": label}, count=5)


def plain(model, batch):
    return F.cross_entropy(model(**batch.inputs), batch.targets["label"])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def run(named, batch, model=None, facts=CLASSES):
    model = model or Reader()
    objective = apply_tricks(plain, named, facts)
    loss = objective(model, batch)
    return loss, gradients(model, loss), objective


def same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **(tolerance or {"rtol": 1e-9, "atol": 1e-12}))


def test_every_trick_of_the_table_is_registered():
    assert set(ALL) <= set(tricks())


@pytest.mark.parametrize("name", ALL)
def test_every_trick_gives_a_finite_loss_and_keeps_the_raw_one(name, batch):
    loss, found, objective = run([f"{name}={ALL[name]}"], batch)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in found.values())
    torch.testing.assert_close(objective.raw, plain(Reader(), batch).detach())
    assert not objective.raw.requires_grad


@pytest.mark.parametrize("name", ["fgm", "pgd", "vat"])
def test_the_embeddings_are_put_back_bit_for_bit(name, batch):
    model = Reader()
    before = copy.deepcopy(model.state_dict())
    apply_tricks(plain, [f"{name}=0.7"], CLASSES)(model, batch)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.words.weight.grad is None


def test_flooding_turns_the_gradient_round_below_the_level(batch):
    _, up, _ = run([], batch)
    loss, down, objective = run(["flooding=5"], batch)
    torch.testing.assert_close(loss.detach(), 10 - objective.raw)
    same(down, {name: -g for name, g in up.items()})


def test_fgm_is_two_backward_passes_one_of_them_at_the_shifted_table(batch):
    model, epsilon = Reader(), 0.5
    first = plain(model, batch)
    first.backward()
    by_hand = {n: p.grad.clone() for n, p in model.named_parameters()}
    table = model.words.weight
    step = epsilon * table.grad / table.grad.norm()
    with torch.no_grad():
        table += step
    second = plain(model, batch)
    for name, g in gradients(model, second).items():
        by_hand[name] += g
    loss, found, _ = run([f"fgm={epsilon}"], batch)
    torch.testing.assert_close(loss.detach(), (first + second).detach())
    same(found, by_hand)


def test_pgd_raises_the_loss_at_least_as_much_as_one_step_of_its_radius_to_first_order(batch):
    fgm, _, objective = run(["fgm=0.01"], batch)
    pgd, _, _ = run(["pgd=0.01"], batch)
    climbed = [(loss - 2 * objective.raw).item() for loss in (fgm, pgd)]
    assert climbed[1] >= climbed[0] * (1 - 1e-3) > 0


def test_r_drop_without_dropout_is_the_plain_loss(batch):
    loss, found, _ = run(["r_drop=4"], batch)
    same(
        {"loss": loss.detach(), **found},
        {"loss": plain(Reader(), batch).detach(), **run([], batch)[1]},
    )


def test_r_drop_is_the_mean_of_two_passes_and_their_divergence(batch):
    model = Reader(dropout=0.4)
    torch.manual_seed(3)
    loss = apply_tricks(plain, ["r_drop=4"], CLASSES)(model, batch)
    torch.manual_seed(3)
    p, q = (model(**batch.inputs).log_softmax(-1) for _ in range(2))
    nll = (F.nll_loss(p, batch.targets["label"]) + F.nll_loss(q, batch.targets["label"])) / 2
    divergence = ((p.exp() - q.exp()) * (p - q)).sum(-1).mean()
    torch.testing.assert_close(loss, nll + divergence)  # 4/4


def test_the_gradient_penalty_is_the_squared_gradient_of_the_table(batch):
    model = Reader()
    (g,) = torch.autograd.grad(plain(model, batch), model.words.weight)
    loss, _, objective = run(["gradient_penalty=0.5"], batch)
    torch.testing.assert_close(loss.detach(), objective.raw + 0.5 * g.square().sum())


def test_vat_does_not_look_at_the_labels(batch):
    other = copy.copy(batch)
    other.targets = {"label": (batch.targets["label"] + 1) % 3}
    torch.manual_seed(5)
    a = apply_tricks(plain, ["vat=0.5"], CLASSES)
    first = a(Reader(), batch) - a.raw
    torch.manual_seed(5)
    second = a(Reader(), other) - a.raw
    assert first > 0
    # the random first direction is drawn after the model is made, from the same state
    torch.testing.assert_close(first, second)


def test_weissi_adds_the_logarithms_of_the_norms(batch):
    model = Reader()
    loss, _, objective = run(["weissi=0.1"], batch)
    norms = [model.body[0].weight.norm(), model.body[2].weight.norm()]
    expected = objective.raw + 0.1 * sum(n.log() for n in norms)
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-6, atol=1e-6)


def test_logit_adjustment_counts_the_training_labels(batch):
    loss, _, _ = run(["logit_adjustment=1"], batch)
    prior = (COUNTS + 1) / (COUNTS + 1).sum()  # one more of each: no class may have none
    scores = Reader()(**batch.inputs)
    expected = logit_adjusted_loss(scores, batch.targets["label"], prior)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7, check_dtype=False)


def test_focal_takes_the_place_of_cross_entropy(batch):
    loss, _, objective = run(["focal=2"], batch)
    expected = softmax_focal_loss(Reader()(**batch.inputs), batch.targets["label"], 2.0)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7, check_dtype=False)
    assert loss < objective.raw
    _, found, _ = run(["focal=0"], batch)
    same(found, run([], batch)[1], rtol=1e-5, atol=1e-7)


def test_tricks_stack_in_the_order_written(batch):
    inner, _, _ = run(["focal=2", "flooding=5"], batch)
    focal, _, _ = run(["focal=2"], batch)
    torch.testing.assert_close(inner.detach(), 10 - focal.detach())


@pytest.mark.parametrize("name", ["focal", "logit_adjustment"])
def test_what_takes_the_place_of_the_loss_must_come_first(name):
    with pytest.raises(ValueError, match=f"--trick {name} takes the place .* name it first"):
        apply_tricks(plain, ["flooding=0.1", f"{name}=1"], CLASSES)


@pytest.mark.parametrize("name", ["r_drop", "vat", "logit_adjustment", "focal"])
@pytest.mark.parametrize("distribution", ["spans", "multilabel", ""])
def test_what_needs_classes_is_refused_elsewhere_with_the_name_of_the_task(name, distribution):
    with pytest.raises(
        ValueError, match=f"--trick {name} needs a softmax over classes, which chid"
    ):
        apply_tricks(plain, [f"{name}=1"], TaskFacts("chid", distribution))


def test_a_task_whose_labels_are_positions_has_no_shares_to_adjust():
    with pytest.raises(ValueError, match="needs classes to count; c3 has none"):
        apply_tricks(plain, ["logit_adjustment=1"], TaskFacts("c3", "softmax"))


@pytest.mark.parametrize("name", ["r_drop", "fgm", "pgd", "vat", "gradient_penalty", "weissi"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_strength_that_is_not_positive_is_refused(name, value):
    with pytest.raises(ValueError, match=f"--trick {name} must be positive, got {value}"):
        apply_tricks(plain, [f"{name}={value}"], CLASSES)


def test_a_model_without_embeddings_is_refused():
    with pytest.raises(ValueError, match="Linear has no token embeddings"):
        embedding_of(nn.Linear(2, 2))


def test_a_loss_that_is_nan_stays_nan_and_is_not_turned_into_the_level(batch):
    objective = apply_tricks(
        lambda model, batch: torch.tensor(torch.nan), ["flooding=0.5"], CLASSES
    )
    assert objective(Reader(), batch).isnan()


# Hugging Face's Trainer


def test_sums_over_micro_batches_give_the_mean_over_all(batch):
    loss = trainer_loss(partial(softmax_focal_loss, gamma=2.0))
    scores, labels = Reader()(**batch.inputs), batch.targets["label"]
    whole = loss({"logits": scores}, labels, None)
    parts = [loss({"logits": scores[s]}, labels[s], 5) for s in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(whole, sum(parts))


def test_the_trainers_accumulated_step_is_that_of_the_whole_batch(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    rows = [
        {"input_ids": [1, 5 + i, 7, 2], "attention_mask": [1] * 4, "labels": i % 3}
        for i in range(4)
    ]
    start = BertForSequenceClassification(config)
    loss = partial(softmax_focal_loss, gamma=2.0)

    trained = copy.deepcopy(start)
    Trainer(
        trained,
        TrainingArguments(
            tmp_path,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_train_epochs=1,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            learning_rate=0.1,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            optim="sgd",
            seed=0,
        ),
        train_dataset=rows,
        compute_loss_func=trainer_loss(loss),
        optimizers=(torch.optim.SGD(trained.parameters(), lr=0.1), None),
        data_collator=lambda rows: {k: torch.tensor([r[k] for r in rows]) for k in rows[0]},
    ).train()

    by_hand = copy.deepcopy(start).train()
    batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    labels = batch.pop("labels")
    loss(by_hand(**batch).logits, labels).backward()
    for p in by_hand.parameters():
        if p.grad is not None:
            p.data -= 0.1 * p.grad
    moved = dict(trained.named_parameters())
    for name, p in by_hand.named_parameters():
        torch.testing.assert_close(moved[name], p, rtol=1e-5, atol=1e-7)
    assert not torch.equal(moved["classifier.weight"], start.classifier.weight)
