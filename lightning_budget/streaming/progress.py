"""How far a pass over the rows is: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

EVERY = 10.0
"""Seconds between lines."""


class Rows(Protocol):
    """Told, from any thread, how many more rows are done."""

    def __call__(self, rows: int) -> None: ...


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} rows/s" if speed else "", style="progress.data.speed")


@contextmanager
def progress(title: str, total: int, done: int, share: float, shown: bool) -> Iterator[Rows]:
    """A bar for one pass.

    Args:
        title: of the pass.
        total: rows of all processes.
        done: rows that were done before, not counted in the speed.
        share: of the rows left, this process's; the others are taken to be as fast.
        shown: whether this process shows anything.
    """
    if not shown:
        yield lambda rows: None
        return
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), _Speed(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total - done)
            yield lambda rows: bar.advance(task, rows / share)
        return
    start = last = time.monotonic()
    count, alone = 0.0, threading.Lock()

    def line() -> None:
        seconds = max(time.monotonic() - start, 1e-9)
        left = (total - done - count) * seconds / max(count, 1)
        whole = (done + count) / total
        print(f"{title}: {whole:.0%}, {count / seconds:,.0f} rows/s, {left:,.0f} s left", flush=True)

    def tell(rows: int) -> None:
        nonlocal count, last
        with alone:
            count = min(count + rows / share, total - done)
            if time.monotonic() - last > EVERY:
                last = time.monotonic()
                line()

    yield tell
    if total > done:
        line()
