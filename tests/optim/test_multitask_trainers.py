"""S16 inside the Hugging Face Trainer and Lightning: their loop, our backward pass."""

import pytest
import torch
from torch import nn

from kexue.optim.multitask import multitask_backward

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
ROWS = [{"x": x} for x in X]
BATCHES = 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(3, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))

    def forward(self, x):
        hidden = self.encoder(x)
        return [(head(hidden) - (-1) ** k).square().mean() for k, head in enumerate(self.heads)]


def backward(net, losses):
    return multitask_backward(
        losses,
        shared_params=net.encoder.parameters(),
        task_params=net.heads.parameters(),
        method="min_norm",
    )


@pytest.fixture
def expected():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for batch in X.chunk(BATCHES):
        backward(net, net(batch))
        optimizer.step()
        optimizer.zero_grad()
    return net.state_dict()


def assert_same(net, expected):
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)


def test_the_hugging_face_trainer_takes_the_same_steps(expected, tmp_path):
    transformers = pytest.importorskip("transformers")

    class MultiTaskTrainer(transformers.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager():
                losses = model(**inputs)
            backward(model, losses)
            return sum(losses).detach()

        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(ROWS)

    net = Net()
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, use_cpu=True,
        save_strategy="no", report_to=[], disable_tqdm=True, max_grad_norm=0.0,
        dataloader_pin_memory=False,
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = MultiTaskTrainer(net, settings, train_dataset=ROWS, optimizers=(optimizer, schedule))
    trainer.train()
    assert trainer.state.global_step == BATCHES
    assert_same(net, expected)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, on import and about workers
def test_lightning_takes_the_same_steps_in_manual_optimisation(expected, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.automatic_optimization = Net(), False

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

        def training_step(self, batch, index):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            backward(self.net, self.net(**batch))
            optimizer.step()

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(tmp_path),
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(ROWS, batch_size=4))
    assert trainer.global_step == BATCHES
    assert_same(module.net, expected)
