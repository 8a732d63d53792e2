"""Several constraints at once, and the looks at all users they take: ``python benchmarks/allocation_constraints.py``.

Even (log-normal) and Pareto(1.2) spend, and concentrated costs, which are nearly the same for everyone; three and ten
constraints, and 300 segments with a budget each beside one for all. A full pass is a look at every user; the sample and
the open users that the steps look at stand beside it, as multiples of all users. Usages are recounted in extended
precision.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

# Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from machine import hardware, versions
from torch import Tensor

from lightning_budget.allocation.constrained import (
    ConstrainedProblem,
    Constraint,
    allocate_constrained,
    budget,
    least_users,
    most_users,
)
from lightning_budget.allocation.constrained.dual import solve_dual
from lightning_budget.allocation.constrained.rows import Rows

ARMS = 5
SEGMENTS = 300
PASSES = 5
DUAL_GAP = 1e-5
PRIMAL_GAP = 1e-3
SIZES, QUICK_SIZES = (1_000_000,), (40_000,)
RULES, QUICK_RULES = ("3", "10", "segments"), ("3", "10")
TAILS = ("even", "Pareto(1.2)", "concentrated")


@dataclass(frozen=True)
class Run:
    """One problem solved.

    Attributes:
        users: N; tail: of the spend; rules: which constraints.
        dual_gap: relative distance of the bound to the least one that more passes find.
        passes: looks at all users; visits: users that the steps looked at, as a multiple of N.
        gap: relative, of whole users to the bound; over: the largest usage above its limit, at most 0 if all hold.
        dual_seconds, seconds: CPU time of the multipliers, and of all.
    """

    users: int
    tail: str
    rules: str
    dual_gap: float
    passes: int
    visits: float
    gap: float
    over: float
    dual_seconds: float
    seconds: float


def predictions(users: int, tail: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Value and cost ``[N, K]`` float32, stored arms first; the dose of the last arm costs a tenth of the spend."""
    generator = torch.Generator().manual_seed(seed)
    if tail == TAILS[1]:
        spend = (1 - torch.rand(users, generator=generator)).pow(-1 / 1.2)
    else:
        spend = torch.exp(0.5 * torch.randn(users, generator=generator))
    dose = torch.arange(ARMS)[:, None] / (ARMS - 1)
    response = 0.3 * torch.rand(users, generator=generator) * (1 - torch.exp(-2 * dose))
    value = spend * (response + 0.01 * torch.randn(ARMS, users, generator=generator))
    cost = 0.1 * spend * dose
    if tail == TAILS[2]:
        cost = 0.1 * dose * (1 + 1e-4 * torch.rand(ARMS, users, generator=generator))
    return value.T, cost.T


def rules(name: str, cost: Tensor, seed: int = 1) -> list[Constraint]:
    """The constraints called ``3``, ``10`` or ``segments``; shares of what the last arm for everyone would use."""
    users, generator = len(cost), torch.Generator().manual_seed(seed)
    full = cost[:, -1].double()
    if name == "segments":
        segment = torch.randint(SEGMENTS, (users,), generator=generator)
        limit = 0.2 * torch.zeros(SEGMENTS, dtype=torch.float64).index_add_(0, segment, full)
        return [budget("segment", limit, segment), budget("all", 0.18 * float(full.sum()))]
    found = [
        budget("all", 0.25 * float(full.sum())),
        most_users("largest", [ARMS - 1], 0.15 * users),
        least_users("smallest", [1], 0.05 * users),
    ]
    for part in range(int(name) - len(found)):
        inside = torch.rand(users, generator=generator) < 0.3
        found.append(budget(f"part {part}", 0.2 * float(full[inside].sum()), inside))
    return found


def measure(sizes: Sequence[int] = SIZES, names: Sequence[str] = RULES) -> list[Run]:
    """Solve every problem once, on one thread."""
    found = []
    for users in sizes:
        for tail in TAILS:
            value, cost = predictions(users, tail)
            for name in names:
                print(f"{users:,} users, {tail}, constraints: {name}", file=sys.stderr, flush=True)
                found.append(_run(tail, name, ConstrainedProblem(value, cost, rules(name, cost))))
    return found


def overspend(problem: ConstrainedProblem, assignment: Tensor) -> float:
    """Largest usage above its limit, summed in extended precision."""
    cost = problem.cost.gather(1, assignment[:, None])[:, 0].numpy().astype(np.longdouble)
    worst = -np.inf
    for c in problem.constraints:
        used = cost if c.usage is None else np.ones_like(cost)
        if c.treatments is not None:
            used = used * np.isin(assignment.numpy(), c.treatments)
        group = np.zeros(len(cost), int) if c.users is None else c.users.numpy().astype(int) - (not c.grouped)
        total = np.zeros(c.groups, np.longdouble)
        np.add.at(total, group[group >= 0], used[group >= 0])
        over = (total - np.atleast_1d(np.asarray(c.limit, np.longdouble))) * (-1 if c.at_least else 1)
        worst = max(worst, float(over.max()))
    return worst


def _run(tail: str, name: str, problem: ConstrainedProblem) -> Run:
    users, rows = len(problem.value), Rows(problem)
    start = time.process_time()
    solved = solve_dual(rows)
    dual_seconds = time.process_time() - start
    least = min(solved.last.bound, solve_dual(rows, most_passes=12, tolerance=1e-10).last.bound)
    start = time.process_time()
    whole = allocate_constrained(problem)
    seconds = time.process_time() - start
    return Run(
        users,
        tail,
        name,
        solved.last.bound / least - 1,
        solved.passes,
        solved.visits / users,
        whole.gap / whole.dual_bound,
        overspend(problem, whole.assignment),
        dual_seconds,
        seconds,
    )


def table(runs: Sequence[Run]) -> list[str]:
    """In Markdown."""
    head = "users | spend | constraints | full passes | users seen by steps / N | dual gap | gap of whole users"
    head += " | largest usage over its limit | multipliers, CPU s | all, CPU s"
    lines = [f"| {head} |", "|---" * 10 + "|"]
    for r in runs:
        rules_of = f"{SEGMENTS} segments and one" if r.rules == "segments" else r.rules
        cells = [f"{r.users:,}", r.tail, rules_of, str(r.passes), f"{r.visits:.2f}", f"{r.dual_gap:.1e}"]
        cells += [f"{r.gap:.1e}", f"{r.over:.1e}", f"{r.dual_seconds:.2f}", f"{r.seconds:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def shortfalls(runs: Sequence[Run]) -> list[str]:
    """What misses the limits: five passes to a dual gap of 1e-5, no usage over its limit, whole users within 1e-3.

    Whole users of segments have no such limit: each segment has large users of its own, and none of the others' to
    make up for them.
    """
    found = []
    for r in runs:
        what = f"{r.rules} constraints, {r.users:,} users, {r.tail}"
        if r.passes > PASSES or r.dual_gap > DUAL_GAP:
            found.append(f"{what}: dual gap {r.dual_gap:.1e} after {r.passes} passes")
        if r.over > 0:
            found.append(f"{what}: a usage is {r.over:.1e} over its limit")
        if r.rules != "segments" and r.gap > PRIMAL_GAP:
            found.append(f"{what}: whole users leave a gap of {r.gap:.1e}")
    return found


def report(quick: bool) -> tuple[list[str], list[str]]:
    """Lines of text, and what falls short."""
    torch.set_num_threads(1)
    runs = measure(QUICK_SIZES, QUICK_RULES) if quick else measure()
    lines = ["## Several constraints", "", *table(runs), "One thread, each problem solved once."]
    return lines, shortfalls(runs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SIZES[0]:,} users, no segments, under a minute")
    lines, short = report(parser.parse_args().quick)
    verdict = f"falls short: {'; '.join(short)}" if short else "holds"
    print("\n".join([*lines, f"{hardware()}; {versions()}", "", verdict]))
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
