"""Pretrained encoders are loaded strictly, from a folder without any network (asks #4 and #27)."""

import json
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForPreTraining, BertModel

from kexue.models.loading import CheckpointError, LoadTable, load_encoder, load_tokenizer
from kexue.models.text_model import TextModel
from kexue.models.tiny import tiny_tokenizer
from kexue.nn import SequenceHead

CONFIG = BertConfig(
    vocab_size=120,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=40,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return BertModel(CONFIG, add_pooling_layer=False).eval()


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


def change(folder, edit):
    """Edits the tensors of a saved checkpoint."""
    path = folder / "model.safetensors"
    tensors = dict(load_file(path))
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(source, size=120):
    with pytest.raises(CheckpointError) as caught:
        load_encoder(source, vocabulary_size=size)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(source))
    return str(caught.value)


IDS = torch.randint(1, 120, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 2 + [0] * 7])


# What is loaded


def test_the_hidden_states_are_bit_for_bit_those_of_transformers(model, folder):
    encoder, table = load_encoder(folder, vocabulary_size=120)
    encoder.eval()
    with torch.no_grad():
        ours = encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
        theirs = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    assert torch.equal(ours, theirs)
    assert (table.share, table.missing, table.mismatched, table.unexpected) == (1, (), (), ())


def test_the_logits_of_our_head_are_those_on_the_hidden_states_of_transformers(model, folder):
    encoder, _ = load_encoder(folder, vocabulary_size=120)
    head = SequenceHead(32, 5)
    with torch.no_grad():
        ours = TextModel(encoder, head).eval()(IDS, MASK)
        hidden = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    expected = hidden[:, 0] @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(ours, expected.detach(), rtol=0, atol=1e-6)


def test_weights_in_half_precision_are_loaded_as_float32(model, tmp_path):
    BertModel(CONFIG, add_pooling_layer=False).half().save_pretrained(tmp_path)
    encoder, _ = load_encoder(tmp_path, vocabulary_size=120)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_a_pretraining_checkpoint_loads_whole_and_its_heads_are_left_over(tmp_path):
    torch.manual_seed(0)
    pretrained = BertForPreTraining(CONFIG).eval()
    pretrained.save_pretrained(tmp_path)
    encoder, table = load_encoder(tmp_path, vocabulary_size=120)
    assert table.share == 1
    assert table.missing == ()
    assert any(name.startswith("cls.") for name in table.unexpected)
    assert any("pooler" in name for name in table.unexpected)
    assert encoder.pooler is None
    with torch.no_grad():
        ours = encoder.eval()(input_ids=IDS, attention_mask=MASK).last_hidden_state
        theirs = pretrained.bert(input_ids=IDS, attention_mask=MASK).last_hidden_state
    assert torch.equal(ours, theirs)


def test_a_larger_vocabulary_grows_the_table_and_keeps_the_rows(model, folder):
    encoder, _ = load_encoder(folder, vocabulary_size=123)
    rows = encoder.get_input_embeddings().weight
    assert rows.shape == (123, 32)
    assert torch.equal(rows[:120], model.get_input_embeddings().weight)


def test_a_smaller_vocabulary_leaves_the_table_as_it_is(folder):
    encoder, _ = load_encoder(folder, vocabulary_size=100)
    assert encoder.get_input_embeddings().num_embeddings == 120


# What does not fit


MISSING = "encoder.layer.1.output.LayerNorm.weight"


def test_a_missing_tensor_is_in_the_table(folder):
    change(folder, lambda t: t.pop(MISSING))
    _, table = load_encoder(folder, vocabulary_size=120)
    assert table.missing == (MISSING,)
    assert table.total - table.matched == 32
    assert f"missing       1  {MISSING}" in str(table)


def test_a_tensor_of_another_shape_is_in_the_table_with_both_shapes(folder):
    change(folder, lambda t: t.update({MISSING: torch.ones(31)}))
    _, table = load_encoder(folder, vocabulary_size=120)
    assert table.missing == ()
    assert table.mismatched == (f"{MISSING}: checkpoint [31], model [32]",)
    assert table.total - table.matched == 32


def test_an_extra_tensor_is_in_the_table_and_costs_nothing(folder):
    change(folder, lambda t: t.update({"encoder.extra.weight": torch.ones(3)}))
    _, table = load_encoder(folder, vocabulary_size=120)
    assert table.unexpected == ("encoder.extra.weight",)
    assert table.share == 1


def test_less_than_95_percent_is_refused_with_the_names(folder):
    def drop(tensors):
        for name in [n for n in tensors if "layer.1." in n]:
            del tensors[name]

    change(folder, drop)
    message = refused(folder)
    assert "of the encoder's parameters are in the checkpoint, 95% are needed" in message
    assert "missing 16 (e.g. encoder.layer.1." in message


def test_weights_of_another_architecture_are_refused(folder):
    change(folder, lambda t: [t.update({f"other.{n}": t.pop(n)}) for n in list(t)])
    message = refused(folder)
    assert "only 0.0% of the encoder's parameters" in message
    assert "unexpected" in message


def test_a_config_of_another_width_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    message = refused(folder)
    assert "does config.json belong to these weights?" in message
    assert "embeddings.LayerNorm.bias: checkpoint [32], model [64]" in message


@pytest.mark.parametrize(("matched", "accepted"), [(95, True), (94, False)])
def test_the_border_is_95_percent(matched, accepted):
    table = LoadTable("here", matched, 100)
    if accepted:
        table.require()
    else:
        with pytest.raises(CheckpointError, match=r"only 94\.0% of the encoder's parameters"):
            table.require()


# Folders


def test_a_path_that_does_not_exist_is_refused_before_any_network(tmp_path):
    message = refused(tmp_path / "nowhere")
    assert message.endswith("no such folder; give tiny, a model folder or a hub name")
    with pytest.raises(CheckpointError, match="no such folder"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_folder_without_config_is_refused_with_what_it_holds(folder):
    (folder / "config.json").unlink()
    assert "no config.json here; the folder holds model.safetensors" in refused(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "weights not loaded: " in refused(folder)


def test_a_torn_checkpoint_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "weights not loaded: " in refused(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "no-such-model"}', "{}"])
def test_a_config_that_is_none_is_refused(content, folder):
    (folder / "config.json").write_text(content)
    assert "weights not loaded: " in refused(folder)


def test_a_pickled_checkpoint_that_runs_code_is_never_run(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Evil()}, folder / "pytorch_model.bin")
    assert "untrusted code is never run; get the model in safetensors form" in refused(folder)
    assert not (tmp_path / "owned").exists()


def test_an_encoder_decoder_is_refused(tmp_path):
    from transformers import BartConfig, BartModel

    BartModel(
        BartConfig(
            vocab_size=50,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=20,
        )
    ).save_pretrained(tmp_path)
    assert "bart is an encoder-decoder; an encoder is needed" in refused(tmp_path, 50)


def test_a_folder_without_tokenizer_is_refused_with_what_was_looked_for(folder):
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder)
    assert str(caught.value).startswith(f"{folder}: no tokenizer here (looked for tokenizer.json")
    assert "\n" not in str(caught.value)


def test_a_vocabulary_file_alone_is_enough_for_bert(folder):
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "中", "文", "a", "##b"]
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", "utf-8")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.tokenize("中文AB") == ["中", "文", "a", "##b"]
    assert tokenizer.backend_tokenizer is not None


# Network


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError(f"a connection was tried: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("offline", [True, False])
def test_a_local_folder_opens_no_connection(offline, model, tmp_path, no_network, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    load_tokenizer(tmp_path)
    encoder, table = load_encoder(tmp_path, vocabulary_size=130)
    assert table.share == 1
    assert encoder.get_input_embeddings().num_embeddings == 130


def test_a_vocabulary_of_another_checkpoint_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has 21429 entries, the checkpoint embeds only 120"):
        load_encoder(tmp_path, vocabulary_size=21429)


def test_a_checkpoint_without_a_layer_is_refused_however_large_its_embeddings(tmp_path):
    sizes = {"vocab_size": 5000, "hidden_size": 16, "num_attention_heads": 2}
    small = BertModel(BertConfig(**sizes, num_hidden_layers=1, intermediate_size=32))
    small.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"only 3\d\.\d% of the encoder's parameters"):
        load_encoder(tmp_path, vocabulary_size=5000)


def test_a_model_that_reads_from_left_to_right_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="gpt2 reads from left to right only"):
        load_encoder(tmp_path, vocabulary_size=50)


def test_a_pointer_left_by_git_lfs_is_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="a Git LFS pointer, not the file: git lfs pull"):
        load_encoder(tmp_path, vocabulary_size=120)


def test_tiny_opens_no_connection(no_network):
    load_encoder("tiny", vocabulary_size=len(load_tokenizer("tiny")))


def test_offline_a_hub_name_is_refused_in_one_line_without_a_connection(no_network):
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer("hfl/chinese-roberta-wwm-ext")
    assert "\n" not in str(caught.value)
    assert "hfl/chinese-roberta-wwm-ext: tokenizer not loaded" in str(caught.value)
    assert "hfl/chinese-roberta-wwm-ext: weights not loaded" in refused(
        "hfl/chinese-roberta-wwm-ext"
    )


def test_code_that_a_folder_brings_along_is_never_run(tmp_path, monkeypatch):
    """A config may name Python files of its own; neither a question nor the code is run."""
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w').write('yes')\nclass Own: pass\n")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"})
    )
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    with pytest.raises(CheckpointError):
        load_encoder(tmp_path, vocabulary_size=1)
    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path)
    assert not ran.exists()
