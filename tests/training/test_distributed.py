"""Two processes on one CPU do what one does: DDP and FSDP2 over gloo, started as users start them.

`accelerate launch --cpu --num_processes 2` starts a single process unless MPI is there, which would
make these tests hold for the wrong reason; so they use torchrun, and every process leaves a witness
of how many there were.
"""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from kexue.cli.clue import app

pytestmark = pytest.mark.distributed

# `python -m kexue …`, and a word about the processes at the end.
LAUNCHED = """
import atexit, os, pathlib, runpy, sys, threading, time
from accelerate import PartialState

witness, checkpoint = pathlib.Path(os.environ["WITNESS"]), os.environ.get("KILL_AFTER")
if os.environ.get("ACCELERATE_USE_FSDP"):
    # Accelerate shards on accelerators only; gloo on a CPU can do it as well.
    from accelerate.utils import DistributedType
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

def watch():
    while not any(p.name >= checkpoint for p in pathlib.Path(sys.argv[-1]).glob("*/*/step-*")):
        time.sleep(0.001)
    os.kill(os.getpid(), 9)

def tell():
    state = PartialState()
    kind = state.distributed_type.value
    (witness / f"{state.process_index}").write_text(f"{state.num_processes} {kind}")

if checkpoint:
    threading.Thread(target=watch, daemon=True).start()
atexit.register(tell)
runpy.run_module("kexue", run_name="__main__", alter_sys=False)
"""
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small encoder without dropout, whose draws would depend on the number of processes."""
    from transformers import BertConfig, BertModel

    from kexue.models.loading import quiet_transformers
    from kexue.models.tiny import tiny_tokenizer

    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("model"), tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with quiet_transformers():
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def arguments(mini, model, out, *options):
    # SGD, because Adam would hide a gradient of the wrong size
    plain = ["--precision", "fp32", "--optimizer", "sgd", "--lr", "0.3", "--max-tokens", "100"]
    return [
        *("train", "tnews", "--data", str(mini), "--model", str(model)),
        *(*plain, *options, "--out", str(out)),
    ]


def alone(mini, model, out, *options):
    result = CliRunner().invoke(app, arguments(mini, model, out, *options))
    assert result.exit_code == 0, result.stderr
    return out


def launch(mini, model, out, *options, **environment):
    """Starts two processes; returns the launcher's end and what the processes witnessed."""
    witness = out.with_name(f"{out.name}-witness")
    witness.mkdir(exist_ok=True)
    script = witness.with_suffix(".py")
    script.write_text(LAUNCHED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
            *("--master_addr", "127.0.0.1", "--master_port", str(port), str(script), "clue"),
            *arguments(mini, model, out, *options),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "WITNESS": str(witness), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done, {path.name: path.read_text() for path in witness.iterdir()}


def together(mini, model, out, *options, kind="MULTI_CPU", **environment):
    done, seen = launch(mini, model, out, *options, **environment)
    assert done.returncode == 0, done.stderr
    assert seen == {"0": f"2 {kind}", "1": f"2 {kind}"}
    assert done.stdout.count("report: ") == 1
    assert done.stderr.count("epoch 1 ") <= 1
    return out


def losses(out):
    text = (out / "tnews" / "metrics.jsonl").read_text(encoding="utf-8")
    return {x["step"]: x["loss"] for x in map(json.loads, text.splitlines()) if "loss" in x}


def assert_same_training(out, reference, rtol):
    assert losses(out) == pytest.approx(losses(reference), rel=rtol)
    for name in ("best/model.safetensors", "best/head.safetensors"):
        found, expected = load_file(out / "tnews" / name), load_file(reference / "tnews" / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5, msg=key)


def assert_same_outcome(out, reference):
    for name in ("submission/tnews11_predict.json", "tnews/predictions.jsonl"):
        assert (out / name).read_text(encoding="utf-8") == (reference / name).read_text("utf-8")
    [found], [expected] = (json.loads((o / "results.json").read_text()) for o in (out, reference))
    assert found["scores"] == expected["scores"]
    assert found["best_epoch"] == expected["best_epoch"]
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == sorted(
        p.name for p in reference.rglob("*") if p.is_file()
    )


# 48 examples: every epoch ends in a step of 3, or in one of 1, which leaves a process without any.
@pytest.fixture(scope="module", params=[5, 47])
def sizes(request):
    return "--batch-size", str(request.param), "--epochs", "3" if request.param == 5 else "10"


def test_two_processes_train_like_one(mini, model, sizes, tmp_path):
    reference = alone(mini, model, tmp_path / "alone", *sizes)
    out = together(mini, model, tmp_path / "run", *sizes)
    assert_same_training(out, reference, rtol=1e-5)
    assert_same_outcome(out, reference)


def test_two_processes_with_tricks_of_single_terms_train_like_one(mini, model, tmp_path):
    options = (
        "--batch-size",
        "12",
        "--epochs",
        "2",
        "--trick",
        "focal=2",
        "--trick",
        "weissi=0.01",
    )
    reference = alone(mini, model, tmp_path / "alone", *options)
    out = together(mini, model, tmp_path / "run", *options)
    assert_same_training(out, reference, rtol=1e-5)


def test_two_processes_with_a_tiny_attack_train_like_one_on_twice_the_loss(mini, model, tmp_path):
    """Each moves the embeddings for its own part of the batch; the gradients are averaged."""
    plain = ("--max-grad-norm", "0", "--weight-decay", "0")
    sizes = ("--batch-size", "12", "--epochs", "2", *plain)
    reference = alone(mini, model, tmp_path / "alone", *sizes)
    attack = ("--trick", "fgm=1e-6", "--lr", "0.15")
    found = losses(together(mini, model, tmp_path / "run", *sizes, *attack))
    twice = {step: 2 * loss for step, loss in losses(reference).items()}
    assert found == pytest.approx(twice, rel=1e-4)


def test_two_processes_with_a_sharded_model_train_like_one(mini, model, tmp_path):
    sizes = "--batch-size", "47", "--epochs", "5"
    reference = alone(mini, model, tmp_path / "alone", *sizes)
    out = together(mini, model, tmp_path / "run", *sizes, kind="FSDP", **FSDP)
    assert_same_training(out, reference, rtol=1e-4)
    assert_same_outcome(out, reference)


def test_two_killed_processes_with_a_sharded_model_resume_to_the_same_outcome(
    mini, model, tmp_path
):
    sizes = "--batch-size", "12", "--epochs", "3", "--checkpoint-minutes", "0"
    reference = alone(mini, model, tmp_path / "alone", *sizes)
    out = tmp_path / "run"
    done, _ = launch(mini, model, out, *sizes, KILL_AFTER="step-00000006", **FSDP)
    assert done.returncode != 0
    assert not (out / "results.json").exists()
    together(mini, model, out, "--resume", *sizes, kind="FSDP", **FSDP)
    assert_same_training(out, reference, rtol=1e-4)
    assert_same_outcome(out, reference)
