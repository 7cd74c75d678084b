"""S26 inside the Hugging Face Trainer and Lightning: their loop, our direction."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.optim.guided_search import MGS

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)

    def forward(self, x, labels):
        logits = self.linear(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def metric(model, batch):
    return model(**batch)["logits"].softmax(1).gather(1, 1 - batch["labels"][:, None]).mean()


@pytest.fixture
def expected():
    """Three batches of four in a plain loop."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    search = MGS(model, metric, lambda m, b: m(**b)["loss"], inner_optimizer=optimizer, seed=3)
    for i in range(0, 12, 4):
        search.step({"x": X[i : i + 4], "labels": Y[i : i + 4]})
    return model.linear.weight.detach()


def test_the_hugging_face_trainer_follows_the_sampled_direction(expected, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    search = MGS(model, metric, seed=3)
    search.attach(optimizer)

    class Sampled(transformers.Trainer):
        def training_step(self, model, inputs, *rest):
            search.batch = inputs
            return super().training_step(model, inputs, *rest)

        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(rows)

    rows = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, use_cpu=True,
        save_strategy="no", report_to=[], disable_tqdm=True, max_grad_norm=0.0,
        lr_scheduler_type="constant", learning_rate=0.5, dataloader_pin_memory=False,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    Sampled(model, settings, train_dataset=rows, optimizers=(optimizer, schedule)).train()
    assert search.steps == 3
    torch.testing.assert_close(model.linear.weight.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, on import and about workers
@pytest.mark.parametrize("automatic", [True, False])
def test_lightning_follows_the_sampled_direction_in_both_of_its_modes(
    expected, tmp_path, automatic
):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.automatic_optimization = Net(), automatic
            self.search = MGS(self.net, metric, lambda m, b: m(**b)["loss"], seed=3)

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.5)

        def training_step(self, batch, index):
            self.search.batch = batch
            if self.automatic_optimization:
                return self.net(**batch)["loss"]
            self.search.inner_optimizer = self.optimizers()
            self.search.step(batch)
            return None

        def on_before_optimizer_step(self, optimizer):
            if self.automatic_optimization:
                self.search.rewrite_gradients(self.search.batch)

    rows = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(tmp_path),
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=4))
    assert module.search.steps == 3
    torch.testing.assert_close(module.net.linear.weight.detach(), expected, rtol=0, atol=1e-6)
