"""Quality and cost of the marketing goal's gradient estimators: ``python benchmarks/estimators.py``.

Four parts: cosine to the exact gradient, and what the noise of outcomes leaves of the true one; what the goal adds to a
training step; a refresh on a million users; and PyEPO's SPO+ beside it, where PyEPO is installed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# Before torch is imported; inherited by every process.
os.environ["OMP_NUM_THREADS"] = "1"

import estimator_cost
import estimator_pyepo
import torch
from estimator_cost import Cost
from estimator_picture import draw
from estimator_pyepo import Rival
from estimator_quality import Quality, examine_all
from estimator_refresh import Refresh, refresh
from estimator_tables import Claims, cost_part, quality_part, refresh_part, rival_part, truth_part
from estimator_truth import LEVELS, Truth, compare
from machine import hardware, result_file, versions
from own_process import ROOT, in_own_process

from lightning_budget.atomic import atomic_path

RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "estimators.png"
TREATMENTS = (2, 5, 8)
DRAWN = (10_000, 5)
"""Users and arms of the picture."""
REFRESHED = 1_000_000


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        users: to number of trials, draws of each random estimator, and its numbers of samples or pairs.
        batches: rows of a batch; population: rows that they are cut from, at most ``cuts`` of them; seeds: campaigns.
        processes, rounds, timed: of the training steps; refreshes: repeats, for at most
            refresh_seconds; races: rounds beside PyEPO.
    """

    users: dict[int, tuple[int, int, Sequence[int]]]
    batches: Sequence[int]
    population: int
    cuts: int
    seeds: Sequence[int]
    processes: int
    rounds: int
    timed: int
    refreshes: int
    refresh_seconds: float
    races: int


FULL = Plan(
    users={1_000: (4, 4, (4, 16, 64, 256)), 10_000: (2, 3, (4, 16, 64, 256)), 100_000: (1, 2, (4, 16, 64))},
    batches=(4_096, 16_384, 65_536),
    population=131_072,
    cuts=8,
    seeds=(0, 1, 2),
    processes=3,
    rounds=30,
    timed=8,
    refreshes=9,
    refresh_seconds=60.0,
    races=15,
)
QUICK = Plan(
    users={1_000: (1, 2, (4, 16, 64))},
    batches=(4_096,),
    population=32_768,
    cuts=8,
    seeds=(0,),
    processes=1,
    rounds=8,
    timed=5,
    refreshes=2,
    refresh_seconds=5.0,
    races=4,
)


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def quality(plan: Plan) -> dict[tuple[int, int], list[Quality]]:
    """Of every estimator, by users and arms."""
    found = {}
    for users, (trials, draws, counts) in plan.users.items():
        for treatments in TREATMENTS:
            say(f"quality of estimators: {users:,} users × {treatments} arms")
            found[users, treatments] = examine_all(users, treatments, counts, draws, trials)
    return found


def truth(plan: Plan) -> dict[tuple[str, float], list[Truth]]:
    """Of every weighting, by the level of noise and the goal's entropy."""
    found = {}
    for level, noise in LEVELS.items():
        for entropy in (0.0, 1.0):
            say(f"gradient against the true one: with {level}, entropy {entropy:g}")
            args = (plan.batches, noise, entropy, plan.population, plan.cuts, plan.seeds)
            found[level, entropy] = compare(*args)
    return found


def cost(plan: Plan) -> Cost:
    """Of training steps; every process lays its memory out anew."""
    found = Cost()
    for process in range(plan.processes):
        say(f"training steps: process {process + 1} of {plan.processes}")
        found.add(in_own_process(estimator_cost.take_turns, plan.rounds, 2, plan.timed))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds, under a minute, nothing written")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    torch.set_num_threads(1)

    # What has a limit goes first: the shorter the run so far, the likelier the machine is as it was meant to be.
    steps = cost(plan)
    say(f"refreshes on {REFRESHED:,} users")
    refreshed: Refresh = in_own_process(refresh, REFRESHED, plan.refreshes, plan.refresh_seconds)
    rival: Rival | None = None
    if estimator_pyepo.installed():
        say("SPO+ of PyEPO")
        rival = in_own_process(estimator_pyepo.race, plan.races)
    qualities, truths = quality(plan), truth(plan)
    say("quality of estimators, doubly robust")
    sizes = plan.users.items()
    robust = {
        users: examine_all(users, 5, (16,), draws, trials, "doubly_robust") for users, (trials, draws, _) in sizes
    }

    claims = Claims()
    lines = ["# Gradient estimators of the marketing goal", ""]
    lines += quality_part(qualities, robust, claims)
    lines += truth_part(truths, plan.cuts, len(plan.seeds), claims)
    lines += cost_part(steps, claims)
    lines += refresh_part(refreshed, steps, claims)
    lines += rival_part(rival, claims)
    lines += ["## Limits", "", *claims.lines, "", f"{hardware()}; {versions()}", "", claims.verdict]
    print("\n".join(lines))
    if not arguments.quick:
        with atomic_path(PICTURE) as path:
            draw(path, qualities[DRAWN], *DRAWN)
        with atomic_path(result_file(RESULTS, "estimators")) as path:
            path.write_text("\n".join(lines) + "\n")
    return 1 if claims.failed else 0


if __name__ == "__main__":
    sys.exit(main())
