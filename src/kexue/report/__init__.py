"""Run folders and self-contained HTML pages."""

from kexue.report.clue_report import write_clue_report
from kexue.report.clue_table import clue_means, clue_table, print_clue_table
from kexue.report.run_folder import RunFolder, atomic_write_text, atomic_writer

__all__ = [
    "RunFolder",
    "atomic_write_text",
    "atomic_writer",
    "clue_means",
    "clue_table",
    "print_clue_table",
    "write_clue_report",
]
