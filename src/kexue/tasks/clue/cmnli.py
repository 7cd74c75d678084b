"""CMNLI: does the first sentence entail, contradict or leave open the second? (S01)"""

from kexue.tasks.clue.pairs import PairClassification

__all__ = ["CMNLI"]


class CMNLI(PairClassification):
    """Inference on translated sentences; "-" rows (no majority) are used in the test only."""

    name = "cmnli"
    hub_config = "cmnli"
    labels = ("entailment", "neutral", "contradiction")
    dropped = frozenset({"-"})
    submission = "cmnli_predict.json"
