"""What a person reads in the terminal: where data is from, and how a file compares."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lightning_budget.published.check import Check
from lightning_budget.published.description import Published

_WORDS = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("not tested", "dim")}


def description(data: Published) -> RenderableType:
    """Where to get it, the licence, what to cite, and what is not known."""
    table = _plain()
    for name, text in (
        ("what", data.title),
        ("where", data.where),
        ("licence", data.licence),
        ("allows", data.allows),
        ("cite", data.citation),
        ("arms", ", ".join(_arm(arm.label, arm.share) for arm in data.arms)),
        ("not known to us", data.unknown),
        ("note", data.note),
    ):
        if text:
            table.add_row(name, escape(text))
    for file in data.files:
        size = "" if file.size is None else f", {file.size:,} B"
        table.add_row("file", escape(file.name + size + (f", sha256 {file.sha256}" if file.sha256 else "")))
    return table


def _arm(label: str, share: float | None) -> str:
    return repr(label) if share is None else f"{label!r} {share:.4g}"


def _plain() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    return table


def overview(titles: Iterable[tuple[str, str]]) -> RenderableType:
    """Names and titles."""
    table = _plain()
    for name, title in titles:
        table.add_row(name, escape(title))
    return table


def checks_table(checks: Iterable[Check]) -> RenderableType:
    """A comparison a line."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for header in ("check", "", "found", "published"):
        table.add_column(header, overflow="fold")
    for check in checks:
        word, style = _WORDS[check.passed]
        table.add_row(escape(check.name), Text(word, style=style), escape(check.found), escape(check.expected))
    return table
