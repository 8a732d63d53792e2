"""What any learner can reach on the embedded campaign: ``python benchmarks/campaign_bound.py``.

Part of a user shows in nothing, and the rest in noise. Here everything about the campaign is known but the users'
traits; they are inferred from the rows that learners train on, and coupons are allocated by posterior means. One
thread.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

# Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from campaign_posterior import LEAPS, STEP
from campaign_regret import ALL, FEATURES, SIGN, Bound
from campaign_tables import draw_part, judge, value_part
from campaign_traits import TRAITS
from campaign_trial import FEW, FRACTIONS
from estimator_tables import Claims, table
from machine import hardware, result_file, versions
from own_process import ROOT
from rich.console import Console
from rich.progress import track

from lightning_budget.atomic import atomic_path
from lightning_budget.campaign import Campaign

RESULTS = ROOT / "benchmarks" / "results"
CATALOGUE = {
    "campaign": Campaign(train_rows=120_000, val_rows=120_000, test_rows=60_000),
    "two_arms": Campaign(train_rows=120_000, val_rows=120_000, test_rows=60_000, face_values=(0.0, 7.0)),
}
"""Data sets of configs/benchmark.yaml."""


@dataclass(frozen=True)
class Plan:
    """How much is drawn.

    Attributes:
        seeds: of campaigns.
        count, warm_up: draws of every trait, and those before them.
        shrink: by what users and rows are divided.
    """

    seeds: tuple[int, ...]
    count: int
    warm_up: int
    shrink: int = 1


FULL = Plan((500, 501, 502, 503, 504), 240, 100)
QUICK = Plan((500,), 200, 60, 8)


def scaled(campaign: Campaign, seed: int, shrink: int) -> Campaign:
    c = campaign
    rows = {name: getattr(c, name) // shrink for name in ("train_rows", "val_rows", "test_rows", "users")}
    return replace(c, seed=seed, **rows)


def report(bounds: Mapping[str, Sequence[Bound]], plan: Plan) -> tuple[list[str], Claims]:
    """Lines in Markdown, and what holds."""
    claims = Claims()
    c = scaled(CATALOGUE["campaign"], 0, plan.shrink)
    lines = [
        "# What any learner can reach on the campaign",
        "",
        f"The embedded campaign, {c.train_rows:,} training and {c.test_rows:,} test rows of {c.users:,} users, seeds "
        f"{', '.join(map(str, plan.seeds))}; `campaign` has five arms, `two_arms` control and the coupon of 7. All "
        "constants of the campaign are known here, effects of cities, tiers, hours and categories included. What is "
        "hidden is each user: six traits, inferred from the features of their training rows and of the test row "
        f"(*{FEATURES}*), or from these and the observed arms, purchases, spends and redemptions (*{ALL}*). Coupons "
        "are allocated by the posterior means of value and cost. Values are true ones per test row, mean over budgets "
        f"of {', '.join(f'{100 * f:g}' for f in FRACTIONS)} % of what the oracle spends without a budget, at the true "
        "spend; the oracle allocates by the true means. Regret: oracle's value minus the policy's; mean over seeds ± "
        "its standard error.",
        "",
        "Posterior means maximise the expected value at every price of budget. So no learner that trains on these rows "
        f"can, whatever its form, on average over such campaigns leave less regret than *{ALL}*: that much is in no "
        "data, and a learner has the constants to learn besides. On a single campaign chance may favour it. Validation "
        "rows are not in here, as they choose learners and train none, and every test row is allocated by itself. Two "
        "things are not exact:",
        "",
        "- Monte Carlo error. What the draws add to the regret falls in inverse proportion to their number, so it is "
        "about what half of them leave beyond what all do: *added*, below.",
        "- One simplification: users of thrift above 0 swap half of the full-price categories that they view for "
        f"others, and this is not used. It could tell the sign of thrift at best. *{SIGN}* is told that sign of every "
        "user, so the bound lies, but for chance, between the last two rows of each table.",
        "",
    ]
    for name, found in bounds.items():
        lines += [f"## {name}", "", *value_part(found)]
        judge(name, found, claims)
    head = ["", "accepted", "first half", "second half", "added", "worth", *TRAITS]
    rows = [
        draw_part([b.found[known] for b in found], f"{name}, {known}")
        for name, found in bounds.items()
        for known in (FEATURES, ALL)
    ]
    lines += [
        "## Draws",
        "",
        f"Hamiltonian Monte Carlo, {plan.count} draws after {plan.warm_up}, {LEAPS} leaps of {STEP:g} posterior "
        f"standard deviations each. A test row of a user with fewer than {FEW} training rows has a chain of its own; "
        "the others weigh their user's draws by the likelihood of their own features, and *worth* is the number of "
        "equal weights that they count as, in the row at the first percentile. Accepted: probability. Halves: regret "
        "by the first and the second half of the draws. Then the share of users with training rows whose trait lies "
        "between the 5 and 95 % quantiles of the draws, in %; habit, trade-up and half dose show in outcomes alone.",
        "",
        *table(head, rows),
        "## Limits",
        "",
        "The worst seed.",
        "",
        *claims.lines,
        "",
        f"{hardware()}; {versions()}",
        "",
        claims.verdict,
    ]
    return lines, claims


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small campaign, under a minute, nothing written")
    parser.add_argument("--seeds", type=int, nargs="+", help="of campaigns; nothing written")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    if arguments.seeds:
        plan = replace(plan, seeds=tuple(arguments.seeds))
    torch.set_num_threads(1)
    steps = 2 * len(plan.seeds) * len(CATALOGUE)
    shown = iter(track(range(steps), "posteriors", steps, console=Console(stderr=True)))
    next(shown)
    bounds = {
        name: [Bound.of(scaled(campaign, seed, plan.shrink), plan.count, plan.warm_up, shown) for seed in plan.seeds]
        for name, campaign in CATALOGUE.items()
    }
    lines, claims = report(bounds, plan)
    print("\n".join(lines))
    if not arguments.quick and not arguments.seeds:
        with atomic_path(result_file(RESULTS, "campaign_bound")) as path:
            path.write_text("\n".join(lines) + "\n")
    return 1 if claims.failed else 0


if __name__ == "__main__":
    sys.exit(main())
