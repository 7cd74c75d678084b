"""S30 in the lab: the error of random features."""

import xml.etree.ElementTree as ElementTree

import pytest

from kexue.lab import Verdict, s30_features
from kexue.lab.s30_features import KERNELS, attention_error, judge, kernel_error


def test_independent_directions_follow_the_formula():
    (mean, error), theory = kernel_error("independent", 0.5, 32, seed=3)
    assert abs(mean - theory) < 4 * error


def test_without_norm_every_estimate_is_exact():
    for name in KERNELS:
        (mean, _), theory = kernel_error(name, 0.0, 32, draws=5)
        assert mean == pytest.approx(0, abs=1e-25)
        assert theory == 0


def test_the_same_seed_gives_the_same_numbers():
    runs = [kernel_error("orthogonal", 0.5, 16, seed, 20) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_positive_features_go_on_towards_softmax_attention_where_relu_features_settle():
    positive, relu = (
        [attention_error(kind, m) for m in (256, 1024)] for kind in ("positive", "relu")
    )
    assert positive[1] < 0.6 * positive[0]
    assert relu[1] > 0.7 * relu[0]


def numbers(independent=0.4, orthogonal=0.3, hyperbolic=0.2):
    means = {"independent": independent, "orthogonal": orthogonal, "hyperbolic": hyperbolic}
    return {1.0: {name: {16: (mean, 0.01)} for name, mean in means.items()}}


@pytest.mark.parametrize(
    ("found", "verdict", "kept"),
    [
        (numbers(), Verdict.HOLDS, [True, True, True]),
        (numbers(orthogonal=0.39, hyperbolic=0.2), Verdict.PARTLY, [True, False, True]),
        (numbers(hyperbolic=0.29), Verdict.PARTLY, [True, True, False]),
        (numbers(0.5, 0.6, 0.7), Verdict.FAILS, [False, False, False]),
    ],
)
def test_the_verdict_follows_the_numbers(found, verdict, kept):
    assert judge(found, {1.0: {16: 0.41}}) == (verdict, kept)


def test_the_experiment_runs_and_its_pictures_are_well_formed(monkeypatch):
    monkeypatch.setattr(s30_features, "DRAWS", 40)
    monkeypatch.setattr(s30_features, "SIZES", (16, 32, 256))
    monkeypatch.setattr(s30_features, "REPEATS", 1)
    finding = s30_features.EXPERIMENT.run(seed=1)
    assert isinstance(finding.verdict, Verdict)
    assert set(finding.names_zh) == set(finding.numbers)
    for picture in finding.figure.split("</svg>")[:-1]:
        ElementTree.fromstring(picture + "</svg>")
    assert finding.figure.count("<svg") == 2
