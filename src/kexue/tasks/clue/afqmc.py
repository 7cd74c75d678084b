"""AFQMC: do two questions of customers mean the same? (S01)"""

from kexue.tasks.clue.pairs import PairClassification

__all__ = ["AFQMC"]


class AFQMC(PairClassification):
    """ "1" same meaning, "0" another."""

    name = "afqmc"
    hub_config = "afqmc"
    labels = ("0", "1")
    submission = "afqmc_predict.json"
