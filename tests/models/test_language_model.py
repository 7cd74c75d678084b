"""The small language model: equal budgets, causality, caches, files."""

import json

import pytest
import torch
from torch.nn import functional as F

from kexue.generation.sampling import sample
from kexue.models.language_model import (
    LAYERS,
    LanguageModel,
    LanguageModelConfig,
    load_language_model,
    save_language_model,
)
from kexue.models.loading import CheckpointError
from kexue.models.tiny import tiny_tokenizer

EVERY = pytest.mark.parametrize("layer", LAYERS)
SMALL = {
    "attention": {},
    "gau": {"key_size": 16},
    "flash": {"key_size": 16, "chunk_size": 4},
    "performer": {"num_features": 16, "chunk": 4, "seed": 0},
    "vq": {"num_codes": 8, "head_dim": 16, "block": 4},
}


def model_of(layer, **options):
    torch.manual_seed(0)
    config = LanguageModelConfig(40, layer, d_model=32, options=SMALL[layer], **options)
    model = LanguageModel(config).double()
    if layer == "vq":
        model.train()(torch.randint(40, (4, 16)))  # codebooks start from the keys they see
    return model.eval()


def ids_of(batch, length, seed=0):
    return torch.randint(40, (batch, length), generator=torch.Generator().manual_seed(seed))


@EVERY
def test_logits_of_earlier_tokens_do_not_depend_on_later_ones(layer):
    model, ids = model_of(layer), ids_of(2, 11)
    other = ids.clone()
    other[:, 7:] = (other[:, 7:] + 1) % 40
    before, after = model(ids), model(other)
    assert before.shape == (2, 11, 40)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=1e-9, atol=1e-11)
    assert (after[:, 7:] - before[:, 7:]).abs().max() > 1e-4


@EVERY
@torch.no_grad()
def test_drawing_with_the_cache_is_drawing_with_full_passes(layer):
    model, prompt = model_of(layer), ids_of(2, 5)
    drawn = sample(model, prompt, 9, temperature=0.0)
    ids = prompt
    for _ in range(9):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(drawn, ids[:, 5:])


@EVERY
def test_padding_on_the_right_changes_no_logits(layer):
    model, ids = model_of(layer), ids_of(2, 9)
    mask = torch.arange(9).expand(2, -1) < torch.tensor([[9], [6]])
    torch.testing.assert_close(model(ids, mask)[1:, :6], model(ids[1:, :6]), rtol=1e-9, atol=1e-11)


@EVERY
def test_a_few_steps_learn_a_cycle(layer):
    """After i comes i + 1 mod 8: every layer learns that, and the loss falls below a tenth."""
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(8, layer, d_model=32, options=SMALL[layer]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    ids = (torch.arange(17) + torch.arange(8)[:, None]) % 8
    first = last = 0.0
    for step in range(40):
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        first, last = (loss.item(), loss.item()) if step == 0 else (first, loss.item())
        optimizer.zero_grad()
        (loss + 1e-4 * model.auxiliary_loss()).backward()
        optimizer.step()
    assert last < 0.1 * first


def test_blocks_have_nearly_equal_budgets_at_a_usual_width():
    with torch.device("meta"):
        models = [
            LanguageModel(LanguageModelConfig(10, layer, d_model=768, depth=1)) for layer in LAYERS
        ]
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    assert max(sizes) < 1.1 * min(sizes)
    assert min(sizes) > 12 * 768**2


@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "vq"])
def test_only_quantising_layers_have_a_loss_of_their_own(layer):
    assert model_of(layer).auxiliary_loss() == 0


def test_the_commitment_of_quantised_keys_is_positive_and_moves_the_keys():
    model = model_of("vq").train()
    model(ids_of(2, 12))
    loss = model.auxiliary_loss()
    assert loss > 0
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@EVERY
def test_a_saved_model_is_the_same_model(layer, tmp_path):
    model, ids = model_of(layer).float(), ids_of(2, 9)
    save_language_model(tmp_path, model, tiny_tokenizer("甲乙丙"))
    loaded = load_language_model(tmp_path)
    assert not loaded.training
    assert torch.equal(loaded(ids), model(ids))
    assert not list(tmp_path.glob("*.bin"))


def test_a_damaged_folder_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"no language_model\.json here"):
        load_language_model(tmp_path)
    save_language_model(tmp_path, model_of("attention"), tiny_tokenizer("甲乙丙"))
    config = json.loads((tmp_path / "language_model.json").read_text())
    for change in ({"layer": "mamba"}, {"d_model": 64}, {"colour": 3}):
        (tmp_path / "language_model.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match="is no language model of kexue"):
            load_language_model(tmp_path)
    (tmp_path / "language_model.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(CheckpointError, match="is no language model of kexue"):
        load_language_model(tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layer": "mamba"}, "no layer is called 'mamba'; known: attention, gau"),
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1"),
    ],
)
def test_shapes_out_of_range_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        LanguageModelConfig(10, **options)
