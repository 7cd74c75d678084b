"""The tasks on two sentences (S01): [CLS] sentence 1 [SEP] sentence 2 [SEP]."""

from kexue.data.corpus import Record
from kexue.tasks.clue.classification import Classification

__all__ = ["PairClassification"]


class PairClassification(Classification):
    """One label for two sentences."""

    def texts(self, record: Record) -> tuple[str, ...]:
        return record.text("sentence1"), record.text("sentence2")
