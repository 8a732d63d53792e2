"""What ``campaign_bound.py`` found, as tables and as claims that hold or fall short."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from campaign_regret import ALL, FEATURES, Bound, Found
from campaign_trial import FRACTIONS
from estimator_tables import Claims, table

LEAST_ACCEPTED, MOST_APART, LEAST_COVERED, MOST_COVERED, MOST_ERROR = 0.8, 0.02, 0.85, 0.95, 1e-5


def mean_error(x: Sequence[float]) -> str:
    """Mean and its standard error."""
    return f"{statistics.fmean(x):.4f}" + (f" ± {statistics.stdev(x) / len(x) ** 0.5:.4f}" if len(x) > 1 else "")


def value_part(bounds: Sequence[Bound]) -> list[str]:
    """A row for each policy."""
    lines = []
    for name in bounds[0].values:
        regret = torch.stack([b.best - b.values[name] for b in bounds])
        cells = ["", *[""] * len(FRACTIONS)]
        if name != "oracle":
            cells = [mean_error(regret.mean(1).tolist()), *(f"{x:.3f}" for x in regret.mean(0).tolist())]
        lines.append([name, f"{statistics.fmean(float(b.values[name].mean()) for b in bounds):.4f}", *cells])
    return table(["policy by", "value", "regret", *(f"at {100 * f:g} %" for f in FRACTIONS)], lines)


def draw_part(found: Sequence[Found], name: str) -> list[str]:
    """What says whether the draws can be trusted."""
    halves = [[float(h.mean()) for h in f.halves] for f in found]
    added = statistics.fmean(statistics.fmean(h) - float(f.regret.mean()) for h, f in zip(halves, found, strict=True))
    covered = torch.stack([f.covered for f in found]).mean(0)
    return [
        name,
        f"{statistics.fmean(f.acceptance for f in found):.3f}",
        *(f"{statistics.fmean(h):.4f}" for h in zip(*halves, strict=True)),
        f"{added:.4f}",
        f"{min(f.effective for f in found):.0f}",
        *(f"{100 * x:.1f}" for x in covered.tolist()),
    ]


def judge(name: str, bounds: Sequence[Bound], claims: Claims) -> None:
    """The worst of all seeds against each limit."""
    error = max(b.error for b in bounds)
    text = f"{name}: means by true traits off the campaign's by {error:.1e} of them, at most {MOST_ERROR:g}"
    claims.state(text, error <= MOST_ERROR)
    for known in (FEATURES, ALL):
        found = [b.found[known] for b in bounds]
        accepted = min(f.acceptance for f in found)
        text = f"{name}, {known}: proposals accepted with probability {accepted:.3f}, at least {LEAST_ACCEPTED:g}"
        claims.state(text, accepted >= LEAST_ACCEPTED)
        apart = max(abs(float((f.halves[0] - f.halves[1]).mean() / f.regret.mean())) for f in found)
        text = f"{name}, {known}: regrets by two halves of the draws {100 * apart:.1f} % apart, at most "
        claims.state(text + f"{100 * MOST_APART:g} %", apart <= MOST_APART)
        covered = torch.stack([f.covered for f in found])
        low, high = 100 * float(covered.min()), 100 * float(covered.max())
        text = f"{name}, {known}: 90 % intervals of traits hold {low:.1f} … {high:.1f} % of the true ones, "
        holds = low >= 100 * LEAST_COVERED and high <= 100 * MOST_COVERED
        claims.state(text + f"{100 * LEAST_COVERED:g} to {100 * MOST_COVERED:g} %", holds)
