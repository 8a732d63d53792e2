"""Every method on every data set, equally tuned, in one table: ``python scripts/benchmark.py``.

A run that was cut off goes on when the same command runs again; ``report_only=true`` redraws what is there. The last
line says whether ``default`` does what is asked of it: ``holds``, ``falls short: …``, or ``undecided: …``.

Exit codes: 0 done; 1 a cell failed; 2 input error; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_budget import cli
from lightning_budget.benchmark.cell import Outcome
from lightning_budget.benchmark.classical import missing_library
from lightning_budget.benchmark.pool import run_here, run_processes
from lightning_budget.benchmark.report import write_results
from lightning_budget.benchmark.request import INSTALL, suite_of
from lightning_budget.benchmark.store import Store
from lightning_budget.benchmark.suite import Cell, Suite
from lightning_budget.cli.build import check_can_be_made, quiet


def methods_there_are() -> list[str]:
    """All of ``configs/method``."""
    return sorted(p.stem for p in (cli.config_dir() / "method").glob("*.yaml"))


def absent_methods(store: Store) -> dict[str, str]:
    """Those whose library is not installed here, with its name, but for those that have finished cells already."""
    found = {}
    for name in methods_there_are():
        about = OmegaConf.load(cli.config_dir() / "method" / f"{name}.yaml")
        library = missing_library(OmegaConf.select(about, "benchmark.fit"))
        if library is not None and not any(store.folder.glob(f"cells/*/{name}/*.json")):
            found[name] = library
    return found


def finished_trials(store: Store, suite: Suite, cells: Sequence[Cell]) -> int:
    """Of those asked for."""
    return sum(store.trial_file(cell, t).exists() for cell in cells for t in range(suite.trials))


def told(outcome: Outcome) -> str:
    """A line for a cell that came to its end."""
    if outcome.state != "done":
        return f"{outcome.cell}: {outcome.state}: {outcome.why}"
    return f"{outcome.cell}: validation {outcome.score:.4f}, {outcome.trained} trained"


def run(suite: Suite, workers: int) -> list[Outcome]:
    """Bring every cell to its end, with a bar that counts trials."""
    cells, store, outcomes = list(suite.cells()), Store(suite.folder), []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("trials,"))
    times = (TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("to go"))
    shown = Progress(
        *columns,
        *times,
        console=Console(stderr=True),
        speed_estimate_period=3600,
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with shown as bar:
        total, before = len(cells) * suite.trials, finished_trials(store, suite, cells)
        task = bar.add_task("Benchmark", total=total, completed=before)

        def tick() -> None:
            if not bar.disable:
                bar.update(task, completed=finished_trials(store, suite, cells))

        running = run_processes(suite, cells, workers, tick) if workers else run_here(suite, cells)
        for outcome in running:
            tick()
            outcomes.append(outcome)
            bar.console.print(told(outcome), markup=False, highlight=False, soft_wrap=True)
    return outcomes


@cli.main("benchmark")
def main(cfg: DictConfig) -> None:
    """Train what is missing, then write the table and pictures."""
    quiet()
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    absent = absent_methods(Store(Path(cfg.folder).expanduser().absolute()))
    suite = suite_of(config, methods_there_are(), absent)  # type: ignore[arg-type]
    check_can_be_made(suite.folder, "folder")
    if not (cfg.methods or cfg.presets[cfg.preset].get("methods")):
        for name, library in absent.items():
            print(f"{name} is left out, without {library}: {INSTALL}", file=sys.stderr)
    suite.folder.mkdir(parents=True, exist_ok=True)
    outcomes = [] if cfg.report_only else run(suite, cfg.workers if cfg.workers is not None else os.cpu_count() or 1)
    output = Path(cfg.output).expanduser().absolute() if cfg.output else suite.folder / "benchmark"
    verdict, written = write_results(suite, output)
    print(f"Results: {', '.join(str(path) for path in written)}")
    failed = [o for o in outcomes if o.state == "failed"]
    if failed:
        print(f"{len(failed)} cells failed; tracebacks: {suite.folder / 'failed'}", file=sys.stderr)
    print(verdict)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
