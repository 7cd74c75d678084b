"""S02 in the lab: few labels, with and without iterating."""

from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from kexue.lab import Verdict, s02_closed_form
from kexue.lab.s02_closed_form import METHODS, gain, scores_of, trained, verdict, won


def table(**levels):
    """Scores of three seeds at two numbers of labels; a method not named has 50 percent."""
    shift = np.array([-0.1, 0.0, 0.1])
    names = {name.replace(" ", "_").replace(",", ""): name for name in METHODS}
    assert set(levels) <= set(names)
    return {
        size: {name: levels.get(key, [50, 50])[k] + shift for key, name in names.items()}
        for k, size in enumerate((30, 60))
    }


def test_the_verdict_follows_the_numbers():
    behind = {"Adam_as_published": [40, 40], "Adam_200_epochs": [40, 40]}
    assert verdict(table(closed_form=[60, 60], **behind)) is Verdict.HOLDS
    trained_on = behind | {"Adam_200_epochs": [40, 70]}
    assert verdict(table(closed_form=[60, 60], **trained_on)) is Verdict.PARTLY
    assert verdict(table(closed_form=[60, 30], **behind)) is Verdict.PARTLY
    assert verdict(table(closed_form=[30, 30], **behind)) is Verdict.FAILS
    assert verdict(table()) is Verdict.FAILS  # a tie is no win
    assert won(table(closed_form=[60, 30]), "closed form", "ridge") == [30]


def test_a_gain_is_the_paired_difference_with_its_error():
    assert gain(np.array([3.0, 4, 5]), np.array([1.0, 1, 1])) == pytest.approx((3, 3**-0.5))


def test_layers_side_by_side_learn_what_one_layer_learns_alone():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 40, 6, generator=g)
    y = (x @ torch.randn(6, 10, generator=g)).argmax(dim=2)
    weight, bias = trained(x, y, epochs=3, seed=5)
    same = torch.Generator().manual_seed(5)
    start = [(2 * torch.rand(2, wide, 10, generator=same) - 1) * 6**-0.5 for wide in (6, 1)]
    batches = [torch.rand(2, 40, generator=same).argsort(dim=1) for _ in range(3)]
    for one in range(2):
        layer = nn.Linear(6, 10)
        layer.weight.data, layer.bias.data = start[0][one].T.contiguous(), start[1][one, 0]
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        for order in batches:
            for rows in order[one].split(32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(layer(x[one, rows]), y[one, rows]).backward()
                optimizer.step()
        torch.testing.assert_close(layer.weight.T, weight[one], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(layer.bias, bias[one, 0], rtol=1e-3, atol=1e-5)


def test_scores_are_reproducible_and_peak_in_error_near_the_number_of_features(monkeypatch):
    monkeypatch.setattr(s02_closed_form, "LONG", 2)
    few, again, many = scores_of(60, seeds=3), scores_of(60, seeds=3), scores_of(250, seeds=3)
    for name in METHODS:
        assert few[name].shape == (3,)
        assert (few[name] == again[name]).all()
        assert ((few[name] > 0) & (few[name] < 100)).all()
    assert few["closed form"].mean() < few["shrinkage OAS"].mean() - 20
    assert many["closed form"].mean() > 85


def test_the_experiment_draws_a_well_formed_picture(monkeypatch):
    monkeypatch.setattr(s02_closed_form, "SIZES", (30, 120))
    monkeypatch.setattr(s02_closed_form, "SEEDS", 2)
    monkeypatch.setattr(s02_closed_form, "LONG", 20)
    monkeypatch.setattr(s02_closed_form.scores_of, "__kwdefaults__", {"seed": 0, "seeds": 2})
    finding = s02_closed_form.EXPERIMENT.run()
    ElementTree.fromstring(f"<page>{finding.figure}</page>")
    assert finding.figure.count("<circle") == 2 * len(METHODS)
    assert set(finding.names_zh) == set(finding.numbers)
    assert "n = 30, 120" in finding.comment_en
    assert "30、120" in finding.comment_zh
    assert finding.verdict is not Verdict.OPEN
