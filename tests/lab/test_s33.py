"""S33 in the lab: how Adam, AdaX and AdaFactor remember."""

from xml.etree import ElementTree

import numpy as np
import pytest

from kexue.lab import Verdict, s33_memory


@pytest.mark.parametrize("name", ["Adam", "AdaX", "AdaFactor"])
def test_the_newest_square_weighs_all_at_first_and_all_weights_sum_to_one(name):
    shares = s33_memory.newest_shares(name, 2000)
    assert shares[0] == pytest.approx(1, abs=1e-12)
    weights = 10 ** s33_memory.weights_by_age(shares)
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert weights[0] == pytest.approx(shares[-1], rel=1e-12)


def test_weights_by_age_are_products_of_what_was_kept():
    weights = 10 ** s33_memory.weights_by_age(np.array([1.0, 0.5, 0.25]))
    assert weights.tolist() == pytest.approx([0.25, 0.75 * 0.5, 0.75 * 0.5 * 1.0])


def test_adam_forgets_and_adax_weighs_the_oldest_most():
    adam, adax = (
        s33_memory.weights_by_age(s33_memory.newest_shares(name, 30_000))
        for name in ("Adam", "AdaX")
    )
    assert (np.diff(adam) < 0).all()
    assert (np.diff(adax) > 0).all()


def test_a_burst_shortens_the_steps_of_a_young_adax_as_much_as_adams():
    young = s33_memory.burst("AdaX", late=300, shown=50)
    assert young.lengths[0] == 1
    assert young.least < 0.4
    assert s33_memory.burst("AdaX", late=300, shown=50, factor=1.0).least > 0.9


def test_the_simulated_mean_is_the_real_optimizers():
    """The recursion used for AdaFactor, run with AdaX's weights, gives AdaX's burst."""
    real = s33_memory.burst("AdaX", late=300, shown=50)
    shares = s33_memory.newest_shares
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s33_memory, "newest_shares", lambda _, steps: shares("AdaX", steps))
        simulated = s33_memory.burst("AdaFactor", late=300, shown=50)
    assert simulated.lengths == pytest.approx(real.lengths, rel=1e-4)


def test_the_same_seed_gives_the_same_burst_and_the_same_accuracy():
    bursts = [s33_memory.burst("Adam", late=50, shown=10, seed=seed) for seed in (0, 0, 1)]
    assert bursts[0] == bursts[1] != bursts[2]
    scores = [s33_memory.accuracy("AdaX 5e-3", seed, epochs=2) for seed in (0, 0)]
    assert scores[0] == scores[1] > 50


def test_the_verdict_follows_the_numbers():
    verdict = s33_memory.verdict
    assert verdict(1.0, 1e-8, 0.3, 0.999) is Verdict.HOLDS
    assert verdict(1.0, 1e-3, 0.3, 0.999) is Verdict.PARTLY
    assert verdict(0.9, 1e-8, 0.3, 0.999) is Verdict.PARTLY
    assert verdict(1.0, 1e-8, 0.3, 0.9) is Verdict.PARTLY
    assert verdict(1.0, 1e-8, 0.3, 0.2) is Verdict.FAILS


def test_the_experiment_runs_and_draws_well_formed_pictures(monkeypatch):
    for name, value in (("LATE", 3000), ("SHOWN", 100), ("EPOCHS", 1), ("SEEDS", 2)):
        monkeypatch.setattr(s33_memory, name, value)
    finding = s33_memory.EXPERIMENT.run()
    assert finding.verdict is Verdict.PARTLY  # at step 3,000 the scale still learns
    assert finding.figure.count("<svg") == 4
    ElementTree.fromstring(f"<page>{finding.figure}</page>")
    assert "decide nothing" in finding.comment_en
    assert set(finding.names_zh) >= {name for name in finding.numbers if "late burst" in name}
