"""The served policy: one user, a million at once, and a paced day: ``python benchmarks/allocation_policy.py``.

Times are of the processor, on one thread, candidates in turn, medians: other processes hardly change them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

# Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from machine import hardware, versions
from torch import Tensor

from lightning_budget.allocation import PacedPolicy, PricePolicy, SlopeSketch, allocate, policy_treatment
from lightning_budget.allocation.price_policy import best_treatment

TREATMENTS = 5
USERS, QUICK_USERS = 1_000_000, 100_000
SINGLE = 20_000
ONE_USER_LIMIT = 20.0
"""Microseconds."""

BATCH_LIMIT = 2.0
"""Times one streaming read of value and cost and one write of the answer: memory speed."""

SPEND_LIMIT = 0.02
"""By how much of the budget a paced day may miss it."""

BIAS, MORE = 1.3, 1.25
"""Of the day: what treatments really cost over what was predicted, and users over those expected."""


@dataclass(frozen=True)
class PolicyCost:
    """What the served policy takes.

    Attributes:
        users: N of the batch, K = 5, float32, storage contiguous over users.
        one_user: microseconds of the processor for one user, by way of choosing.
        batch: milliseconds for N users, by way; ``read`` is one streaming read of value and cost, ``write`` one write
            of N int64.
        fixed, paced: spend over budget of a day with costs and traffic other than foreseen; then value over the best
            in hindsight.
    """

    users: int
    one_user: dict[str, float]
    batch: dict[str, float]
    fixed: tuple[float, float]
    paced: tuple[float, float]

    @property
    def memory(self) -> float:
        """Milliseconds that no batch can do without: the read and the write."""
        return self.batch["read"] + self.batch["write"]

    @property
    def holds(self) -> bool:
        """Whether one user and a batch are as fast as promised, and the paced day ends at its budget."""
        return (
            max(self.one_user.values()) <= ONE_USER_LIMIT
            and self.batch["PricePolicy"] <= BATCH_LIMIT * self.memory
            and abs(self.paced[0] - 1) <= SPEND_LIMIT
        )

    def lines(self) -> list[str]:
        """A part of a report."""
        return [
            f"## The served policy, {TREATMENTS} treatments",
            "",
            "| one user in plain Python | µs |",
            "|---|---|",
            *(f"| {name} | {us:.2f} |" for name, us in self.one_user.items()),
            "",
            f"| {self.users:,} users at once | ms | of read and write |",
            "|---|---|---|",
            *(f"| {name} | {ms:.2f} | {ms / self.memory:.2f}× |" for name, ms in self.batch.items()),
            "",
            f"| a day with {BIAS}× the costs and {MORE}× the users | of the budget | of the best in hindsight |",
            "|---|---|---|",
            *(
                f"| {name} | {spend:.2%} | {value:.2%} |"
                for name, (spend, value) in (("fixed multiplier", self.fixed), ("paced", self.paced))
            ),
            "",
            "Processor time, one thread, candidates in turn, medians.",
        ]


def measure(users: int = USERS, rounds: int = 15) -> PolicyCost:
    """Run everything; seconds for a million users."""
    torch.set_num_threads(1)
    value, cost = predictions(users, seed=0)
    sketch = SlopeSketch().add(value[: users // 10], cost[: users // 10])
    multiplier = sketch.multiplier(0.25).multiplier
    names = tuple(f"arm {j}" for j in range(TREATMENTS))
    price, pace = PricePolicy(multiplier, names), PacedPolicy(sketch, 0.25 * SINGLE * rounds, SINGLE * rounds)
    rows = list(zip(value[:SINGLE].tolist(), cost[:SINGLE].tolist(), strict=True))

    def singly(choose: Callable[[Sequence[float], Sequence[float]], int]) -> Callable[[], object]:
        return lambda: [choose(v, c) for v, c in rows]

    one_user = in_turn({"PricePolicy.choose": singly(price.choose), "PacedPolicy.choose": singly(pace.choose)}, rounds)
    v, c, by_user = value.T.numpy(), cost.T.numpy(), (value.contiguous(), cost.contiguous())
    batch = in_turn(
        {
            "read": lambda: (v.max(), c.max()),
            "write": lambda: torch.full((users,), 1),
            "policy_treatment": lambda: policy_treatment(value, cost, multiplier),
            "PricePolicy": lambda: price(value, cost),
            "PricePolicy, storage user by user": lambda: price(*by_user),
            "SlopeSketch.add": lambda: SlopeSketch().add(value, cost),
        },
        rounds,
    )
    return PolicyCost(
        users,
        {name: 1e6 * s / SINGLE for name, s in one_user.items()},
        {name: 1e3 * s for name, s in batch.items()},
        *days(sketch, multiplier),
    )


def predictions(users: int, seed: int) -> tuple[Tensor, Tensor]:
    """Value and cost ``[N, 5]`` float32 of users with a free control, stored arm by arm."""
    g = torch.Generator().manual_seed(seed)
    cost = torch.cat([torch.zeros(1, users), torch.rand(TREATMENTS - 1, users, generator=g).cumsum(0)])
    noise = 0.1 * torch.randn(TREATMENTS, users, generator=g)
    return (2 * torch.rand(1, users, generator=g) * cost.sqrt() + noise).T, cost.T


def in_turn(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of processor time of each, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            start = time.thread_time()
            run()
            if turn:
                seconds[name].append(time.thread_time() - start)
    return {name: median(s) for name, s in seconds.items()}


def days(sketch: SlopeSketch, multiplier: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Spend over budget and value over the best in hindsight, at a fixed multiplier and paced."""
    expected = 20_000
    budget, number = 0.25 * expected, int(MORE * expected)
    value, cost = predictions(number, seed=1)
    best = allocate(value, BIAS * cost, budget).value
    paced = PacedPolicy(sketch, budget, expected)
    rows = list(zip(value.tolist(), cost.tolist(), strict=True))

    def run(choose: Callable[[Sequence[float], Sequence[float]], int], every: int | None) -> tuple[float, float]:
        spent = earned = 0.0
        for i, (v, c) in enumerate(rows, start=1):
            # Whoever comes when the money is gone gets nothing, paced or not.
            arm = choose(v, c) if spent < budget else 0
            spent, earned = spent + BIAS * c[arm], earned + v[arm]
            if every and i % every == 0:
                paced.report(spent, i / number)
        return spent / budget, earned / best

    return run(lambda v, c: best_treatment(v, c, multiplier), None), run(paced.choose, 100)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer users and rounds")
    quick = parser.parse_args().quick
    found = measure(QUICK_USERS, 5) if quick else measure()
    print("\n".join([*found.lines(), "", f"{hardware()}; {versions()}"]))
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main())
