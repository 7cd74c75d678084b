"""Optimizers by name and the settings that go with them."""

import pytest
import torch
from torch import nn

from kexue.optim import AdaFactor, AdaX, Lion, Tiger
from kexue.tasks.clue import make_task
from kexue.tasks.clue.settings import ClueSettings
from kexue.training.optimizers import make_optimizer
from kexue.training.recipes import (
    RECIPES,
    known_optimizers,
    optimizer_class,
    parse_option,
    recipe_of,
)
from kexue.training.settings import FitSettings


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(7, 4)
        self.dense = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


def built(name, **options):
    return make_optimizer(Network(), FitSettings(optimizer=name, options=options))


@pytest.mark.parametrize(
    ("name", "kind"), [("adafactor", AdaFactor), ("AdaX", AdaX), ("lion", Lion), ("Tiger", Tiger)]
)
def test_our_own_come_first_in_any_case_of_letters(name, kind):
    assert optimizer_class(name) is kind
    assert type(built(name)) is kind


def test_torchs_is_to_be_had_by_its_full_name_where_both_have_one():
    assert optimizer_class("torch.adafactor") is torch.optim.Adafactor
    assert optimizer_class("torch.AdamW") is optimizer_class("adamw") is torch.optim.AdamW


def test_every_recipe_belongs_to_an_optimizer_and_its_options_are_accepted():
    for name, recipe in RECIPES.items():
        assert name in known_optimizers()
        built(name, **recipe.options)
    assert recipe_of("nadam") is recipe_of("adamw")


def test_matrices_decay_and_vectors_do_not():
    for name in ("adamw", "lion", "adafactor"):
        settings = FitSettings(optimizer=name, weight_decay=0.3)
        decays = {
            p: group["weight_decay"]
            for group in make_optimizer(Network(), settings).param_groups
            for p in group["params"]
        }
        assert {p.ndim: decay for p, decay in decays.items()} == {2: 0.3, 1: 0.0}


def test_tiger_gets_the_kind_of_every_tensor():
    optimizer = make_optimizer(Network(), FitSettings(optimizer="tiger", weight_decay=0.3))
    kinds = {
        name: group["kind"]
        for group in optimizer.param_groups
        for name in group.get("param_names", [])
    }
    assert kinds == {
        "embeddings.weight": "embedding",
        "dense.weight": "matrix",
        "dense.bias": "bias",
        "norm.weight": "gain",
        "norm.bias": "shift",
    }
    decays = {g["kind"]: g["weight_decay"] for g in optimizer.param_groups}
    assert decays["matrix"] == decays["embedding"] == 0.3


def test_an_option_reaches_the_optimizer():
    assert built("lion", betas=(0.95, 0.98)).param_groups[0]["betas"] == (0.95, 0.98)
    assert built("sgd", momentum=0.9).defaults["momentum"] == 0.9


@pytest.mark.parametrize("option", ["momentun", "lr", "params", "weight_decay"])
def test_an_option_that_is_none_is_refused_with_those_that_are(option):
    with pytest.raises(ValueError, match=rf"lion has no option '{option}'; known: betas, maximize"):
        FitSettings(optimizer="lion", options={option: 1})


def test_an_option_of_the_wrong_kind_is_refused_by_the_name_of_its_optimizer():
    with pytest.raises(ValueError, match=r"lion does not take the options {'betas': 0.9}: "):
        FitSettings(optimizer="lion", options={"betas": 0.9})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiger", {"beta": "abc"}),
        ("tiger", {"beta": 2}),
        ("tiger", {"momentum_dtype": "bfloat16"}),
        ("adamw", {"foreach": True}),
        ("adamw", {"betas": (0.9,)}),
        ("lion", {"betas": (0.9,)}),
        ("adafactor", {"eps": 1e-30}),
        ("sgd", {"nesterov": True}),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_before_anything_is_written(name, options):
    with pytest.raises(
        ValueError, match=f"^{name} does not take the options {{'{next(iter(options))}"
    ):
        FitSettings(optimizer=name, options=options)


def test_what_torch_does_not_have_is_not_found_under_its_name():
    with pytest.raises(ValueError, match=r"no optimizer is called 'torch\.tiger'; known: adadelta"):
        optimizer_class("torch.tiger")


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("momentum=0.9", ("momentum", 0.9)),
        ("betas=[0.9, 0.99]", ("betas", (0.9, 0.99))),
        ("amsgrad=true", ("amsgrad", True)),
        ("factored_axes=last", ("factored_axes", "last")),
        ("name=a=b", ("name", "a=b")),
    ],
)
def test_an_option_is_read_as_json_where_it_can_be(text, pair):
    assert parse_option(text) == pair


def test_an_option_without_a_value_is_refused():
    with pytest.raises(ValueError, match="--option needs name=value, got 'betas'"):
        parse_option("betas")


TASK = make_task("tnews")


def test_clue_trains_with_the_authors_adafactor_unless_told_otherwise():
    found = ClueSettings(model="some/encoder").for_task(TASK, seed=0)
    assert (found.optimizer, found.learning_rate, found.schedule) == ("adafactor", 5e-4, "constant")
    assert (found.warmup, found.weight_decay, found.max_grad_norm) == (0.0, 0.0, None)
    group = make_optimizer(Network(), found).param_groups[0]
    assert group["beta1"] == 0.9
    assert group["scale_parameter"]
    assert tuple(group["eps"]) == (1e-30, 1e-3)
    assert group["clip_threshold"] == 1.0
    assert group["min_dim_size_to_factor"] >= 1_000_000


def test_what_is_given_goes_before_the_recipe():
    rates = {"learning_rate": 0.1, "schedule": "constant", "options": {"momentum": 0.5}}
    found = ClueSettings(optimizer="sgd", rates=rates).for_task(TASK, seed=3)
    assert (found.learning_rate, found.schedule, found.seed) == (0.1, "constant", 3)
    assert found.options == {"momentum": 0.5}
    assert found.warmup == recipe_of("sgd").warmup
