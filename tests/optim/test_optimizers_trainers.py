"""All our optimizers in Hugging Face's Trainer and in Lightning: the plain loop's trajectory."""

import warnings

import pytest
import torch
from torch.nn import functional as F

from families import optimizers as family

EACH = [pytest.param(build, id=name) for name, build in family.FOR_MODELS.items()]
each = pytest.mark.parametrize("build", EACH)
STEPS = 4


def schedule_of(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "vocab_size": 30, "max_position_embeddings": 16}
    silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**sizes, **silent)).train()


def rows():
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(30, (6,), generator=generator), "labels": torch.tensor(i % 2)}
        for i in range(4 * STEPS)
    ]


@each
def test_the_trainer_of_hugging_face_trains_as_a_plain_loop(build, tmp_path):
    from transformers import Trainer, TrainingArguments

    model = bert()
    optimizer = build(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        max_grad_norm=1.0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    pair = optimizer, schedule_of(optimizer)
    Trainer(model, arguments, train_dataset=rows(), optimizers=pair).train()

    twin = bert()
    other = build(twin)
    schedule, examples = schedule_of(other), rows()
    for step in range(STEPS):
        four = examples[4 * step : 4 * step + 4]
        ids, labels = (torch.stack([r[k] for r in four]) for k in ("input_ids", "labels"))
        twin(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        other.step()
        schedule.step()
        other.zero_grad()
    family.assert_same(family.tensors_of(optimizer), family.tensors_of(other))
    for one, two in zip(model.parameters(), bert().parameters(), strict=True):
        assert not torch.equal(one, two)


@each
def test_a_checkpoint_of_the_trainer_goes_on_as_if_nothing_had_happened(build, tmp_path):
    from transformers import Trainer, TrainingArguments

    def trainer(model, folder, **options):
        optimizer = build(model)
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=4,
            num_train_epochs=1,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
            **options,
        )
        pair = optimizer, schedule_of(optimizer)
        return Trainer(model, arguments, train_dataset=rows(), optimizers=pair)

    whole = trainer(bert(), tmp_path / "a", save_strategy="steps", save_steps=2)
    whole.train()
    later = trainer(bert(), tmp_path / "b", save_strategy="no")
    later.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    ends = [[p.detach() for p in t.model.parameters()] for t in (whole, later)]
    family.assert_same(*ends)


@each
def test_lightning_trains_as_a_plain_loop(build):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about itself and what it imports
        import lightning

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.network = family.network()

            def training_step(self, batch, _):
                inputs, targets = batch
                return F.mse_loss(self.network(inputs), targets)

            def configure_optimizers(self):
                optimizer = build(self.network)
                schedule = {"scheduler": schedule_of(optimizer), "interval": "step"}
                return {"optimizer": optimizer, "lr_scheduler": schedule}

        module = Module()
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
        )
        batches = [family.batch(seed) for seed in range(STEPS)]
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    twin = family.network()
    other = build(twin)
    schedule = schedule_of(other)
    for seed in range(STEPS):
        other.zero_grad()
        family.loss_of(twin, seed).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        other.step()
        schedule.step()
    family.assert_same(
        [p.detach() for p in module.network.parameters()], [p.detach() for p in twin.parameters()]
    )
