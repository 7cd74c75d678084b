"""The mask in Hugging Face's Trainer and in Lightning, set up as their users would."""

import warnings

import pytest
import torch
from torch import nn

from kexue.optim.gradient_mask import GradientMask

MODES = ["random", "update", "fixed"]


def masks_of(model):
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.rand(p.shape, generator=generator) < 0.5
        for name, p in model.named_parameters()
        if "layer." in name
    }


def attach(optimizer, model, mode):
    if mode == "fixed":
        return GradientMask(optimizer, mode, masks=masks_of(model), model=model)
    return GradientMask(optimizer, mode, keep_prob=0.3, model=model)


def tiny_bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def rows():
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(30, (6,), generator=generator), "labels": torch.tensor(i % 2)}
        for i in range(16)
    ]


def hugging_face(folder, mode, **options):
    """Trains a tiny BERT; two batches a step, clipped."""
    from transformers import Trainer, TrainingArguments

    model = tiny_bert()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.01, weight_decay=0.1)
    mask = attach(optimizer, model, mode)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=0.1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="steps",
        save_steps=2,
        **options,
    )
    trainer = Trainer(model, arguments, train_dataset=rows(), optimizers=(optimizer, schedule))
    return trainer, mask, before


def after(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("mode", MODES)
def test_the_hugging_face_trainer_masks_once_a_step_and_resumes(mode, tmp_path):
    trainer, mask, before = hugging_face(tmp_path / "whole", mode, max_steps=4)
    trainer.train()
    assert mask.step == 4
    whole = after(trainer.model)
    assert all((whole[n] != before[n]).any() for n in ("classifier.weight", "classifier.bias"))
    if mode == "fixed":
        for name, keep in masks_of(trainer.model).items():
            assert torch.equal(whole[name][~keep], before[name][~keep])
            assert (whole[name][keep] != before[name][keep]).any()

    trainer, mask, _ = hugging_face(tmp_path / "whole", mode, max_steps=4)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert mask.step == 4
    for name, value in after(trainer.model).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0, msg=name)


class Blocks(nn.Module):
    """Two blocks and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer[1](self.layer[0](x).tanh()).tanh())


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, generator=generator) for _ in range(6)]


@pytest.mark.parametrize("mode", MODES)
def test_lightning_with_its_closures_accumulation_and_clipping_is_the_plain_loop(mode, tmp_path):
    plain = Blocks()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    attach(optimizer, plain, mode)
    for first, second in zip(batches()[::2], batches()[1::2], strict=True):
        optimizer.zero_grad()
        for x in (first, second):
            (plain(x).square().mean() / 2).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Blocks()

        def training_step(self, batch, index):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            self.mask = attach(optimizer, self.net, mode)
            return optimizer

    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            accumulate_grad_batches=2,
            gradient_clip_val=0.05,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(tmp_path),
        ).fit(module, torch.utils.data.DataLoader(batches(), batch_size=None))
    assert module.mask.step == 3
    for name, value in after(plain).items():
        torch.testing.assert_close(
            dict(module.net.named_parameters())[name].detach(), value, rtol=1e-6, atol=1e-7
        )
