"""A model that returns the contrastive loss, in Hugging Face's Trainer."""

import torch
from torch import nn

from kexue.losses.flat_nce import FlatNCELoss


class PairModel(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.contrast = nn.Linear(6, 4), FlatNCELoss(0.1, "in_batch")

    def forward(self, anchor, positive):
        a, b = self.encoder(anchor), self.encoder(positive)
        return {"loss": self.contrast(a, b), "embedding": a}


def rows():
    generator = torch.Generator().manual_seed(0)
    return [
        dict(zip(("anchor", "positive"), torch.randn(2, 6, generator=generator), strict=True))
        for _ in range(16)
    ]


def test_two_accumulated_batches_are_a_step_along_their_mean_gradient(tmp_path):
    from transformers import Trainer, TrainingArguments

    model, ours, data = PairModel(), PairModel(), rows()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=2,
        max_grad_norm=0.0,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    trainer = Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, constant))
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(data)
    trainer.train()
    plain = torch.optim.SGD(ours.parameters(), lr=0.1)
    for start in (0, 8):
        for first in (start, start + 4):
            part = data[first : first + 4]
            batch = {name: torch.stack([row[name] for row in part]) for name in part[0]}
            (ours(**batch)["loss"] / 2).backward()
        plain.step()
        plain.zero_grad()
    for mine, theirs in zip(model.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
