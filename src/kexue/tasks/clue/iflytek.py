"""IFLYTEK: the category of an app from its description, one of 119 (S01)."""

from kexue.tasks.clue.classification import Classification

__all__ = ["IFlytek"]


class IFlytek(Classification):
    """Long-text classification; a label's name is its code, "0" to "118"."""

    name = "iflytek"
    hub_config = "iflytek"
    labels = tuple(str(i) for i in range(119))
    submission = "iflytek_predict.json"
