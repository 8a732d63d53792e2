"""Rankings in a terminal: one row per arm and method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lightning_budget.evaluation.results import Evaluation, Ranking, RankingDifference
from lightning_budget.report.render import interval_text, number_text, signed_text
from lightning_budget.report.results import label
from lightning_budget.terminal import page_text, print_page


def as_text(evaluation: Evaluation) -> str:
    """The rankings as plain text of 100 columns, without colours."""
    return page_text(_all(evaluation))


def print_rankings(evaluation: Evaluation) -> None:
    """Print how methods rank users to the terminal."""
    print_page(_all(evaluation))


def ranking_table(rankings: Sequence[Ranking], differences: Sequence[RankingDifference], level: float) -> Table:
    """Arm × method: AUCC with its interval and paired difference, AUUC and Qini."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    names = ["arm", "method", f"AUCC\n({100 * level:g} % interval)"]
    if differences:
        names.append(f"minus {escape(label(differences[0].baseline))}\n({100 * level:g} % interval)")
    for i, name in enumerate([*names, "AUUC", "Qini"]):
        table.add_column(name, justify="left" if i < 2 else "right", no_wrap=i >= 2, overflow="fold")
    minus = {(d.method, d.arm): d.aucc for d in differences}
    area_text = [number_text([getattr(r, what) for r in rankings], 3) for what in ("auuc", "qini")]
    arms = list(dict.fromkeys(r.arm for r in rankings))
    methods = len(rankings) // max(len(arms), 1)
    for i, r in enumerate(sorted(rankings, key=lambda r: arms.index(r.arm))):
        cells = [_share(r)]
        if differences:
            paired = minus.get((r.method, r.arm))
            cells.append(signed_text(paired.estimate, paired.low, paired.high, _three) if paired else "")
        cells += [text(x) for text, x in zip(area_text, (r.auuc, r.qini), strict=True)]
        arm = escape(r.arm) if i % methods == 0 else ""
        table.add_row(arm, escape(label(r.method)), *cells, end_section=(i + 1) % methods == 0)
    return table


def _all(evaluation: Evaluation) -> Group:
    report, found = evaluation.report, evaluation.rankings
    lines = [
        "How users are ranked for one arm against control. AUCC: by predicted ROI, share of the arm's gain",
        f"while its cost grows; random ½. AUUC, Qini: by predicted uplift, {report.value_unit} per row.",
    ]
    if any(r.aucc is not None and r.aucc_low is None for r in found) and evaluation.ranking_differences:
        lines.append("No interval: the arm's gain or cost is not told from 0 on every resample.")
    table = ranking_table(found, evaluation.ranking_differences, report.level)
    return Group("", *map(Text, lines), table)


def _share(r: Ranking) -> str:
    if r.aucc is None:
        return "–"
    ends = interval_text(r.aucc_low, r.aucc_high, _three)
    return f"{_three(r.aucc)} ({ends})" if ends else _three(r.aucc)


_three: Callable[[float], str] = "{:z.3f}".format
