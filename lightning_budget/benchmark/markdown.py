"""The table for people, in Markdown."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_budget.benchmark.paired import against, best_two_stage
from lightning_budget.benchmark.results import Results, mean
from lightning_budget.benchmark.suite import Cell
from lightning_budget.benchmark.verdict import Finding, closed, last_line
from lightning_budget.report.results import CONTROL, ORACLE, UNIFORM
from lightning_budget.training.versions import versions

MISSING = "—"
HEAD = ("method", "kind", "seeds", "value", "minus best two-stage", "regret closed", "at each budget", "AUCC")
HEAD += ("validation", "epochs", "seconds", "CPU seconds", "parameters")


def document(results: Results, found: Sequence[Finding], picture: str | None = None) -> str:
    """Everything: what was run and on what, a table per data set, and what must hold."""
    suite = results.suite
    methods, seeds = (", ".join(str(x) for x in xs) for xs in (suite.methods, suite.seeds))
    lines = [
        "# Every method on every data set",
        "",
        last_line(found),
        "",
        *(f"- {_mark(f.holds)}: {f.text}" for f in found),
        "",
        f"Methods: {methods}. Seeds: {seeds}. Trials of every cell: {suite.trials}, the first with the method's preset,"
        " the others drawn from its search space; the one with the best validation EOM was judged on test, once."
        f" Training: {' '.join(suite.overrides) or 'as configs/train.yaml says'}.",
        "",
        f"Machine: {machine()}.",
        "",
        "Values are per user, mean over budgets at "
        + ", ".join(f"{f:.0%}" for f in suite.fractions)
        + " of the free spend, and over seeds: true values at the true spend where there is an oracle, else EOM"
        " (Hájek). The best two-stage method is the best on validation of the published learners; those of kind"
        " ablation take a part of default away. Intervals (95 %) of differences: Student's t"
        " over seeds where there is an oracle, else a paired bootstrap over users; at each budget a star marks those"
        " that leave out zero. Seconds are those of one training.",
        "",
    ]
    if picture:
        lines += [f"![Each method minus the best two-stage one]({picture})", ""]
    for dataset in suite.datasets:
        lines += [*_section(results, dataset), ""]
    return "\n".join(lines)


def machine() -> str:
    """Hardware and versions in one line."""
    cpu = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", cpu.read_text(), re.MULTILINE) if cpu.exists() else None
    parts = [name.group(1).strip() if name else platform.machine(), f"{os.cpu_count()} cores"]
    return ", ".join([*parts, *(f"{k} {v}" for k, v in versions().items() if k != "lightning_budget")])


def _mark(holds: bool | None) -> str:
    return {True: "holds", False: "falls short", None: "undecided"}[holds]


def _section(results: Results, dataset: str) -> Iterator[str]:
    about = results.suite.datasets[dataset].about
    yield f"## {dataset}"
    yield ""
    methods = results.methods(dataset)
    if not methods:
        reasons = {results.why_missing(dataset, m) for m in results.suite.methods}
        yield f"{about[:1].upper()}{about[1:]}: no cell is finished ({'; '.join(sorted(reasons))})."
        return
    cell = results.any_cell(dataset)
    truth = "true values" if cell["has_oracle"] else "EOM (Hájek)"
    yield (
        f"{about[:1].upper()}{about[1:]}: {cell['train_rows']:,} training rows, {cell['val_rows']:,} of validation,"
        f" {cell['test_rows']:,} of test, {cell['arms']} arms; {truth}, in {cell['value_unit']}."
        f"{_own_seeds(results, dataset)}"
    )
    yield ""
    yield f"| {' | '.join(HEAD)} |"
    yield "|" + "---|" * len(HEAD)
    baseline = best_two_stage(results, dataset)
    for method in results.suite.methods:
        yield (
            _line(results, dataset, method, baseline)
            if method in methods
            else _missing(method, results.why_missing(dataset, method))
        )
    for policy in (CONTROL, UNIFORM, *([ORACLE] if cell["has_oracle"] else [])):
        seeds = sorted({c.seed for c in results.found if c.dataset == dataset})
        value = mean([mean(results.reference(dataset, s, policy)) for s in seeds])
        yield _row([policy, "", str(len(seeds)), f"{value:.4f}"])


def _own_seeds(results: Results, dataset: str) -> str:
    own = results.suite.datasets[dataset].seeds
    return f" Seeds: {', '.join(map(str, own))}." if own else ""


def _line(results: Results, dataset: str, method: str, baseline: str | None) -> str:
    seeds = results.seeds(dataset, method)
    cells = [results.found[Cell(dataset, method, s)] for s in seeds]
    name = f"**{method}**" if method == baseline else method
    value = mean([mean(results.values(dataset, method, s)) for s in seeds])
    difference = share = by_budget = MISSING
    if method == baseline:
        difference = "best two-stage"
    elif baseline is not None and (paired := against(results, dataset, method, baseline)) is not None:
        difference = f"{paired.mean:+.4f} ({paired.mean_low:+.4f} … {paired.mean_high:+.4f})"
        ends = zip(paired.estimate, paired.low, paired.high, strict=True)
        # A star where the interval leaves out zero.
        by_budget = " ".join(f"{e:+.4f}{'*' if low > 0 or high < 0 else ''}" for e, low, high in ends)
        if (found := closed(results, dataset, method, baseline)) is not None:
            share = f"{found.mean:+.0%}" + ("" if found.low is None else f" ({found.low:+.0%} … {found.high:+.0%})")
    areas = [c["aucc"] for c in cells if c["aucc"] is not None]
    return _row(
        [
            name,
            results.kinds[method],
            f"{len(seeds)} of {len(results.suite.seeds_of(dataset))}",
            f"{value:.4f}",
            difference,
            share,
            by_budget,
            f"{mean(areas):.4f}" if areas else "",
            f"{mean([c['validation'] for c in cells]):.4f}",
            f"{mean([c['epochs'] for c in cells]):.1f}",
            f"{mean([c['seconds'] for c in cells]):.1f}",
            f"{mean([c['cpu_seconds'] for c in cells]):.1f}",
            f"{mean([c['parameters'] for c in cells]):,.0f}",
        ]
    )


def _missing(method: str, why: str) -> str:
    return _row([method, "", "0", MISSING, why.replace("|", "/"), *[MISSING] * (len(HEAD) - 5)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join([*cells, *[''] * (len(HEAD) - len(cells))])} |"
