"""What the methods earn under each budget, side by side: computed, printed, drawn and written."""

from lightning_budget.report.compute import Comparison, analyse, check_request, compare
from lightning_budget.report.figure import comparison_figure
from lightning_budget.report.render import as_text, deployment_table, print_report, render, sentences
from lightning_budget.report.results import Band, Curve, Deployment, Difference, Outcome, Report, Row
from lightning_budget.report.write import write_report

__all__ = [
    "Band",
    "Comparison",
    "Curve",
    "Deployment",
    "Difference",
    "Outcome",
    "Report",
    "Row",
    "analyse",
    "as_text",
    "check_request",
    "compare",
    "comparison_figure",
    "deployment_table",
    "print_report",
    "render",
    "sentences",
    "write_report",
]
