"""Exposure bias inside the Hugging Face trainers, with small random models and no network."""

import functools

import pytest
import torch

from kexue.losses.exposure import LinearDecay, ParallelScheduledSampling, RandomReplace
from kexue.training.exposure import ExposureBiasMixin

transformers = pytest.importorskip("transformers")

V, PAD, EOS = 30, 0, 1


def t5():
    torch.manual_seed(0)
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=V, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
            dropout_rate=0.0, decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS,
        )
    )  # fmt: skip


def bart():
    torch.manual_seed(0)
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
            decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, dropout=0.0,
            max_position_embeddings=32, pad_token_id=PAD, bos_token_id=2, eos_token_id=EOS,
            decoder_start_token_id=2, forced_eos_token_id=EOS, scale_embedding=True,
        )
    )  # fmt: skip


def gpt2():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=32, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, pad_token_id=PAD, bos_token_id=2, eos_token_id=EOS,
        )
    )  # fmt: skip


def pairs(rows=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for row in range(rows):
        words = torch.randint(3, V, (4 + row % 3,), generator=generator).tolist()
        found.append({"input_ids": words, "labels": [*sorted(words), EOS]})
    return found


def texts(rows=8):
    return [
        {"input_ids": [*p["input_ids"], 2, *p["labels"]], "labels": [-100] * 5 + p["labels"]}
        for p in pairs(rows)
        if len(p["input_ids"]) == 4
    ]


def collate(rows):
    def pad(name, value):
        longest = max(len(row[name]) for row in rows)
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    ids = pad("input_ids", PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": pad("labels", -100)}


def trainer(folder, model, exposure, *, base="Seq2SeqTrainer", data=None, steps=3, **options):
    kind = type("Exposed", (ExposureBiasMixin, getattr(transformers, base)), {})
    arguments = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": steps,
        "use_cpu": True, "save_strategy": "no", "report_to": [], "disable_tqdm": True,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "seed": 5,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    keep = {name: options.pop(name) for name in ("labels_of",) if name in options}
    settings = "Seq2SeqTrainingArguments" if base == "Seq2SeqTrainer" else "TrainingArguments"
    return kind(
        model, getattr(transformers, settings)(**(arguments | options)), data_collator=collate,
        train_dataset=data or pairs(), eval_dataset=data or pairs(), exposure=exposure, **keep,
    )  # fmt: skip


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def noted(plain, batches):
    @functools.wraps(plain)  # the trainer reads the signature
    def forward(self, *args, **inputs):
        batches.append(dict(inputs))
        return plain(self, *args, **inputs)

    return forward


@pytest.fixture
def seen(monkeypatch):
    """What models were given, in order."""
    batches = []
    for name in ("T5ForConditionalGeneration", "BartForConditionalGeneration", "GPT2LMHeadModel"):
        kind = getattr(transformers, name)

        monkeypatch.setattr(kind, "forward", noted(kind.forward, batches))
    return batches


@pytest.mark.parametrize("model", [t5, bart])
def test_replacement_changes_what_the_decoder_reads_and_not_what_it_has_to_say(
    model, seen, tmp_path
):
    exposure = RandomReplace(1.0, 1.0, "vocab", (PAD, EOS, 2), vocab_size=V)
    model = model()
    trainer(tmp_path, model, exposure).train()
    plain = model.prepare_decoder_input_ids_from_labels
    for batch in seen:
        gold = plain(labels=batch["labels"])
        ids, free = batch["decoder_input_ids"], (gold > 2)
        free[:, 0] = False
        assert torch.equal(ids[~free], gold[~free])
        assert (ids[free] != gold[free]).double().mean() > 0.8
        assert torch.equal(batch["labels"][batch["labels"] != -100].unique()[:1], torch.tensor([1]))


@pytest.mark.parametrize("options", [{}, {"label_smoothing_factor": 0.1}])
def test_a_rate_of_zero_trains_like_the_plain_trainer_to_the_bit(options, tmp_path):
    exposed, plain = t5(), t5()
    trainer(tmp_path, exposed, RandomReplace(0.0, seed=1), **options).train()
    reference = trainer(tmp_path, plain, RandomReplace(0.0), **options)
    type(reference).compute_loss = transformers.Seq2SeqTrainer.compute_loss

    def shifted(rows):  # what the trainer asks of a collator for label smoothing
        batch = collate(rows)
        ids = plain.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return batch | {"decoder_input_ids": ids}

    reference.data_collator = shifted
    reference.train()
    assert torch.equal(weights(exposed), weights(plain))


def test_replacement_gives_other_weights_and_evaluation_the_same_loss(tmp_path):
    plain, exposed = t5(), t5()
    losses = [
        trainer(tmp_path, model, RandomReplace(p, 1.0), steps=2)
        for model, p in ((plain, 0.0), (exposed, 1.0))
    ]
    assert losses[0].evaluate()["eval_loss"] == losses[1].evaluate()["eval_loss"]
    for one in losses:
        one.train()
    assert not torch.equal(weights(plain), weights(exposed))


def test_in_a_causal_model_only_the_answer_changes(seen, tmp_path):
    exposure = RandomReplace(1.0, 1.0, "sequence", (PAD, EOS, 2))
    data = texts()
    trainer(tmp_path, gpt2(), exposure, base="Trainer", data=data).train()
    gold = {tuple(row["input_ids"][:5]): row["input_ids"] for row in data}
    changed = 0
    for batch in seen:
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            row = gold[tuple(ids[:5])]  # the prompt is whole
            assert labels[5:] == row[5:]
            assert ids[-1] == EOS
            assert set(ids) <= set(row)
            changed += ids != row
    assert changed > 2


def test_labels_shifted_by_the_user_can_be_declared(tmp_path):
    data = [
        {"input_ids": row["input_ids"], "labels": [*row["labels"][1:], -100]} for row in texts()
    ]
    exposure = RandomReplace(1.0, 1.0, "vocab", vocab_size=V)
    one = trainer(tmp_path, gpt2(), exposure, base="Trainer", data=data, labels_of="next")
    batch = collate(data)
    read = one.exposed(one.model.train(), batch)["input_ids"]
    assert torch.equal(read[:, :5], batch["input_ids"][:, :5])
    assert (read[:, 5:] != batch["input_ids"][:, 5:]).double().mean() > 0.8


@pytest.mark.parametrize("mix", ["argmax", "sample", "softmax", "gumbel"])
@pytest.mark.parametrize("model", [t5, bart])
def test_scheduled_sampling_reads_twice_and_follows_the_updates(mix, model, seen, tmp_path):
    exposure = ParallelScheduledSampling(LinearDecay(0.5), mix)
    trainer(tmp_path, model(), exposure, steps=3).train()
    assert exposure.updates == 2
    assert len(seen) == 6
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert "labels" not in first
        assert "labels" in second
        assert ("decoder_input_ids" in second) == (mix in ("argmax", "sample"))
    if mix == "argmax":
        assert torch.equal(seen[0]["decoder_input_ids"], seen[1]["decoder_input_ids"])  # gold: 1
        assert not torch.equal(seen[4]["decoder_input_ids"], seen[5]["decoder_input_ids"])


@pytest.mark.parametrize("mix", ["argmax", "softmax"])
@pytest.mark.parametrize("model", [t5, bart])
def test_with_gold_inputs_only_two_passes_train_like_one(mix, model, tmp_path):
    exposed, plain = model(), model()
    trainer(tmp_path, exposed, ParallelScheduledSampling(1.0, mix), optim="sgd").train()
    trainer(tmp_path, plain, RandomReplace(0.0), optim="sgd").train()
    torch.testing.assert_close(weights(exposed), weights(plain), rtol=0, atol=1e-6)


def test_a_gradient_through_the_first_pass_changes_the_step(tmp_path):
    models = {through: t5() for through in (True, False)}
    for through, model in models.items():
        exposure = ParallelScheduledSampling(
            0.0, "softmax", through_first_pass=through, temperature=2.0
        )
        trainer(tmp_path, model, exposure, steps=1, optim="sgd").train()
    assert not torch.equal(weights(models[True]), weights(models[False]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomReplace(1.0, 0.5),
        lambda: ParallelScheduledSampling(LinearDecay(0.3), "sample"),
    ],
    ids=["replacement", "sampling"],
)
def test_a_resumed_run_goes_on_exactly(make, tmp_path):
    whole, resumed = t5(), t5()
    options = {"save_strategy": "steps", "save_steps": 2, "steps": 4}
    trainer(tmp_path / "a", whole, make(), **options).train()
    trainer(tmp_path / "b", resumed, make(), **options).train(
        resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2")
    )
    assert torch.equal(weights(whole), weights(resumed))


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(TypeError, match="exposure"):  # or the hook's own
        trainer(tmp_path, t5(), "replace")
    one = trainer(tmp_path, gpt2(), RandomReplace(), base="Trainer", data=texts())
    with pytest.raises(ValueError, match=r"needs labels in the batch, got only \['input_ids'\]"):
        one.exposed(one.model, {"input_ids": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match="needs input_ids in the batch"):
        one.exposed(one.model, {"labels": torch.zeros(1, 1)})
