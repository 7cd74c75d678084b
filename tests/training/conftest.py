"""A toy that `fit` can train in milliseconds: three classes of short rows of numbers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.data.batching import Batch, pad_rows
from kexue.data.features import encode_once
from kexue.training.fit import fit
from kexue.training.settings import FitSettings

ROWS, CLASSES, WORDS = 23, 3, 40
COLUMNS = {"example": "int", "length": "int", "input_ids": "ints", "label": "int"}


class Toy(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.table = nn.Embedding(WORDS, 6)
        self.norm = nn.LayerNorm(6)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(6, CLASSES)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].to(self.table.weight.dtype)
        mean = (self.table(input_ids) * mask).sum(1) / mask.sum(1)
        return self.out(self.dropout(self.norm(mean)))


def rows():
    random = np.random.default_rng(0)
    for example in range(ROWS):
        ids = random.integers(1, WORDS, size=int(random.integers(1, 20))).tolist()
        yield {"example": example, "length": len(ids), "input_ids": ids, "label": ids[0] % CLASSES}


def collate(features):
    ids, mask = pad_rows([f["input_ids"] for f in features], 0)
    return Batch(
        inputs={"input_ids": ids, "attention_mask": mask},
        targets={"label": torch.tensor([f["label"] for f in features])},
        count=len(features),
        examples=[f["example"] for f in features],
        tokens=int(mask.sum()),
    )


def objective(model, batch):
    return F.cross_entropy(model(**batch.inputs).float(), batch.targets["label"])


def new_model(dropout=0.0):
    torch.manual_seed(3)
    return Toy(dropout)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Features, model and objective, and `train(folder, …)` that runs `fit` on them."""
    features = encode_once("toy", COLUMNS, rows, tmp_path_factory.mktemp("features"))

    def accuracy(model):
        model.eval()
        batch = collate(features.rows(list(range(ROWS))))
        with torch.no_grad():
            right = model(**batch.inputs).argmax(-1) == batch.targets["label"]
        return {"accuracy": 100 * right.float().mean().item()}

    def train(
        folder,
        *,
        model=None,
        dropout=0.0,
        objective=objective,
        evaluate=accuracy,
        keep=lambda model: None,
        accelerator=None,
        resume=False,
        **settings,
    ):
        plain = {"epochs": 2, "batch_size": 5, "learning_rate": 0.1, "precision": "fp32"}
        model = new_model(dropout) if model is None else model
        folder.mkdir(exist_ok=True)
        result = fit(
            model,
            objective,
            features,
            collate,
            FitSettings(**{**plain, **settings}),
            folder=folder,
            evaluate=evaluate,
            keep=keep,
            metric=settings.pop("metric", "accuracy"),
            accelerator=accelerator,
            resume=resume,
            quiet=True,
        )
        return model.state_dict(), result

    def metrics(folder):
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    return SimpleNamespace(
        features=features,
        collate=collate,
        objective=objective,
        model=new_model,
        train=train,
        metrics=metrics,
        rows=ROWS,
        steps=-(-ROWS // 5),
    )


@pytest.fixture(scope="session")
def same():
    """Asserts that two states agree to the last bit."""

    def check(a, b):
        assert a.keys() == b.keys()
        differing = [name for name in a if not torch.equal(a[name], b[name])]
        assert differing == []

    return check
