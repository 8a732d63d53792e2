"""A report in a terminal: 100 columns, one row per budget and method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lightning_budget.metrics.functional import PairedDifference
from lightning_budget.report.results import Difference, Outcome, Report, Row, label
from lightning_budget.terminal import page_text, print_page


def render(report: Report) -> Table:
    """Budget × method: value, spend and incremental return at the same factual spend, and the paired difference.

    Value, spend and ROI are true where the truth is known, else estimated (EOM, Hájek).
    """
    table = _empty("budget", "method", *_columns(report))
    outcomes = [_outcome(row) for row in report.rows]
    value_text = number_text([x for row in report.rows for x in (_outcome(row).value, row.eom_hajek.value)], 5)
    spend_text = number_text([*report.budgets, *(o.spend for o in outcomes)], 4)
    roi_text = number_text([o.roi for o in outcomes if o.roi is not None], 4)
    gaps = _gaps(report)
    methods = len(report.rows) // len(report.budgets)
    for r, (row, outcome) in enumerate(zip(report.rows, outcomes, strict=True)):
        b, i = divmod(r, methods)
        budget = (_percent(row.fraction), spend_text(row.budget), *[""] * methods)[i]
        cells = [
            value_text(outcome.value),
            spend_text(outcome.spend),
            "" if outcome.roi is None else roi_text(outcome.roi),
        ]
        if row.true is not None:
            cells.append(value_text(row.eom_hajek.value))
        else:
            cells.insert(1, interval_text(outcome.low, outcome.high, value_text))
        if report.differences:
            cells.append(gaps.get((row.method, b), ""))
        table.add_row(budget, escape(label(row.method)), *cells, end_section=i == methods - 1)
    return table


def deployment_table(report: Report) -> Table:
    """Budget × policy: what would be served if the multiplier were solved on predicted cost, and what it really costs.

    The predicted spend keeps the budget; a factual spend far from it tells of badly calibrated costs.
    """
    table = _empty("budget", "served by", "multiplier", "predicted\nspend", "factual\nspend", "% of users at")
    table.columns[-1].header = escape("% of users at " + " · ".join(report.arm_share))
    table.columns[-1].no_wrap = False
    spend_text = number_text([x for d in report.deployments for x in (d.predicted_spend, d.factual_spend)], 4)
    policies = len(report.deployments) // len(report.budgets)
    for i, d in enumerate(report.deployments):
        table.add_row(
            _percent(d.fraction) if i % policies == 0 else "",
            escape(label(d.method)),
            "none" if d.multiplier is None else f"{d.multiplier:.4g}",
            spend_text(d.predicted_spend),
            spend_text(d.factual_spend),
            " · ".join(f"{100 * share:4.1f}" for share in d.share.values()),
            end_section=(i + 1) % policies == 0,
        )
    return table


def sentences(report: Report) -> list[str]:
    """For every difference one plain sentence on its mean over the budgets: true value where known, else EOM."""
    return [_sentence(d, report) for d in report.differences]


def as_text(report: Report) -> str:
    """All of it as plain text of 100 columns, without colours."""
    return page_text(_all(report))


def print_report(report: Report) -> None:
    """Print to the terminal; plain text where standard output is no terminal or cannot show every character."""
    print_page(_all(report))


def _all(report: Report) -> RenderableType:
    source = "true" if report.has_oracle else "estimated"
    lines = [
        f"{report.row_count:,} rows of {report.user_count:,} users. Value in {report.value_unit}, spend in "
        f"{report.cost_unit}, both per user.",
        f"Budgets are shares of {report.free_spend:.4g} ({report.free_spend_source}).",
        "All methods are compared at equal factual spend; ROI is value over spend, both above control's.",
    ]
    return Group(
        *map(Text, lines),
        render(report),
        *[Text(line) for d in report.differences for line in _mean_lines(d)],
        *[Text(line, style="bold") for line in sentences(report)],
        "",
        Text(f"What would be served at the multiplier solved on predicted cost; the factual spend is {source}."),
        deployment_table(report),
    )


def _empty(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for i, name in enumerate(columns):
        table.add_column(
            name,
            justify="left" if i < 2 else "right",
            no_wrap=i != 1,
            overflow="fold",
            min_width=10 if i == 1 else None,
        )
    return table


def _columns(report: Report) -> list[str]:
    level = f"{100 * report.level:g} %"
    names = ["EOM\n(Hájek)", f"{level} interval", "spend", "ROI"]
    if report.has_oracle:
        names = ["true\nvalue", "true\nspend", "true\nROI", "EOM\n(Hájek)"]
    if report.differences:
        what = "true value" if report.has_oracle else "EOM"
        names.append(f"{what} minus {label(report.differences[0].baseline)}\n({level} interval)")
    return names


def _outcome(row: Row) -> Outcome:
    return row.eom_hajek if row.true is None else row.true


def _paired(difference: Difference) -> PairedDifference:
    return difference.eom_hajek if difference.true_value is None else difference.true_value


def _gaps(report: Report) -> dict[tuple[str, int], str]:
    """The difference of each method at each budget, all with the same number of decimals."""
    paired = {d.method: _paired(d) for d in report.differences}
    text = number_text([float(x) for p in paired.values() for ends in (p.low, p.high) for x in ends], 4)
    return {
        (name, b): signed_text(float(p.estimate[b]), float(p.low[b]), float(p.high[b]), text)
        for name, p in paired.items()
        for b in range(len(report.budgets))
    }


def _mean_lines(difference: Difference) -> list[str]:
    lines = [f"Mean over budgets, {label(difference.method)} minus {label(difference.baseline)}:"]
    for kind, p in (("true value", difference.true_value), ("EOM (Hájek)", difference.eom_hajek)):
        if p is not None:
            numbers = float(p.mean), float(p.mean_low), float(p.mean_high)
            lines.append(f"  {kind:11}  {signed_text(*numbers, number_text(numbers, 3))}")
    return lines


def _sentence(difference: Difference, report: Report) -> str:
    a, b, p = label(difference.method), label(difference.baseline), _paired(difference)
    mean, low, high = float(p.mean), float(p.mean_low), float(p.mean_high)
    text = number_text([mean, low, high], 3)
    interval = f"({100 * report.level:g} % interval {interval_text(low, high, text)})"
    sign = "+" if mean > 0 else ""
    if low <= 0 <= high:
        return f"{a} is not distinguishable from {b}: {sign}{text(mean)} {report.value_unit} per user {interval}"
    if low > 0:
        return f"{a} earns {sign}{text(mean)} {report.value_unit} per user more than {b} {interval}"
    return f"{a} earns {text(-mean)} {report.value_unit} per user less than {b} {interval}"


def signed_text(estimate: float, low: float, high: float, text: Callable[[float], str]) -> str:
    """A difference with its sign, and its interval."""
    return f"{'+' if estimate > 0 else ''}{text(estimate)} ({interval_text(low, high, text)})"


def interval_text(low: float | None, high: float | None, text: Callable[[float], str]) -> str:
    """Both ends; nothing where there is no interval."""
    return "" if low is None or high is None else f"{text(low)} … {text(high)}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4g} %"


def number_text(numbers: Iterable[float], digits: int) -> Callable[[float], str]:
    """One number of decimals for a column, so that its largest entry shows so many digits."""
    largest = max((abs(x) for x in numbers), default=0.0)
    decimals = min(max(digits - 1 - math.floor(math.log10(largest)), 0), 12) if largest > 0 else 0
    return lambda x: f"{x:z,.{decimals}f}"
