"""The estimators and what they declare, as a table for people."""

from __future__ import annotations

from lightning_budget.estimators import ESTIMATORS, build_estimator, estimator_arguments


def markdown_table() -> str:
    """One row for each entry of the registry, with its default arguments."""
    lines = [
        "| estimator | what it is | gradient of the goal under | random | evaluations | arguments and defaults |",
        "|---|---|---|---|---|---|",
    ]
    for name, kind in ESTIMATORS.items():
        about = build_estimator({"name": name}).summary
        what = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
        arguments = ", ".join(f"`{key}={value}`" for key, value in estimator_arguments(name).items())
        random = "yes" if about["random"] else "no"
        under = about["unbiased for"] or "none: biased"
        lines.append(f"| `{name}` | {what} | {under} | {random} | {about['evaluations']} | {arguments} |")
    return "\n".join(lines) + "\n"
