"""A two-layer encoder from scratch learns 32 records of every task by heart (S01, 6 c)."""

import pytest
import torch

from kexue.data.batching import LengthBatches
from kexue.data.mini import write_mini
from kexue.models.text_model import TextModel
from kexue.models.tiny import tiny_encoder
from kexue.tasks.clue import TASKS, load_clue, make_task

RECORDS = 32
STEPS = 400
ENOUGH = {"cmrc2018": 90, "cluener": 90}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_mini(tmp_path_factory.mktemp("few"), train=RECORDS, dev=1, test=1)


def evaluate(task, model, features, examples):
    found = []
    with torch.no_grad():
        for start in range(0, len(features), 16):
            batch = task.collate(features[start : start + 16])
            found += zip(batch.examples, task.outputs(model, batch), strict=True)
    return task.score(examples, task.decode(examples, found))


def goal(name, examples):
    """The score that counts as learned; cluener's mean runs over absent types too."""
    if name != "cluener":
        return ENOUGH.get(name, 95)
    return ENOUGH[name] * len({kind for e in examples for kind, _, _ in e.entities}) / 10


@pytest.mark.parametrize("name", TASKS)
def test_a_small_encoder_learns_the_records_by_heart(name, few, tokenizer):
    torch.manual_seed(0)
    task = make_task(name, tokenizer)
    examples = load_clue(name, few, "train")
    features = list(task.encode(examples, 0))
    # by heart: without dropout
    model = TextModel(tiny_encoder(len(tokenizer), hidden_size=64), task.head(64)).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    plan = LengthBatches([f["length"] for f in features], batch_size=16, rows=task.rows)
    step, epoch, scores = 0, 0, {task.metric: 0.0}
    while step < STEPS and scores[task.metric] < goal(name, examples):
        for [micro] in (s for e in range(epoch, epoch + 5) for s in plan.epoch(e)):
            task.loss(model, task.collate([features[i] for i in micro.indices])).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        epoch += 5
        scores = evaluate(task, model, features, examples)
    assert scores[task.metric] >= goal(name, examples), (step, scores)
