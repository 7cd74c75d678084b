"""CSL: are all the keywords of a paper genuine? (S01)

[CLS] keyword；keyword；… [SEP] abstract [SEP]
"""

from kexue.data.corpus import Record
from kexue.tasks.clue.classification import Classification

__all__ = ["CSL"]


class CSL(Classification):
    """ "1" all keywords are the authors' own, "0" some are made up."""

    name = "csl"
    hub_config = "csl"
    labels = ("0", "1")
    submission = "csl_predict.json"

    def texts(self, record: Record) -> tuple[str, ...]:
        keywords = record.get("keyword", list)
        if not keywords or not all(isinstance(k, str) for k in keywords):
            raise record.error("keyword", f"needs a list of one or more strings, got {keywords!r}")
        return "；".join(keywords), record.text("abst")
