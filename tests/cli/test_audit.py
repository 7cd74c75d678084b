"""`kexue audit` on the command line."""

import json
import subprocess
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

from kexue.analysis.subject import load_subject
from kexue.cli.audit import audit

RUN = CliRunner()
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def app():
    app = typer.Typer()
    app.command()(audit)
    return app


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tokenizer):
    """A folder with a masked language model and its tokenizer."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    BertForMaskedLM(BertConfig(**SIZES, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a causal model without a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=100)).save_pretrained(folder)
    return folder


def run(app, *arguments):
    return RUN.invoke(app, [str(one) for one in arguments])


def refused(result, words):
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_the_built_in_model_is_audited_with_findings_before_the_table(app):
    result = run(app, "tiny")
    assert result.exit_code == 0, result.output
    assert "post-norm, 2 blocks" in result.stdout
    assert 0 < result.stdout.index("far below LeCun") < result.stdout.index("/ LeCun  ")


def test_a_masked_model_is_read_with_its_own_loss_and_text(app, bert, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("今天天气很好，我们去公园散步。" * 40, encoding="utf-8")
    result = run(app, bert, "--text", text, "--json", "--out", tmp_path / "new" / "page.html")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["about"]["loss"] == "masked-token cross-entropy"
    assert found["about"]["text"] == "the given text"
    assert found["about"]["tokens"] == "4 × 62"
    assert found["path"]["norm"] == "post"
    assert found["fresh"] is True
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert found["report"].endswith("page.html")


def test_a_causal_model_without_a_tokenizer_reads_random_tokens(app, llama):
    found = json.loads(run(app, llama, "--json").stdout)
    assert found["about"]["loss"] == "next-token cross-entropy"
    assert found["about"]["text"] == "random tokens"
    assert found["path"]["norm"] == "pre"
    assert found["gradients"]["loss"] == pytest.approx(4.6, abs=0.3)  # log 100


def test_the_same_seed_gives_the_same_json_and_another_another(app, llama):
    first, again, other = (run(app, llama, "--json", "--seed", s).stdout for s in (0, 0, 1))
    assert first == again != other


def test_fresh_weights_come_from_the_config_alone(app, bert, tmp_path):
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    refused(run(app, tmp_path), "no weights here (*.safetensors); give --init")
    found = json.loads(run(app, tmp_path, "--init", "--json").stdout)
    assert found["fresh"] is True
    assert "fresh weights" in found["about"]["weights"]


def test_an_encoder_decoder_shows_its_encoder(app, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=100)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    found = json.loads(run(app, tmp_path, "--json").stdout)
    assert len(found["gradients"]["blocks"]) == 2
    assert found["path"]["norm"] == "pre"


def test_pickled_weights_are_never_opened(app, bert, tmp_path):
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refused(run(app, tmp_path), "only pickled weights here (pytorch_model.bin)")
    assert run(app, tmp_path, "--init").exit_code == 0


def test_weights_of_another_model_are_refused(app, bert, llama, tmp_path):
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    refused(run(app, tmp_path), "of the encoder's parameters are in the checkpoint")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny", "--what", "gremlins"], "--what 'gremlins' is not known; choose from: scales"),
        (["./nowhere"], "no such folder"),
        (["tiny", "--text", "nowhere.txt"], "--text nowhere.txt is not a file"),
    ],
)
def test_what_cannot_be_done_is_one_line(app, arguments, words):
    refused(run(app, *arguments), words)


def test_an_empty_folder_a_bad_config_and_a_picture_model_are_refused(app, tmp_path):
    refused(run(app, tmp_path), "no config.json here; the folder holds nothing")
    (tmp_path / "config.json").write_text("{")
    refused(run(app, tmp_path), "config not read")
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    refused(run(app, tmp_path, "--init"), "has no vocab_size, so it reads no text")


def test_code_of_a_model_folder_is_never_run_nor_offered(app, bert, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail("asked the user"))
    config = json.loads((bert / "config.json").read_text())
    config |= {
        "model_type": "custom",
        "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Net"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for options in ((), ("--init",)):
        refused(run(app, tmp_path, *options), "config not read")
    assert not (tmp_path / "ran").exists()


def test_a_page_that_cannot_be_written_is_refused_before_the_audit(app, tmp_path, monkeypatch):
    monkeypatch.setattr("kexue.analysis.subject.load_subject", lambda *a, **k: pytest.fail("ran"))
    refused(run(app, "tiny", "--out", tmp_path), "is a folder; name a file in it")
    (tmp_path / "file").touch()
    refused(run(app, "tiny", "--out", tmp_path / "file" / "x.html"), "is a file, not a folder")


def test_numbers_stay_whole_on_a_narrow_screen(app, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(app, "tiny").stdout.splitlines()
    heading = next(line for line in lines if line.startswith("module"))
    assert heading.split() == ["module", "×", "std", "/", "LeCun", "E[output²]", "gradient"]


def test_texts_that_cannot_be_read_are_refused(app, llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" \n")
    refused(run(app, "tiny", "--text", text), "the text is empty")
    text.write_bytes(b"\xff\xfe\xff")
    refused(run(app, "tiny", "--text", text), "not a text in UTF-8")
    text.write_text("words")
    refused(run(app, llama, "--text", text), "no tokenizer in the folder")


def test_a_short_text_is_repeated_until_it_fills_the_batch(bert):
    subject = load_subject(bert, text="短")
    assert tuple(subject.batch["input_ids"].shape) == (4, 62)
    hidden = subject.batch["labels"] != -100
    assert 0.05 < hidden.float().mean() < 0.3
    assert bool((subject.batch["input_ids"][hidden] == 5).all())  # [MASK]


def test_loading_leaves_the_random_numbers_alone():
    state = torch.get_rng_state()
    load_subject("tiny", seed=3)
    assert torch.equal(state, torch.get_rng_state())


def test_help_shows_an_example_and_the_choices(app):
    shown = run(app, "--help")
    assert shown.exit_code == 0
    assert "Example: kexue audit tiny --what scales" in shown.stdout


def test_asking_for_the_command_does_not_import_torch():
    code = "import sys, kexue.cli.audit; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
