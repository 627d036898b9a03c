"""What people look at: contact sheets of puzzles, score tables, and one page per run."""

from pretask.reports.report import Looked, report

__all__ = ["Looked", "report"]
