"""The output layer that is found is the one that orders the model's logits, wherever it lies."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from families.language_models import WORDS, logits, save, tiny
from kexue.analysis.unargmaxable.layouts import LAYOUTS
from kexue.analysis.unargmaxable.model_head import find_head, head_of_model
from kexue.analysis.unargmaxable.stored_head import head_of_folder
from kexue.analysis.unargmaxable.token_names import readable, token_kinds, token_names
from kexue.analysis.unargmaxable.words import audit_model, audit_words, feature_sizes
from kexue.models.language_model import LanguageModel, LanguageModelConfig, save_language_model
from kexue.models.loading import CheckpointError

INNER, FIRST, SECOND = 7, 5, 6
PLANTED = ["gpt2", "bert", "roberta", "llama", "t5", "bart", "marian", "gemma2", "gptj"]


def bias_of(model):
    if hasattr(model, "final_logits_bias"):
        return model.final_logits_bias[0]
    return getattr(model.get_output_embeddings(), "bias", None)


def planted(family, **changes):
    """A model with one word in the middle of all others and two words of the same row."""
    model = tiny(family, **changes)
    weight, bias = model.get_output_embeddings().weight, bias_of(model)
    others = [k for k in range(WORDS) if k != INNER]
    with torch.no_grad():
        weight[SECOND] = weight[FIRST]
        weight[INNER] = weight[others].mean(dim=0)
        if bias is not None:
            bias[SECOND] = bias[FIRST]
            bias[INNER] = bias[others].mean() - 0.1
    return model


def write(path, tensors):
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


@pytest.mark.parametrize("family", PLANTED)
def test_exactly_the_planted_words_are_found_and_the_model_never_ranks_the_hidden_one_first(
    family, tmp_path
):
    model = planted(family)
    for source in (model, save(model, tmp_path)):
        found = audit_words(source)
        assert found.hidden.tolist() == [INNER]
        assert found.ties == [[FIRST, SECOND]]
        assert not len(found.undecided)
        assert found.verdict(FIRST) == "tied"
        assert found.verdict(INNER) == "never wins"
    shown = logits(model)
    assert not bool((shown.argmax(dim=-1) == INNER).any())
    chance = shown.double().softmax(dim=-1)[:, INNER].max()
    assert 0 < float(chance) <= found.report.bound[INNER]


@pytest.mark.parametrize("family", ["bert", "roberta", "bart", "marian", "gptj"])
def test_a_bias_brings_the_word_in_the_middle_back(family, tmp_path):
    model = planted(family)
    with torch.no_grad():
        bias_of(model)[INNER] += 50.0
    for source in (model, save(model, tmp_path)):
        assert not len(audit_words(source).hidden)
    assert bool((logits(model).argmax(dim=-1) == INNER).any())


@pytest.mark.parametrize("family", sorted(LAYOUTS))
def test_a_folder_of_any_known_family_gives_what_its_model_computes_with(family, tmp_path):
    model = tiny(family)
    live, stored = head_of_model(model), head_of_folder(save(model, tmp_path))
    assert "not compared" not in live.weight_name
    assert torch.equal(live.weight, stored.weight)
    assert (live.bias is None) == (stored.bias is None) == (bias_of(model) is None)
    if live.bias is not None:
        assert torch.equal(live.bias, stored.bias)
    assert live.norm is not None
    assert live.norm.kind == stored.norm.kind
    assert live.norm.scale == pytest.approx(stored.norm.scale, rel=1e-5)
    torch.testing.assert_close(live.norm.gamma.double(), stored.norm.gamma.double())
    assert (live.norm.beta is None) == (stored.norm.beta is None)
    if live.norm.beta is not None:
        assert torch.equal(live.norm.beta, stored.norm.beta)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "t5", "bart", "gemma"])
def test_features_of_real_inputs_lie_in_the_box_of_the_norm(family):
    model = tiny(family)
    head = head_of_model(model)
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    logits(model)
    hook.remove()
    lower, upper = head.norm.box
    features = seen[0].double()
    assert bool(((features >= lower - 1e-5) & (features <= upper + 1e-5)).all())
    sizes = features.norm(dim=-1)
    assert 0.5 < float(sizes.mean()) / head.norm.typical < 2


def test_a_known_folder_is_read_without_building_the_model(tmp_path, monkeypatch):
    save(planted("bert"), tmp_path)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    monkeypatch.setattr("torch.load", None)
    assert audit_words(tmp_path).hidden.tolist() == [INNER]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_of_a_folder_in_shards_only_those_with_the_output_layer_are_opened(family, tmp_path):
    model = planted(family)
    save(model, tmp_path, max_shard_size="3KB")
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(places.values())) > 4
    tied = family == "gpt2"
    kept = ["transformer.wte.weight"] if tied else ["lm_head.weight"]
    kept += ["transformer.ln_f.weight", "transformer.ln_f.bias"] if tied else ["model.norm.weight"]
    for name in set(places.values()) - {places[one] for one in kept}:
        (tmp_path / name).unlink()
    found = audit_words(tmp_path)
    assert found.hidden.tolist() == [INNER]
    assert torch.equal(found.head.weight, model.get_output_embeddings().weight)
    assert found.head.norm is not None
    (tmp_path / places[kept[0]]).unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        find_head(tmp_path)


def test_an_index_that_points_out_of_its_folder_is_not_followed(tmp_path):
    outside = tmp_path / "outside.safetensors"
    write(outside, {"lm_head.weight": torch.randn(9, 4)})
    folder = tmp_path / "model"
    save(tiny("llama"), folder)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model/outside.safetensors: no such file"):
        find_head(folder)


@pytest.mark.parametrize("family", ["stablelm", "cohere", "xglm"])
def test_an_unknown_family_goes_through_transformers(family, tmp_path):
    assert family not in LAYOUTS
    model = planted(family)
    found = audit_words(save(model, tmp_path))
    assert found.hidden.tolist() == [INNER]
    assert found.ties == [[FIRST, SECOND]]
    assert found.head.norm.kind == "layer"
    assert "not compared" not in found.head.weight_name


def test_a_projection_after_the_norm_leaves_the_norm_unknown(tmp_path):
    model = tiny("opt", word_embed_proj_dim=8, do_layer_norm_before=True)
    assert head_of_model(model).norm is None
    assert find_head(save(model, tmp_path)).norm is None
    with pytest.raises(ValueError, match="normalisation before the output layer is not known"):
        audit_words(tmp_path, box="norm")


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_half_precision_weights_are_read_and_compared(tmp_path, shift):
    model = planted("llama")
    with torch.no_grad():
        model.lm_head.weight[:, 0] += shift  # the same for all words, and much to round
    model = model.to(torch.bfloat16)
    live, stored = head_of_model(model), find_head(save(model, tmp_path))
    assert live.weight.dtype == stored.weight.dtype == torch.bfloat16
    assert torch.equal(live.weight, stored.weight)
    assert live.norm.kind == "rms"


def test_an_untied_head_in_the_file_counts_more_than_the_embeddings(tmp_path):
    save(tiny("gpt2"), tmp_path)
    file = tmp_path / "model.safetensors"
    own = torch.randn(WORDS, 16)
    write(file, load_file(file) | {"lm_head.weight": own})
    assert torch.equal(find_head(tmp_path).weight, own)


def test_a_t5_of_its_own_output_layer_does_not_scale_its_features(tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    save(tiny("t5"), tmp_path)
    file = tmp_path / "model.safetensors"
    write(file, load_file(file) | {"lm_head.weight": torch.randn(WORDS, 16)})
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("scale_decoder_outputs", None)
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    live = head_of_model(AutoModelForSeq2SeqLM.from_pretrained(tmp_path))
    stored = find_head(tmp_path)
    assert torch.equal(live.weight, stored.weight)
    assert live.norm.scale == stored.norm.scale == 1.0


def test_old_names_without_prefix_and_with_gamma_and_beta_are_known(tmp_path):
    model = tiny("bert")
    save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in load_file(file).items()
    }
    write(file, old)
    norm = find_head(tmp_path).norm
    assert torch.equal(norm.beta, model.cls.predictions.transform.LayerNorm.bias)
    gpt2 = tiny("gpt2")
    save(gpt2, tmp_path / "gpt2")
    file = tmp_path / "gpt2" / "model.safetensors"
    bare = {name.removeprefix("transformer."): value for name, value in load_file(file).items()}
    write(file, bare)
    found = find_head(tmp_path / "gpt2")
    assert torch.equal(found.weight, gpt2.lm_head.weight)
    assert found.norm is not None


def test_the_language_model_of_the_house_is_read_from_memory_and_folder(tmp_path, tokenizer):
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(vocabulary_size=WORDS, d_model=8, depth=1))
    with torch.no_grad():
        model.norm.weight.normal_()
        model.embedding.weight[INNER] = model.embedding.weight[: INNER - 1].mean(dim=0)
    save_language_model(tmp_path, model, tokenizer)
    live, stored = find_head(model), find_head(tmp_path)
    assert torch.equal(live.weight, stored.weight)
    assert torch.equal(live.norm.gamma, stored.norm.gamma)
    assert torch.equal(live.norm.beta, stored.norm.beta)
    found = audit_words(tmp_path)
    assert INNER in found.hidden.tolist()
    shown = model(torch.randint(WORDS, (50, 20))).argmax(dim=-1)
    assert not np.isin(shown.numpy(), found.hidden).any()


def test_a_model_whose_logits_are_not_ordered_as_its_output_layer_says_is_refused():
    class Bent(type(tiny("gpt2"))):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + torch.linspace(-3, 3, WORDS)
            return output

    model = tiny("gpt2")
    head_of_model(model)
    model.__class__ = Bent
    with pytest.raises(CheckpointError, match="not ordered as W z \\+ b"):
        head_of_model(model)


def test_looking_at_a_model_leaves_it_as_it_was():
    model = tiny("gpt2").train()
    state = torch.get_rng_state()
    head_of_model(model)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(value.grad is None for value in model.parameters())


def test_checkpoints_without_an_output_layer_are_refused(tmp_path):
    bert = tiny("bert")
    with pytest.raises(CheckpointError, match="BertModel has no output layer over words"):
        find_head(bert.bert)
    save(bert.bert, tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="holds a BertModel, which has no output layer"):
        find_head(tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"lacks its output layer \(cls.predictions"):
        find_head(tmp_path / "encoder")
    llama = tiny("llama")
    save(llama.model, tmp_path / "llama")
    with pytest.raises(CheckpointError, match="holds a LlamaModel"):
        find_head(tmp_path / "llama")
    with pytest.raises(CheckpointError, match="tiny is an encoder without an output layer"):
        find_head("tiny")


def test_missing_and_broken_pieces_are_named(tmp_path):
    def refused(source, words):
        with pytest.raises(CheckpointError, match=words):
            find_head(source)

    refused(tmp_path, "no config.json here; the folder holds nothing")
    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path / "nowhere.safetensors", "nowhere.safetensors: no such file")
    save(tiny("llama"), tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(tmp_path, "no safetensors file")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refused(tmp_path, "pickled weights are never opened")
    refused(tmp_path / "pytorch_model.bin", "may be pickled and are never opened")
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    refused(tmp_path, "an object is needed, got list")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    refused(tmp_path, "no weight_map in it")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "config not read")


def test_a_hub_name_offline_is_one_error_with_a_way_out():
    with pytest.raises(CheckpointError, match="give a local folder, or set HF_ENDPOINT"):
        find_head("kexue-nobody/nothing")


def test_a_bare_file_gives_its_matrix_and_the_bias_beside_it(tmp_path):
    file = tmp_path / "head.safetensors"
    weight, bias = torch.randn(12, 3), torch.randn(12)
    write(file, {"out.weight": weight, "out.bias": bias, "other": torch.randn(12)})
    found = find_head(str(file))
    assert torch.equal(found.weight, weight)
    assert torch.equal(found.bias, bias)
    assert find_head(f"{file}:out.weight:").bias is None
    assert find_head(f"{file}:out.weight:other").bias_name == "other"
    write(file, {"weight": weight, "bias": torch.randn(3)})  # of a layer before it
    assert find_head(file).bias is None


def test_a_bare_file_with_several_matrices_lists_them(tmp_path):
    file = tmp_path / "model.safetensors"
    write(file, {"a": torch.randn(4, 3), "b": torch.randn(5, 2), "c": torch.randn(4)})
    for source, words in (
        (f"{file}", "which matrix is the output layer.*a 4×3, b 5×2"),
        (f"{file}:x", "x is not in it; its matrices: a 4×3, b 5×2"),
        (f"{file}:c", r"c has shape \(4,\)"),
        (f"{file}:a:x", "x is not in it; vectors with one number per row of a: c"),
    ):
        with pytest.raises(CheckpointError, match=words):
            find_head(source)
    assert tuple(find_head(f"{file}:b").weight.shape) == (5, 2)


def test_quantised_weights_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    write(file, {"w": torch.ones(4, 3, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=r"w holds torch.int8, which is quantised"):
        find_head(file)


def test_a_linear_layer_is_an_output_layer():
    layer = nn.Linear(3, 9)
    found = head_of_model(layer)
    assert torch.equal(found.weight, layer.weight)
    assert torch.equal(found.bias, layer.bias)
    assert not found.weight.requires_grad


def box_layer():
    """Class 3 wins for z_1 > 10 alone; class 4 is the mean of 0, 1 and 2."""
    layer = nn.Linear(2, 5)
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0], [2.0, 0.0], [0.0, 0.0]])
    layer.weight.data, layer.bias.data = rows + 0.5, torch.tensor([0.0, 0.0, 0.0, -10.0, -1.0])
    return layer


def test_what_wins_outside_the_box_alone_is_unreachable_and_not_hidden():
    found = audit_words(box_layer(), box=5.0)
    assert found.hidden.tolist() == [4]
    assert found.unreachable.tolist() == [3]
    assert found.verdict(3) == "unreachable in the box"
    assert found.verdict(4) == "never wins"
    assert audit_words(box_layer(), box=20.0).unreachable.tolist() == []
    free = audit_words(box_layer())
    assert free.unreachable.tolist() == []
    assert free.verdict(3) == "can win"


def test_the_box_of_the_norm_shuts_out_what_needs_longer_features(tmp_path):
    model = tiny("bert")
    with torch.no_grad():
        model.cls.predictions.bias[3] = -1e4
    save(model, tmp_path)
    assert 3 not in audit_words(tmp_path).hidden
    found = audit_words(tmp_path, box="norm")
    assert 3 in found.unreachable
    assert 3 not in found.hidden
    with pytest.raises(ValueError, match='box must be "norm"'):
        audit_words(tmp_path, box="large")


def test_without_a_bias_the_box_of_an_rms_norm_takes_nothing_away():
    found = audit_words(planted("llama"), box="norm")
    assert found.hidden.tolist() == [INNER]
    assert not len(found.unreachable)
    assert float(np.nanmax(found.sizes)) <= float(found.head.norm.box[1].norm()) * (1 + 1e-9)


def test_a_box_where_all_rows_are_equal_decides_nothing_more():
    layer = nn.Linear(3, 4, bias=False)
    layer.weight.data.fill_(1.0)
    found = audit_words(layer, box=2.0)
    assert found.ties == [[0, 1, 2, 3]]
    assert not len(found.hidden)
    assert not len(found.unreachable)


def test_sizes_are_those_of_the_points_that_prove_the_wins():
    found = audit_words(tiny("bert"))
    sizes = feature_sizes(found.report)
    for k in found.report.argmaxable[:20].tolist():
        assert sizes[k] == pytest.approx(float(found.report.point(k).norm()), rel=1e-9)
    hidden = audit_words(planted("gpt2"))
    assert np.isnan(feature_sizes(hidden.report)[INNER])


def test_names_come_from_the_tokenizer_and_rows_above_it_are_padding(tmp_path, tokenizer):
    size = len(tokenizer)
    rows = torch.randn(size + 3, 4, generator=torch.Generator().manual_seed(0))
    rows[size:] = rows[size]
    rows[1] = 0.0
    write(tmp_path / "head.safetensors", {"weight": rows})
    tokenizer.save_pretrained(tmp_path)
    found = audit_words(tmp_path / "head.safetensors", method="probe")
    assert found.token(5) == "[MASK]"
    assert found.kind(1) == "unused"
    assert found.kind(5) == "special"
    assert found.kind(size) == "padding"
    assert found.padding.tolist() == [size, size + 1, size + 2]
    assert found.empty.tolist() == [1]
    assert found.ties == []
    assert found.token(size + 2) == f"(none {size + 2})"


def test_a_tokenizer_that_cannot_be_read_costs_the_names_alone(tmp_path):
    save(planted("gpt2"), tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    found = audit_words(tmp_path)
    assert found.hidden.tolist() == [INNER]
    assert found.tokens is None
    assert "tokenizer not loaded" in found.note


def test_byte_level_tokens_are_shown_as_text(tokenizer):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    byte = Tokenizer(models.BPE())
    byte.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte.train_from_iterator(
        ["the 明月 the 明月 \n\n"] * 9,
        trainers.BpeTrainer(special_tokens=["<|end|>", "<|unused_1|>"], initial_alphabet=alphabet),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=byte, eos_token="<|end|>")
    names = token_names(fast, len(fast) + 1)
    assert names[0] == "<|end|>"
    assert {"the", "␣明月", "\\n\\n", "<E6>", "A"} <= set(names)
    assert names[-1].startswith("(none ")
    kinds = token_kinds(fast, len(fast) + 1)
    assert kinds[:2] == ["special", "unused"]
    assert kinds[-1] == "padding"
    assert token_names(tokenizer, 3) == ["[PAD]", "[unused1]", "[UNK]"]


def test_no_token_can_turn_or_break_a_line():
    shown = readable("a\u202eb\u200b\x1b[31m\r\n\u2028 \x00")
    assert shown == "a\\u202eb\\u200b\\u001b[31m\\r\\n\\u2028␣\\u0000"
    assert shown.isprintable()
    assert readable("") == "(empty)"


def test_both_names_are_one_function():
    assert audit_model is audit_words


def test_a_stopped_audit_goes_on_from_its_files(tmp_path):
    model, file = planted("bert"), tmp_path / "state.safetensors"
    first = audit_words(model, box="norm", resume=file)
    assert file.exists()
    assert Path(f"{file}.box").exists()
    told = []
    again = audit_words(model, box="norm", resume=file, progress=lambda *step: told.append(step))
    assert not told
    assert np.array_equal(first.report.verdict, again.report.verdict)
    assert np.array_equal(first.boxed.margin, again.boxed.margin, equal_nan=True)
    assert np.array_equal(first.sizes, again.sizes, equal_nan=True)


def test_progress_names_the_stage_and_whether_it_is_in_the_box():
    told = []
    audit_words(planted("bert"), box="norm", progress=lambda *step: told.append(step))
    stages = {stage for stage, _, _ in told}
    assert {"probe", "probe in the box"} <= stages
    assert all(0 < done <= whole for _, done, whole in told)
