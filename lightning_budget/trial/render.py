"""The checks of a trial in a terminal: one line each, and the numbers behind them."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lightning_budget.terminal import page_text, print_page
from lightning_budget.trial.balance import Balance
from lightning_budget.trial.check import TrialChecks

NAMED = 5


def render(checks: TrialChecks) -> RenderableType:
    """Verdicts, the arms, and the features that differ most."""
    count = sum(not v.ok for v in checks.verdicts().values())
    found = "nothing found" if not count else f"{count} warning{'s' if count > 1 else ''}"
    parts: list[RenderableType] = [Text(f"Checks of the experiment: {found}."), _verdicts(checks), _arms(checks)]
    if checks.balance.worst:
        parts.append(_worst(checks.balance))
    return Group(*parts)


def as_text(checks: TrialChecks) -> str:
    """The checks as plain text of 100 columns, without colours."""
    return page_text(render(checks))


def print_checks(checks: TrialChecks) -> None:
    """Print to the terminal; plain text where standard output is no terminal or cannot show every character."""
    print_page(render(checks))


def _verdicts(checks: TrialChecks) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, verdict in checks.verdicts().items():
        word, style = ("ok", "green") if verdict.ok else ("warning", "bold red")
        table.add_row(name, Text(word, style=style), Text(verdict.text))
    return table


def _arms(checks: TrialChecks) -> Table:
    by_weight = checks.sample_ratio.method == "ipw"
    weighted = ("Σ 1/p",) if by_weight else ()
    table = _empty("arm", "rows", *weighted, "expected", "z", "propensity", "effective\nrows", "largest\nweight")
    for counted, given in zip(checks.sample_ratio.arms, checks.propensity.arms, strict=True):
        low, high = f"{given.lowest:.3g}", f"{given.highest:.3g}"
        table.add_row(
            escape(counted.arm),
            f"{counted.rows:,}",
            *((f"{counted.observed:,.0f}",) if by_weight else ()),
            f"{counted.expected:,.0f}",
            f"{counted.z:+z.2f}",
            low if low == high else f"{low} … {high}",
            f"{given.effective_rows:,.0f}",
            f"{100 * given.largest_weight_share:.2g} %",
        )
    return table


def _worst(balance: Balance) -> Table:
    table = _empty("largest differences from control", "arm", "difference\n(sd)", "z", f"p × {balance.tested:,}")
    table.columns[0].overflow = table.columns[1].overflow = "fold"
    for d in balance.worst[:NAMED]:
        table.add_row(escape(d.feature), escape(d.arm), f"{d.smd:+z.4f}", f"{d.z:+z.2f}", f"{d.p_adjusted:.2g}")
    return table


def _empty(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    return table
