"""From texts to a table: every layer learns, what is saved is what is scored, runs go on."""

import json
import math
from pathlib import Path

import pytest
import torch

from kexue.models.language_model import load_language_model
from kexue.models.loading import load_tokenizer
from kexue.tasks.pretrain import PretrainSettings, Texts, run_pretraining
from kexue.tasks.pretrain.rows import split_rows
from kexue.tasks.pretrain.run import score_texts
from kexue.training.processes import make_accelerator
from kexue.training.settings import FitSettings

OPTIONS = {
    "gau": {"key_size": 32},
    "flash": {"key_size": 32, "chunk_size": 16},
    "performer": {"num_features": 32, "seed": 0},
    "vq": {"num_codes": 16, "head_dim": 32, "block": 16},
}


def settings(*layers, epochs=1, **options):
    loop = FitSettings(epochs=epochs, batch_size=4, learning_rate=1e-2, precision="fp32")
    given = {"d_model": 32, "depth": 1, "length": 64, "tokens": 16_000, "options": OPTIONS}
    return PretrainSettings(layers=layers, fit=loop, **(given | options))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run over all layers, and what it returned."""
    out = tmp_path_factory.mktemp("pretrain") / "run"
    every = settings("attention", "gau", "flash", "performer", "vq", prompt="图书馆")
    return out, run_pretraining("mini", every, out, quiet=True, command="kexue pretrain")


def test_every_layer_learns_more_than_how_often_characters_occur(finished):
    _, results = finished
    texts = "".join(Texts("mini").read("train"))
    counts = [texts.count(c) for c in set(texts)]
    unigram = -sum(n / len(texts) * math.log(n / len(texts)) for n in counts)
    for result in results:
        assert result["scores"]["loss"] < unigram, result["layer"]
        assert result["scores"]["perplexity"] == pytest.approx(math.exp(result["scores"]["loss"]))
        assert result["tokens_per_second"] > 0


def test_all_layers_saw_the_same_budget(finished):
    _, results = finished
    assert len({(r["train_tokens"], r["dev_tokens"], r["epochs"]) for r in results}) == 1
    assert results[0]["train_tokens"] == 16_000


def test_the_printed_score_is_that_of_the_saved_model(finished):
    out, results = finished
    for result in results:
        best = out / result["folder"] / "best"
        tokenizer, model = load_tokenizer(best), load_language_model(best)
        dev = split_rows(Texts("mini"), "dev", tokenizer, 64)
        accelerator = make_accelerator(FitSettings())
        again = score_texts(model, dev, 8192, accelerator)
        assert again == pytest.approx(result["scores"])


def test_a_score_is_the_mean_over_tokens_of_the_plain_formula(finished):
    out, results = finished
    best = out / "gau" / "best"
    dev = split_rows(Texts("mini"), "dev", load_tokenizer(best), 64)
    ids = torch.tensor([row["input_ids"] for row in dev.rows(list(range(len(dev))))])
    with torch.no_grad():
        p = load_language_model(best)(ids[:, :-1]).log_softmax(-1)
    wanted = -p.gather(2, ids[:, 1:, None]).mean().item()
    assert results[1]["scores"]["loss"] == pytest.approx(wanted, rel=1e-5)


def test_the_samples_continue_the_prompt(finished):
    _, results = finished
    for result in results:
        assert result["sample"].startswith("图书馆")
        assert len(result["sample"]) > 40


def test_the_report_shows_every_layer_and_needs_nothing_else(finished):
    out, results = finished
    page = (out / "report.html").read_text(encoding="utf-8")
    for result in results:
        assert f"{result['scores']['loss']:.4f}" in page
        assert f"{result['parameters']:,}" in page
    assert page.count("<svg") == 2
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "mini texts come from a small grammar" in page


def test_the_same_seed_gives_the_same_numbers(finished, tmp_path):
    _, results = finished
    again = run_pretraining("mini", settings("flash"), tmp_path / "run", quiet=True)
    assert again[0]["scores"] == results[2]["scores"]


def test_a_run_goes_on_with_the_layers_that_are_missing(tmp_path):
    out = tmp_path / "run"
    run_pretraining("mini", settings("attention"), out, quiet=True)
    config = json.loads((out / "config.json").read_text())
    config["settings"]["layers"] = ["attention", "gau"]
    (out / "config.json").write_text(json.dumps(config))
    kept = (out / "attention/best/model.safetensors").stat().st_mtime_ns
    results = run_pretraining("mini", settings("attention", "gau"), out, resume=True, quiet=True)
    assert [r["layer"] for r in results] == ["attention", "gau"]
    assert (out / "attention/best/model.safetensors").stat().st_mtime_ns == kept


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(tmp_path):
    out = tmp_path / "run"
    run_pretraining("mini", settings("attention"), out, quiet=True)
    with pytest.raises(ValueError, match="holds a run already; give --resume"):
        run_pretraining("mini", settings("gau"), out, quiet=True)
    with pytest.raises(ValueError, match=r"cannot resume.*layers"):
        run_pretraining("mini", settings("gau"), out, resume=True, quiet=True)
    run_pretraining("mini", settings("gau"), out, overwrite=True, quiet=True)
    assert not (out / "attention").exists()


def test_a_bad_option_is_told_before_anything_is_written(tmp_path):
    bad = settings("gau", "flash", options={"flash": {"chunk_size": 0}})
    with pytest.raises(ValueError, match="chunk"):
        run_pretraining("mini", bad, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_poems_of_a_folder_can_be_read():
    folder = Path(__file__).resolve().parents[4] / "shared/data/corpus_poems"
    if not folder.is_dir():
        pytest.skip(f"the poems are not at {folder}")
    first = next(Texts(folder).read("train"))
    assert first.startswith("湖上吟翁道味长")
    assert sum(1 for _ in Texts(folder).read("dev")) == 1000


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": ()}, "name at least one layer"),
        ({"layers": ("mamba",)}, "no layer is called 'mamba'"),
        ({"length": 0}, "length must be at least 1"),
        ({"tokens": 5}, "tokens must fill a row of 512"),
        ({"options": {"lstm": {}}}, "no layer is called 'lstm'"),
    ],
)
def test_settings_out_of_range_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        PretrainSettings(**options)
