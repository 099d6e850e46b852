"""Pages and tables for people: what ``penstock compare`` shows. Draws from figures that others measured."""

from penstock.dash.advice import advice
from penstock.dash.page import write_page
from penstock.dash.table import to_table
from penstock.dash.trials import (
    Comparison,
    JobSummary,
    Machine,
    Point,
    Trial,
    WorkerFigures,
    load_comparison,
    save_comparison,
)

__all__ = [
    "Comparison",
    "JobSummary",
    "Machine",
    "Point",
    "Trial",
    "WorkerFigures",
    "advice",
    "load_comparison",
    "save_comparison",
    "to_table",
    "write_page",
]
