"""How often 95 % intervals hold the truth: ``python benchmarks/evaluation_coverage.py``.

Thousands of trials of a population in which the value of every policy is known: EOM, the difference of two models,
AUCC, each with its intervals; then how narrow they are by the number of rows. One thread.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from estimator_tables import Claims, table
from evaluation_intervals import CLOSED, NORMAL, PERCENTILE, Found, half_widths, simulate
from evaluation_picture import draw
from evaluation_trial import FRACTIONS, Population
from machine import hardware, result_file, versions
from own_process import ROOT
from rich.console import Console
from rich.progress import track

from lightning_budget.atomic import atomic_path

RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "coverage.png"
USERS, RESAMPLES = 100_000, 200
LEAST, MOST = 0.93, 0.97
KINDS = (PERCENTILE, NORMAL, CLOSED)
LEAST_JUDGED = 5_000
"""Users; smaller trials are shown, without AUCC."""


@dataclass(frozen=True)
class Plan:
    """How much is simulated.

    Attributes:
        trials: by users of a trial, how many.
        sizes, size_trials: users of the trials that say how wide intervals are, and how many of each.
        slack: standard errors by which a coverage may miss the limits.
    """

    trials: Mapping[int, int]
    sizes: tuple[int, ...]
    size_trials: int
    slack: float


FULL = Plan({5_000: 3_000, 10_000: 1_000, 1_000: 1_000}, (2_500, 10_000, 40_000), 100, 0.0)
QUICK = Plan({5_000: 100}, (2_500, 10_000), 20, 3.0)


def shown(items: Iterable[int], title: str, total: int) -> Iterable[int]:
    """A bar on stderr."""
    return track(items, title, total, console=Console(stderr=True))


def coverage_part(found: Mapping[str, Found], users: int, rows: float) -> list[str]:
    """A line for each number, a column for each kind of interval."""
    lines = []
    for name, one in found.items():
        if not one.trials:
            continue
        cells = []
        for kind in KINDS:
            if kind not in one.ends:
                cells.append("–")
                continue
            share, error = one.coverage(kind)
            cells.append(f"{100 * share:.1f} ± {100 * error:.1f} ({one.width(kind):.2f})")
        numbers = [f"{one.truth:.3f}", f"{one.spread:.3f}", f"{one.bias:+.2f}"]
        lines.append([name, *numbers, *cells, f"{one.trials:,}"])
    head = ["", "truth", "spread", "bias", *KINDS, "trials"]
    return [f"{users:,} users, {rows:,.0f} rows on average:", "", *table(head, lines)]


def is_judged(name: str, kind: str) -> bool:
    """AUCC by its percentiles alone: it is a ratio, whose resamples have tails that widen their standard deviation."""
    return kind == PERCENTILE or not name.startswith("AUCC")


def judge(found: Mapping[str, Found], users: int, slack: float, claims: Claims) -> None:
    """Intervals of trials of so many users against the limits; one line for each kind."""
    for kind in KINDS:
        ends = {name: one.coverage(kind) for name, one in found.items() if kind in one.ends and is_judged(name, kind)}
        low, high = (extreme(ends, key=lambda name: ends[name][0]) for extreme in (min, max))
        holds = all(LEAST - slack * error <= share <= MOST + slack * error for share, error in ends.values())
        seen = " … ".join(f"{100 * ends[name][0]:.1f} ± {100 * ends[name][1]:.1f} % ({name})" for name in (low, high))
        text = f"{kind} intervals of {users:,} users: {seen}, {100 * LEAST:g} to {100 * MOST:g} %"
        claims.state(text, holds)


def size_part(widths: Mapping[str, list[tuple[float, float]]], trials: int) -> list[str]:
    """Half width by the number of rows."""
    rows = [f"{n:,.0f} rows" for n, _ in next(iter(widths.values()))]
    lines = [[name, *(f"± {half:.3f}" for _, half in points)] for name, points in widths.items()]
    return [
        "## How wide",
        "",
        f"1.96 standard deviations of the estimate over {trials} trials of each size.",
        "",
        *table(["", *rows], lines),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few trials, under a minute, nothing written")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    torch.set_num_threads(1)
    population, claims = Population.draw(USERS), Claims()
    mean_rows = len(population.buy) / USERS
    found = {}
    for users, trials in plan.trials.items():
        seeds = shown(range(trials), f"{users:,} users", trials)
        found[users] = simulate(population, users, seeds, RESAMPLES, with_aucc=users >= LEAST_JUDGED)
    steps = iter(shown(range(n := len(plan.sizes) * plan.size_trials), "sizes", n))
    widths = half_widths(population, plan.sizes, plan.size_trials, lambda: next(steps, None))
    next(steps, None)
    for users, by_name in found.items():
        if users >= LEAST_JUDGED:
            judge(by_name, users, plan.slack, claims)

    value, cost = population.true_value.mean(0).tolist(), population.true_cost.mean(0).tolist()
    lines = [
        "# Coverage of 95 % intervals",
        "",
        f"Trials drawn from {USERS:,} users with known outcomes: the users of a trial are drawn at random with all of "
        "their rows (one for six in ten, up to eight), each row is given one of five arms, control more often the more "
        f"loyal the user (propensities {population.propensity.min():.2f} to {population.propensity.max():.2f}). A row "
        f"is worth {value[0]:.2f} on average under control and {value[-1]:.2f} under the dearest coupon, which costs "
        f"{cost[-1]:.2f}; two thirds are worth nothing, the others are log-normal. Two models predict gains and costs "
        f"with errors, b with the larger ones. Budgets are {', '.join(f'{100 * f:.0f}' for f in FRACTIONS)} % of the "
        f"dearest coupon's cost. AUCC is of one coupon against control, rows weighted by 1/p. {RESAMPLES} resamples. "
        "The normal intervals of AUCC are shown and not judged: it is a ratio, whose resamples have tails that widen "
        "their standard deviation.",
        "",
        "Spread: standard deviation of the estimate over trials. Bias: of its mean, in spreads. Then the share of "
        "intervals that hold the truth, in %, ± its standard error, and in brackets their mean width over that of "
        "± 1.96 spreads. EOM is of model a. Difference: model a minus model b, on common resamples.",
        "",
    ]
    for users, by_name in found.items():
        lines += coverage_part(by_name, users, mean_rows * users)
    lines += size_part(widths, plan.size_trials)
    lines += ["## Limits", "", *claims.lines, "", f"{hardware()}; {versions()}", "", claims.verdict]
    print("\n".join(lines))
    if not arguments.quick:
        with atomic_path(PICTURE) as path:
            draw(path, found[LEAST_JUDGED], widths, (LEAST, MOST))
        with atomic_path(result_file(RESULTS, "evaluation_coverage")) as path:
            path.write_text("\n".join(lines) + "\n")
    return 1 if claims.failed else 0


if __name__ == "__main__":
    sys.exit(main())
