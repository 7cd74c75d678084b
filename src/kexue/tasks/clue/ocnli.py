"""OCNLI: inference on sentences written in Chinese (S01)."""

from kexue.tasks.clue.cmnli import CMNLI

__all__ = ["OCNLI"]


class OCNLI(CMNLI):
    """As CMNLI, from `train.50k.json`; "-" rows (no majority) are used in the test only."""

    name = "ocnli"
    hub_config = "ocnli"
    files = {"train": ("train.50k.json",), "dev": ("dev.json",), "test": ("test.json",)}
    submission = "ocnli_50k_predict.json"
