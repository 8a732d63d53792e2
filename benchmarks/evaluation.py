"""Cost of evaluation beside a loop over multipliers: ``python benchmarks/evaluation.py``.

A million logged rows × 5 arms, float32, stored arm by arm, one thread, processor time, candidates in turn: curves over
all multipliers, intervals, rankings, compiled and in plain torch; then the memory of the streaming form, and what the
validation callback adds to an epoch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Before torch is imported; inherited by every process.
os.environ["OMP_NUM_THREADS"] = "1"
# The server that processes are forked from finds what it is to import beforehand: some five seconds a process.
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], *filter(None, [os.environ.get("PYTHONPATH")])])

import estimator_cost
import numpy as np
import torch
from estimator_tables import Claims, ratios, spread, table
from evaluation_memory import FRACTIONS, median_ms, stream, validation
from evaluation_rivals import Array, loop_by_arm, loop_by_row, loop_tuned
from machine import hardware, result_file, versions
from omegaconf import OmegaConf
from own_process import ROOT, in_own_process
from torch import Tensor

from lightning_budget.allocation.compiled import SWITCH
from lightning_budget.atomic import atomic_path
from lightning_budget.campaign import Campaign
from lightning_budget.metrics.functional import (
    MultiplierGrid,
    aucc,
    auuc,
    bootstrap_aucc,
    bootstrap_curves,
    bootstrap_uplift,
    calibration,
    cost_curve,
    eom_influence,
    eom_poststratified,
    grid_changes,
    grid_curve,
    grid_resamples,
    matched_interval,
    paired_aucc_difference,
    qini,
    standard_error,
)
from lightning_budget.metrics.functional.cost_curve import CostCurve

RESULTS = ROOT / "benchmarks" / "results"
ROWS, TREATMENTS, MULTIPLIERS, RESAMPLES = 1_000_000, 5, 1_000, 200
CHECKED = 50_000
"""Rows on which the loop runs in float64, where rounding makes no ties."""
BUDGETS = (0.2, 0.4, 0.6, 0.8, 1.0)
GRID = MultiplierGrid(-5, 5, 128)
"""As many points as the default grid; the loop's multipliers are among them."""
EXACT_TIMES, GRID_TIMES, BOOTSTRAP_TIMES, AUCC_TIMES = 200.0, 500.0, 2.5, 5.0
PLAIN_RESAMPLES = 40
"""That plain torch is timed on; the time is scaled to ``RESAMPLES``."""
SAME, SAME_ROUNDED = 1e-12, 1e-4
EPOCH_SHARE, ORACLE_SHARE = 0.2, 0.5
GROWTH = 16.0
"""MiB: a few batches. The rows that stream through after the first million would be some 600."""
BY_ARM, BY_ROW, TUNED = "numpy loop, arm by arm", "numpy loop, row by row", "numpy loop, tuned"
EXACT, ON_GRID, BOOTSTRAP, GRID_BOOTSTRAP = (
    "curve at every multiplier",
    f"curve on a grid of {len(GRID):,}",
    f"{RESAMPLES} resamples, {len(BUDGETS)} budgets",
    f"{RESAMPLES} resamples of the grid",
)
AUCC, AUCC_BOOTSTRAP, AUCC_DIFFERENCE, UPLIFT_BOOTSTRAP = (
    "AUCC",
    f"{RESAMPLES} resamples of AUCC",
    f"{RESAMPLES} resamples of two AUCCs",
    f"{RESAMPLES} resamples of AUUC and Qini",
)
POSTSTRATIFIED = "poststratified EOM"
PLAIN_ONLY = (POSTSTRATIFIED, AUCC, "AUUC", "Qini", "calibration")
"""Without compiled code: nothing to load."""
RESAMPLED = (BOOTSTRAP, GRID_BOOTSTRAP, AUCC_BOOTSTRAP, AUCC_DIFFERENCE, UPLIFT_BOOTSTRAP)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        multipliers: that the loop is timed on; the time is scaled to ``MULTIPLIERS``.
        rounds, plain_rounds: turns of every candidate, and of those in plain torch; 0: none.
        repeats: of the callback's metrics; steps: rounds of training steps beside it.
        streamed: rows of the shorter and of the longer stream; resamples: of the streams.
    """

    multipliers: int
    rounds: int
    plain_rounds: int
    repeats: int
    steps: int
    streamed: tuple[int, int]
    resamples: tuple[int, ...]


FULL = Plan(100, 7, 2, 9, 8, (1_000_000, 10_000_000), (0, RESAMPLES))
QUICK = Plan(20, 2, 0, 2, 2, (500_000, 2_000_000), (RESAMPLES,))


@dataclass
class Logs:
    """Rows of a trial with predictions of noisy, concave responses.

    Attributes:
        value_hat, cost_hat: ``[N, K]`` float32, stored arm by arm; the rest ``[N]``.
    """

    value_hat: Tensor
    cost_hat: Tensor
    treatment: Tensor
    value: Tensor
    cost: Tensor
    propensity: Tensor
    user: Tensor

    @classmethod
    def draw(cls, rows: int) -> Logs:
        generator = torch.Generator().manual_seed(0)
        cost = torch.rand(TREATMENTS, rows, generator=generator)
        cost[0] = 0
        cost.cumsum_(0)
        value = 2 * torch.rand(rows, generator=generator) * cost.sqrt()
        value += 0.3 * torch.randn(TREATMENTS, rows, generator=generator)
        treatment = torch.randint(TREATMENTS, (rows,), generator=generator)
        noise = torch.randn(2, rows, generator=generator)
        seen_value, seen_cost = (x.gather(0, treatment[None])[0] for x in (value, cost))
        return cls(
            value.T,
            cost.T,
            treatment,
            seen_value + noise[0],
            seen_cost * (1 + 0.3 * noise[1]),
            torch.full((rows,), 1 / TREATMENTS),
            torch.randint(rows // 2, (rows,), generator=generator),
        )

    @property
    def logged(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.value, self.cost, self.propensity

    def first(self, rows: int) -> Logs:
        """Of the rows the first, in float64."""
        columns = (getattr(self, name)[:rows] for name in self.__dataclass_fields__)
        return Logs(*(x.double() if x.is_floating_point() else x for x in columns))

    def curve(self) -> CostCurve:
        return cost_curve(self.value_hat, self.cost_hat, self.treatment, *self.logged)

    def grid_curve(self) -> CostCurve:
        interval = matched_interval(self.value_hat, self.cost_hat, self.treatment)
        return grid_curve(grid_changes(interval, *self.logged, GRID), float(len(self.value)), GRID)

    def loop_arguments(self, by_row: bool) -> tuple[Array, ...]:
        value_hat, cost_hat = (np.ascontiguousarray(x if by_row else x.T) for x in (self.value_hat, self.cost_hat))
        return value_hat, cost_hat, self.treatment.numpy(), *(x.numpy() for x in self.logged)


def multipliers(count: int) -> Tensor:
    """Evenly spread over the middle points of the grid, float64; exact in float32."""
    start = (len(GRID) - MULTIPLIERS) // 2
    return GRID.points()[start : start + MULTIPLIERS : MULTIPLIERS // count].contiguous()


@contextmanager
def plain_torch() -> Iterator[None]:
    """The twins without compiled code."""
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        del os.environ[SWITCH]


@dataclass
class Race:
    """Seconds of processor time of each round, by candidate; those of plain torch apart."""

    compiled: dict[str, list[float]] = field(default_factory=dict)
    plain: dict[str, list[float]] = field(default_factory=dict)

    def run(self, logs: Logs, plan: Plan) -> None:
        """All candidates in turn; a first round that is not counted loads what is compiled."""
        ours = evaluations(logs)
        loops = rivals(logs, plan.multipliers)
        for number in range(plan.rounds + 1):
            say(f"candidates in turn: round {number} of {plan.rounds}")
            for name, candidate in {**loops, **ours}.items():
                if number or (name in ours and name not in PLAIN_ONLY):
                    scale = MULTIPLIERS / plan.multipliers if name in loops else 1.0
                    seconds = scale * timed(candidate)
                    if number:
                        self.compiled.setdefault(name, []).append(seconds)
        for number in range(plan.plain_rounds):
            say(f"plain torch: round {number + 1} of {plan.plain_rounds}")
            with plain_torch():
                for name, candidate in evaluations(logs, PLAIN_RESAMPLES).items():
                    scale = RESAMPLES / PLAIN_RESAMPLES if name in RESAMPLED else 1.0
                    self.plain.setdefault(name, []).append(scale * timed(candidate))

    def times(self, name: str) -> list[float]:
        """How many times faster than the faster of the two plain loops, round by round."""
        loop = min((self.compiled[x] for x in (BY_ARM, BY_ROW)), key=statistics.median)
        return ratios(loop, self.compiled[name])


def rivals(logs: Logs, count: int) -> dict[str, Callable[[], Any]]:
    by_arm, by_row = logs.loop_arguments(False), logs.loop_arguments(True)
    at = multipliers(count).float().numpy()
    return {
        BY_ARM: lambda: loop_by_arm(*by_arm, at),
        BY_ROW: lambda: loop_by_row(*by_row, at),
        TUNED: lambda: loop_tuned(*by_arm, at),
    }


def evaluations(logs: Logs, resamples: int = RESAMPLES) -> dict[str, Callable[[], Any]]:
    """What the library computes, by name; rankings are of every arm but control against control."""
    policy = (logs.value_hat, logs.cost_hat, logs.treatment)
    interval, treated = matched_interval(*policy), (logs.treatment > 0).long()
    score, other = ((x[:, 1] - x[:, 0]).contiguous() for x in (logs.value_hat, logs.cost_hat))
    ranked, outcomes = (logs.user, treated), (logs.value, logs.cost)
    grid = (interval, logs.user, *logs.logged, GRID, resamples)
    return {
        EXACT: logs.curve,
        ON_GRID: logs.grid_curve,
        BOOTSTRAP: lambda: bootstrap_curves(interval, logs.user, *logs.logged, BUDGETS, resamples),
        GRID_BOOTSTRAP: lambda: grid_resamples(*grid),
        "errors in closed form": lambda: standard_error(eom_influence(interval, *logs.logged, BUDGETS).rows),
        "… of users": lambda: standard_error(eom_influence(interval, *logs.logged, BUDGETS).rows, logs.user),
        POSTSTRATIFIED: lambda: eom_poststratified(*policy, logs.value, logs.cost, budgets=BUDGETS),
        AUCC: lambda: aucc(treated, *outcomes, score=score),
        AUCC_BOOTSTRAP: lambda: bootstrap_aucc(score, *ranked, *outcomes, resamples),
        AUCC_DIFFERENCE: lambda: paired_aucc_difference(score, other, *ranked, *outcomes, resamples),
        UPLIFT_BOOTSTRAP: lambda: bootstrap_uplift(score, *ranked, logs.value, resamples),
        "AUUC": lambda: auuc(score, treated, logs.value),
        "Qini": lambda: qini(score, treated, logs.value),
        "calibration": lambda: calibration(logs.value_hat, logs.treatment, logs.value, logs.propensity),
    }


def timed(candidate: Callable[[], Any]) -> float:
    start = time.process_time()
    candidate()
    return time.process_time() - start


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def equality_part(logs: Logs, count: int, claims: Claims) -> list[str]:
    """Distance of the curves to the loop, relative to the range of the loop's numbers."""
    few, at, rows = logs.first(min(CHECKED, len(logs.value))), multipliers(count), []
    for kind, sample, limit in (("float64", few, SAME), ("float32", logs, SAME_ROUNDED)):
        dtype = np.float64 if kind == "float64" else np.float32
        loop = loop_by_arm(*sample.loop_arguments(False), at.numpy().astype(dtype))
        for name, curve in ((EXACT, sample.curve()), (ON_GRID, sample.grid_curve())):
            point = curve.at_multiplier(at)
            found = torch.stack([point.spend, point.value], 1).numpy()
            far = float((np.abs(found - loop).max(0) / np.ptp(loop, 0)).max())
            rows.append([name, kind, f"{len(sample.value):,}", f"{far:.1e}"])
            claims.state(f"{name} against the loop in {kind}: {far:.1e}, at most {limit:g}", far <= limit)
    return [
        "## Equality with the loop",
        "",
        f"Largest difference of spend or value over {count} multipliers, relative to the range of the loop's numbers. "
        "In float32 the loop rounds its scores, and takes rows within a rounding of a tie for either arm.",
        "",
        *table(["curve", "loop in", "rows", "difference"], rows),
    ]


def race_part(race: Race, plan: Plan, claims: Claims) -> list[str]:
    """What each candidate took, and how much faster than the loop."""
    one = race.compiled[EXACT]
    rows = []
    for name, seconds in race.compiled.items():
        loop, plain = "loop" in name, race.plain.get(name)
        rows.append(
            [
                f"{name}, {MULTIPLIERS:,} multipliers" if loop else name,
                spread([1e3 * s for s in seconds], 1),
                f"{median_ms(plain):,.0f}" if plain else "–",
                spread(race.times(name), 1 if loop else 0) if loop or name in (EXACT, ON_GRID) else "–",
                f"{statistics.median(ratios(seconds, one)):.2f}",
            ]
        )
    for name, least in ((EXACT, EXACT_TIMES), (ON_GRID, GRID_TIMES)):
        faster = race.times(name)
        text = f"{name}, times faster than the loop: {spread(faster, 0)}, at least {least:g}"
        claims.state(text, statistics.median(faster) >= least)
    for name in (BOOTSTRAP, GRID_BOOTSTRAP):
        cost = ratios(race.compiled[name], one)
        text = f"{name}, in exact curves: {spread(cost)}, at most {BOOTSTRAP_TIMES:g}"
        claims.state(text, statistics.median(cost) <= BOOTSTRAP_TIMES)
    cost = ratios(race.compiled[AUCC_BOOTSTRAP], race.compiled[AUCC])
    text = f"{AUCC_BOOTSTRAP}, in single AUCCs: {spread(cost)}, at most {AUCC_TIMES:g}"
    claims.state(text, statistics.median(cost) <= AUCC_TIMES)
    areas = [a + q for a, q in zip(race.compiled["AUUC"], race.compiled["Qini"], strict=True)]
    in_singles = [
        f"{name} in single {of}: {spread(ratios(race.compiled[name], single))}"
        for name, of, single in (
            (AUCC_BOOTSTRAP, "AUCCs", race.compiled[AUCC]),
            (AUCC_DIFFERENCE, "AUCCs", race.compiled[AUCC]),
            (UPLIFT_BOOTSTRAP, "pairs of AUUC and Qini", areas),
        )
    ]
    tuned = statistics.median(ratios(race.compiled[TUNED], one))
    return [
        "## Processor time",
        "",
        f"{ROWS:,} rows × {TREATMENTS} arms, float32, one thread, {plan.rounds} rounds in turns; medians and "
        f"(quartiles). Loops are timed on {plan.multipliers} multipliers and scaled to {MULTIPLIERS:,}. They have no "
        "float64 in their scores; the limits are against the faster of the two that take an argmax. The tuned one "
        f"compares each row's own arm with the best, in blocks that stay in the cache: {tuned:.0f} exact curves. "
        f"Resamples in plain torch are timed on {PLAIN_RESAMPLES} and scaled to {RESAMPLES}. "
        + "; ".join(in_singles)
        + ".",
        "",
        *table(["", "ms", "plain torch, ms", "times faster than the loop", "in exact curves"], rows),
    ]


def memory_part(plan: Plan, claims: Claims) -> list[str]:
    """Of the streaming form, whatever streams through."""
    rows = []
    for resamples in plan.resamples:
        peaks = []
        for count in plan.streamed:
            say(f"streaming {count:,} rows, {resamples} resamples")
            peak, state, seconds = in_own_process(stream, count, resamples)
            peaks.append(peak)
            rows.append([f"{resamples}", f"{count:,}", f"{peak:.0f}", f"{state / 2**20:.2f}", f"{seconds:.1f}"])
        growth = peaks[1] - peaks[0]
        times = plan.streamed[1] // plan.streamed[0]
        text = f"{times} times the rows, {resamples} resamples: peak memory {growth:+.0f} MiB, at most {GROWTH:+g}"
        claims.state(text, growth <= GROWTH)
    return [
        "## Memory of the streaming form",
        "",
        "`StreamingOutcome` in a process of its own, rows generated in batches of 65,536 and dropped. Peak: above what "
        "the process had before, batch and temporaries included. Seconds of processor time, generation included.",
        "",
        *table(["resamples", "rows", "peak, MiB", "state, MiB", "s"], rows),
    ]


def default_steps(rounds: int, batch: int) -> list[float]:
    """Body of a process: seconds of a training step of the default model without a goal."""
    estimator_cost.BATCH = batch
    estimator_cost.OBJECTIVES.clear()
    return estimator_cost.take_turns(rounds, 2, 8).steps[estimator_cost.PLAIN]


def validation_part(plan: Plan, claims: Claims) -> list[str]:
    """The callback's metrics beside the training steps of an epoch."""
    say("validation metrics and training steps")
    rows, batch = Campaign().train_rows, OmegaConf.load(ROOT / "configs" / "data" / "campaign.yaml").batch_size
    found = in_own_process(validation, Campaign().val_rows, plan.repeats)
    epoch = statistics.median(in_own_process(default_steps, plan.steps, batch)) * rows / batch
    lines, shares = [], {name: statistics.median(seconds) / epoch for name, seconds in found.items()}
    for name, seconds in found.items():
        lines.append([name, spread([1e3 * s for s in seconds], 0), f"{100 * shares[name]:.0f}"])
    for name, rows_of, most in (("logs", "", EPOCH_SHARE), ("simulator", ", regret included", ORACLE_SHARE)):
        text = f"validation metrics{rows_of}: {100 * shares[name]:.0f} % of an epoch's training steps"
        claims.state(f"{text}, at most {100 * most:g} %", shares[name] <= most)
    return [
        "## At validation",
        "",
        f"What `AllocationMetrics` computes after an epoch: {Campaign().val_rows:,} rows × {TREATMENTS} arms, "
        f"{len(FRACTIONS)} budgets, beside the training steps of an epoch of the default campaign, {rows:,} rows: "
        f"{epoch:.2f} s of processor time, the default model without a goal, {batch:,} rows a step. On a simulator the "
        "regret against the optimum is computed too.",
        "",
        *table(["rows of", "ms", "% of the epoch"], lines),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under a minute, nothing written")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    torch.set_num_threads(1)
    claims, logs, race = Claims(), Logs.draw(ROWS), Race()
    race.run(logs, plan)
    lines = ["# Evaluation on logged rows", "", *race_part(race, plan, claims)]
    lines += equality_part(logs, plan.multipliers, claims)
    lines += memory_part(plan, claims)
    lines += validation_part(plan, claims)
    lines += ["## Limits", "", *claims.lines, "", f"{hardware()}; {versions()}", "", claims.verdict]
    print("\n".join(lines))
    if not arguments.quick:
        with atomic_path(result_file(RESULTS, "evaluation")) as path:
            path.write_text("\n".join(lines) + "\n")
    return 1 if claims.failed else 0


if __name__ == "__main__":
    sys.exit(main())
