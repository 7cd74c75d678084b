"""Run folders and self-contained HTML pages."""

from kexue.report.clue_report import write_clue_report
from kexue.report.clue_table import clue_means, clue_table, print_clue_table
from kexue.report.run_folder import RunFolder

__all__ = [
    "RunFolder",
    "clue_means",
    "clue_table",
    "print_clue_table",
    "write_clue_report",
]
