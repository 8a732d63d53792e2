"""The allocator beside what it is measured against: ``python benchmarks/allocation.py``.

Five arms, single precision, stored arm by arm, resident in memory. Then, where they are, constraints, the served policy
and tables larger than memory.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

# Before torch is imported; inherited by every process.
os.environ["OMP_NUM_THREADS"] = "1"

import allocation_policy
from allocation_cost import BUDGETS, Case, exponent, extra_memory, highs, solve
from estimator_tables import Claims, table
from machine import hardware, result_file, versions
from own_process import ROOT, in_own_process

from lightning_budget.atomic import atomic_path

RESULTS = ROOT / "benchmarks" / "results"
CASES = ("even", "Pareto(1.2)", "concentrated")
PARTS = ("allocation_constraints", "allocation_stream")


@dataclass(frozen=True)
class Plan:
    """How much is measured: users of the small and the large problems, rounds, users given to HiGHS."""

    small: int
    large: int
    rounds: int
    solved: tuple[int, ...]


FULL = Plan(1_000_000, 10_000_000, 9, (100_000, 1_000_000))
QUICK = Plan(100_000, 1_000_000, 3, (20_000,))


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def time_part(cases: list[Case]) -> list[str]:
    """One row a way and problem."""
    rows = [
        [f"{c.users:,} {c.name}", way, f"{ms:,.2f}", f"{ms / c.ms['one read']:,.1f}×"]
        for c in cases
        for way, ms in c.ms.items()
    ]
    quality = [[f"{c.users:,} {c.name}", f"{c.gap:.1e}", f"{c.increment:.1e}", f"{c.overspend:.1e}"] for c in cases]
    return [
        *table(("users and costs", "way", "ms", "of one read"), rows),
        "Processor time of one thread, candidates in turn, medians. Bisection: 60 passes, six of them timed.",
        "",
        *table(("users and costs", "relative gap", "one user's value over the optimum", "spend less budget"), quality),
    ]


def state(cases: list[Case], solved: dict[int, tuple[float, float]], gib: tuple[float, float], claims: Claims) -> None:
    """What the allocator promises, and whether it holds."""
    small, large = cases[0], cases[len(CASES)]

    def limit(what: str, found: float, most: float) -> None:
        claims.state(f"{what}: {found:.3g}, at most {most:g}", found <= most)

    def least(what: str, found: float, fewest: float) -> None:
        claims.state(f"{what}: {found:,.3g}×, at least {fewest:,g}×", found >= fewest)

    for n, (_, difference) in solved.items():
        limit(f"{n:,} users, bound against HiGHS", difference, 1e-6)
    limit("extra memory over the input", gib[0] / gib[1], 0.1)
    for c in cases:
        where = f"{c.users:,} {c.name}"
        limit(f"{where}, gap", c.gap, max(c.increment, 1e-12))
        claims.state(f"{where}, spend recounted within the budget", c.overspend <= 0)
    if small.users < FULL.small:
        return
    limit(f"{small.users:,} {small.name}, gap", small.gap, 1e-6)
    users = f"{small.users:,}"
    least(f"{users} users, faster than bisection, compiled", small.over("bisection", "compiled"), 50)
    least(f"{users} users, faster than bisection, torch", small.over("bisection", "torch"), 8)
    seconds, _ = solved[small.users]
    least(f"{users} users, faster than HiGHS", 1e3 * seconds / small.ms["compiled"], 3_000)
    users = f"{large.users:,}"
    limit(f"{users} users, compiled over one read", large.over("compiled", "one read"), 5)
    limit(f"{users} users, torch over one read", large.over("torch", "one read"), 40)
    limit(f"{users} users, warm over one read", large.over("compiled, warm", "one read"), 2.5)
    limit("scaling exponent", exponent(small, large, "compiled"), 1.05)
    for c in (small, large):
        many = c.over(f"{BUDGETS} budgets' multipliers", "one budget's multiplier")
        limit(f"{c.users:,} users, {BUDGETS} budgets over one", many, 2)


def other_parts(quick: bool, claims: Claims) -> list[str]:
    """Of the modules that are there: ``report(quick)`` gives the lines of a module and what falls short."""
    lines: list[str] = []
    for name in PARTS:
        if find_spec(name) is None:
            continue
        report = getattr(import_module(name), "report", None)
        if report is None:
            lines += [f"`python benchmarks/{name}.py` reports on its own.", ""]
            continue
        say(name)
        part, shortfalls = report(quick)
        lines += [*part, ""]
        for text in shortfalls:
            claims.state(text, False)
    policy = allocation_policy.measure(*((allocation_policy.QUICK_USERS, 5) if quick else ()))
    claims.state("the served policy", policy.holds)
    return [*lines, *policy.lines(), ""]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer users and rounds, under a minute, nothing written")
    quick = parser.parse_args().quick
    plan, claims = QUICK if quick else FULL, Claims()

    cases = []
    for users in (plan.small, plan.large):
        for name in CASES:
            say(f"{users:,} users, {name} costs")
            cases.append(in_own_process(solve, name, users, plan.rounds, users == plan.small and name == CASES[0]))
    say("peak memory")
    gib = in_own_process(extra_memory, plan.large)
    solved = {}
    for users in plan.solved:
        say(f"HiGHS, {users:,} users")
        solved[users] = in_own_process(highs, users)
    state(cases, solved, gib, claims)

    lines = ["# The allocator", "", *time_part(cases)]
    rows = [[f"{n:,}", f"{seconds:.1f}", f"{difference:.1e}"] for n, (seconds, difference) in solved.items()]
    lines += table(("users", "HiGHS interior point with crossover, s", "relative difference of the bounds"), rows)
    lines += [f"Peak beyond the input, {plan.large:,} users: {gib[0] * 1024:.0f} MiB of {gib[1] * 1024:.0f} MiB.", ""]
    lines += other_parts(quick, claims)
    lines += ["## Limits", "", *claims.lines, "", f"{hardware()}; {versions()}", "", claims.verdict]
    print("\n".join(lines))
    if not quick:
        with atomic_path(result_file(RESULTS, "allocation")) as path:
            path.write_text("\n".join(lines) + "\n")
    return 1 if claims.failed else 0


if __name__ == "__main__":
    sys.exit(main())
