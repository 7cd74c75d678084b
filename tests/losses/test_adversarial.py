"""FGM, PGD and virtual adversarial training: where they go, and that they come back (S15)."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kexue.losses.adversarial import FGM, PGD, virtual_adversarial_loss
from kexue.losses.divergence import kl_divergence
from kexue.losses.shift import unit_step

IDS, Y = torch.tensor([[1, 2, 2], [3, 4, 5], [1, 1, 0]]), torch.tensor([0, 1, 1])


class Net(nn.Module):
    def __init__(self, dropout=0.0, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4, padding_idx=0)
        self.dense, self.drop = nn.Linear(4, 4), nn.Dropout(dropout)
        self.tied = tied

    def forward(self, ids):
        h = self.drop(self.dense(self.embedding(ids)).tanh()).mean(1)
        return h @ self.embedding.weight.T if self.tied else h

    def loss(self):
        return F.cross_entropy(self(IDS), Y)


# --- FGM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 30.0])
def test_fgm_moves_the_whole_table_by_epsilon_along_its_gradient(epsilon):
    net = Net()
    before = net.embedding.weight.detach().clone()
    net.loss().backward()
    with FGM(net.embedding, epsilon).perturbed():
        step = net.embedding.weight.detach() - before
    grad = net.embedding.weight.grad
    torch.testing.assert_close(step.norm(), torch.tensor(epsilon), rtol=1e-5, atol=0)
    torch.testing.assert_close(step, epsilon * grad / grad.norm(), rtol=1e-4, atol=1e-6)
    assert torch.equal(step[0], torch.zeros(4))  # padding stays


def test_fgm_raises_the_loss_by_epsilon_times_the_gradient_norm():
    net = Net().double()
    net.loss().backward()
    slope, errors = net.embedding.weight.grad.norm(), []
    for epsilon in (1e-2, 1e-3):
        with FGM(net.embedding, epsilon).perturbed(), torch.no_grad():
            there = net.loss()
        errors.append(abs((there - net.loss().detach()) / epsilon - slope))
    assert errors[1] < errors[0] / 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("fail", [False, True])
def test_the_old_bits_come_back_even_after_an_error(dtype, fail):
    weight = nn.Parameter(torch.randn(50, 8, dtype=dtype) * 1e-3)
    weight.data[0, 0] = -0.0
    before = weight.detach().clone().view(torch.uint8)
    weight.grad = torch.randn_like(weight)
    pointer = weight.data_ptr()
    try:
        with FGM(weight, 7.3).perturbed():
            assert not torch.equal(weight.detach().view(torch.uint8), before)
            if fail:
                raise KeyError
    except KeyError:
        pass
    assert torch.equal(weight.detach().view(torch.uint8), before)
    assert weight.data_ptr() == pointer


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -float("inf")])
def test_a_zero_or_broken_gradient_leaves_every_bit_alone(value):
    weight = nn.Parameter(torch.tensor([[1.0, -0.0], [1e-40, 3.0]]))
    weight.grad = torch.tensor([[value, 0.0], [0.0, 0.0]])
    bits = weight.detach().clone().view(torch.int32)
    with FGM(weight).perturbed():
        assert torch.equal(weight.detach().view(torch.int32), bits)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_step_does_not_depend_on_the_scale_of_the_gradient(size):
    grad = torch.tensor([[3.0, 4.0]])
    (step,), length = unit_step([grad * size], 1.0)
    torch.testing.assert_close(step, torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(length / size, torch.tensor(5.0))


def test_large_float16_gradients_do_not_overflow():
    weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.float16))
    weight.grad = torch.full((2, 2), 60000.0, dtype=torch.float16)
    with FGM(weight).perturbed():
        assert weight.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_sparse_gradients_give_the_step_of_dense_ones():
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(6, 3, sparse=sparse)
        table(torch.tensor([1, 1, 4])).square().sum().backward()
        with FGM(table).perturbed():
            found.append(table.weight.detach().clone())
    torch.testing.assert_close(*found)


def test_the_second_gradient_is_added_or_replaces_the_first():
    net, other = Net(), Net()
    net.loss().backward()
    plain = net.dense.weight.grad.clone()
    with FGM(net.embedding).perturbed():
        net.loss().backward()
    other.loss().backward()
    with FGM(other.embedding).perturbed():
        other.zero_grad()
        other.loss().backward()
    torch.testing.assert_close(net.dense.weight.grad, plain + other.dense.weight.grad)
    assert not torch.allclose(other.dense.weight.grad, plain)


def test_a_backward_pass_after_the_end_is_right_or_refused():
    net, other = Net(), Net()
    for one in (net, other):
        one.loss().backward()
    with FGM(net.embedding).perturbed():
        late = net.loss()
    late.backward()
    with FGM(other.embedding).perturbed():
        other.loss().backward()
    torch.testing.assert_close(net.embedding.weight.grad, other.embedding.weight.grad)
    tied = Net(tied=True)
    tied.loss().backward()
    with FGM(tied.embedding).perturbed():
        late = tied.loss()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        late.backward()


def test_fgm_costs_two_plain_steps():
    net = Net()
    with FlopCounterMode(display=False) as plain:
        net.loss().backward()
    with FlopCounterMode(display=False) as both:
        net.loss().backward()
        with FGM(net.embedding).perturbed():
            net.loss().backward()
    assert both.get_total_flops() <= 2.1 * plain.get_total_flops()


def test_the_trainer_can_run_it_with_a_grad_scaler():
    net = Net()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler.scale(net.loss()).backward()
    with FGM(net.embedding).perturbed():
        shifted = net.embedding.weight.detach().clone()
        scaler.scale(net.loss()).backward()
    scaler.step(optimizer)
    scaler.update()
    plain = Net()
    plain.loss().backward()
    with FGM(plain.embedding).perturbed():
        torch.testing.assert_close(plain.embedding.weight.detach(), shifted)
        plain.loss().backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    torch.testing.assert_close(net.state_dict(), plain.state_dict())


def test_bad_tables_and_lengths_are_named():
    table = nn.Embedding(3, 2)
    with pytest.raises(ValueError, match=r"no gradient: call loss\.backward"):
        FGM(table).perturbed()
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epsilon must be positive and finite"):
            FGM(table, value)
    with pytest.raises(ValueError, match="alpha must be positive"):
        PGD(table, alpha=-1.0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        PGD(table, steps=0)
    with pytest.raises(ValueError, match="frozen"):
        FGM(nn.Embedding.from_pretrained(torch.ones(2, 2)))


# --- PGD ------------------------------------------------------------------------------------------


def naive_pgd(net, epsilon, alpha, steps):
    net = copy.deepcopy(net)
    start = net.embedding.weight.detach().clone()
    delta = torch.zeros_like(start)
    for _ in range(steps):
        net.embedding.weight.data = start + delta
        (grad,) = torch.autograd.grad(net.loss(), net.embedding.weight)
        delta = delta + alpha * grad / grad.norm()
        if delta.norm() > epsilon:
            delta = delta * epsilon / delta.norm()
    return delta


@pytest.mark.parametrize(
    ("epsilon", "alpha", "steps"), [(1.0, 0.3, 2), (0.5, 0.3, 4), (1.0, 2.0, 1)]
)
def test_pgd_walks_like_its_slow_twin(epsilon, alpha, steps):
    net = Net().double()
    expected = naive_pgd(net, epsilon, alpha, steps)
    before = net.embedding.weight.detach().clone()
    with PGD(net.embedding, epsilon, alpha, steps).perturbed(net.loss):
        found = net.embedding.weight.detach() - before
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    assert found.norm() <= epsilon * (1 + 1e-12)
    assert torch.equal(net.embedding.weight, before)
    assert all(p.grad is None for p in net.parameters())


def test_one_long_step_of_pgd_is_fgm():
    net = Net()
    net.loss().backward()
    with FGM(net.embedding, 0.7).perturbed():
        fgm = net.embedding.weight.detach().clone()
    with PGD(net.embedding, epsilon=0.7, alpha=5.0, steps=1).perturbed(net.loss):
        torch.testing.assert_close(net.embedding.weight.detach(), fgm)


def test_pgd_finds_a_higher_loss_than_fgm_in_the_same_ball():
    net = Net().double()
    net.loss().backward()
    with FGM(net.embedding, 3.0).perturbed():
        fgm = net.loss().item()
    with PGD(net.embedding, 3.0, alpha=0.5, steps=20).perturbed(net.loss):
        assert net.loss().item() > fgm


def test_pgd_sees_one_dropout_and_the_step_after_it_the_same():
    net, masks = Net(dropout=0.5), []
    net.drop.register_forward_hook(lambda m, args, out: masks.append(out == 0))
    with PGD(net.embedding, steps=3).perturbed(net.loss):
        net.loss()
    assert all(torch.equal(masks[0], one) for one in masks[1:])


def test_pgd_stands_still_on_a_broken_gradient():
    weight = nn.Parameter(torch.ones(2))
    with PGD(weight).perturbed(lambda: (weight * float("nan")).sum()):
        assert weight.tolist() == [1.0, 1.0]


# --- virtual adversarial training -----------------------------------------------------------------


def small():
    torch.manual_seed(1)
    layers = [nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def inputs(rows=5):
    return torch.randn(rows, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def vat(net, x, seed=0, **options):
    return virtual_adversarial_loss(
        net, x, generator=torch.Generator().manual_seed(seed), **options
    )


def test_power_iteration_finds_the_worst_direction_of_the_quadratic_form():
    net, x = small(), inputs(1)
    found = vat(net, x, epsilon=1e-3, xi=1e-4, iterations=60)

    def distance(r):
        return kl_divergence(net(x).detach(), net(x + r.view_as(x))).sum()

    hessian = torch.autograd.functional.hessian(distance, torch.zeros(6, dtype=torch.float64))
    worst = torch.linalg.eigvalsh(hessian)[-1]
    torch.testing.assert_close(found.detach(), worst * 1e-6 / 2, rtol=1e-3, atol=0)


def test_it_beats_a_random_direction():
    net, x = small(), inputs()
    noise = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    noise = noise / noise.flatten(1).norm(dim=1)[:, None, None]
    random = kl_divergence(net(x), net(x + noise)).mean()
    assert vat(net, x) > 2 * random


def test_every_sample_is_shifted_by_epsilon_whatever_the_others_do(monkeypatch):
    net, x, shifts = small(), inputs(), []

    def spy(e):
        shifts.append((e - x[: len(e)]).detach())
        return net(e)

    draws = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    monkeypatch.setattr(torch, "randn", lambda shape, **_: draws[: shape[0]])
    whole = vat(spy, x, epsilon=0.4, reduction="none")
    length = torch.full((5,), 0.4, dtype=torch.float64)
    torch.testing.assert_close(shifts[-1].flatten(1).norm(dim=1), length)
    torch.testing.assert_close(whole[:2], vat(net, x[:2], epsilon=0.4, reduction="none"))


def test_masked_tokens_do_not_move():
    net, x, seen = small(), inputs(), []
    mask = torch.tensor([[True, False]]).expand(5, 2)
    vat(lambda e: net(seen.append(e) or e), x, mask=mask)
    for e in seen[1:]:
        assert torch.equal(e[:, 1], x[:, 1])
        assert not torch.equal(e[:, 0], x[:, 0])


def test_the_target_is_constant_and_every_weight_gets_a_gradient():
    net, x = small(), inputs().requires_grad_()
    vat(net, x).backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters() if p is not net[3].bias)
    assert x.grad.abs().sum() > 0


def test_dropout_alone_costs_nothing():
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 3)).double()
    assert vat(net, inputs(), epsilon=1e-7) < 1e-10  # other masks would give about 0.1


def test_known_logits_save_the_first_pass():
    net, x, calls = small(), inputs(), []
    found = vat(lambda e: net(calls.append(1) or e), x, logits=net(x))
    assert len(calls) == 2
    torch.testing.assert_close(found, vat(net, x))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_constant_network_is_not_shifted(kind):
    found = vat(lambda e: e.flatten(1) * 0, inputs(), kind=kind, epsilon=5.0)
    assert found == 0


def test_vat_sums_and_counts_accumulate_to_the_large_batch():
    net, other, x = small(), small(), inputs(6)
    draws = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))

    def loss(model, part, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", lambda *shape, **_: draws[part])
            return virtual_adversarial_loss(model, x[part], **options)

    loss(net, slice(0, 6)).backward()
    for part in (slice(0, 2), slice(2, 6)):
        total, count = loss(other, part, reduction="sum_and_count")
        assert count == len(x[part])
        (total / 6).backward()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-14)


def test_vat_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        vat(small(), inputs(), iterations=0)
    with pytest.raises(ValueError, match="xi must be positive"):
        vat(small(), inputs(), xi=0.0)
    with pytest.raises((ValueError, TypeError), match="kind"):
        vat(small(), inputs(), kind="poisson")


def test_the_trainer_of_transformers_trains_on_both_gradients(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    size = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    rows = [{"input_ids": [2, 3, 4 + k], "labels": k % 2} for k in range(4)]

    def build():
        torch.manual_seed(0)
        return BertForSequenceClassification(BertConfig(**size, **quiet, intermediate_size=32))

    class FGMTrainer(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            with FGM(self.model.get_input_embeddings()).perturbed():
                super().training_step(model, inputs, num_items_in_batch)
            return loss

    args = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, optim="sgd", learning_rate=0.1,
        lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trained, plain = build(), build()
    FGMTrainer(trained, args, train_dataset=rows).train()
    ids, y = torch.tensor([r["input_ids"] for r in rows]), torch.tensor([r["labels"] for r in rows])
    plain(input_ids=ids, labels=y).loss.backward()
    with FGM(plain.get_input_embeddings()).perturbed():
        plain(input_ids=ids, labels=y).loss.backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    torch.testing.assert_close(trained.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-6)
