"""Whether the table says what ``default`` is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_budget.benchmark.paired import Paired, against, best_two_stage, interval
from lightning_budget.benchmark.results import Results, mean
from lightning_budget.report.results import CONTROL, ORACLE

DEFAULT, WITHOUT_GOAL = "default", "default_two_stage"
HALF, LARGE = 0.5, 100_000
"""Share of the regret to close, on data sets with an oracle and at least so many training rows."""
RIVALS = ("published", "direct")
"""Kinds of methods that somebody published."""


@dataclass(frozen=True)
class Closed:
    """Share of the regret of the best two-stage method that another closes.

    Attributes:
        by_seed: one each.
        mean, low, high: over seeds; the interval is ``None`` of one seed.
    """

    by_seed: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None


def regret_closed(value: Sequence[float], two_stage: Sequence[float], oracle: Sequence[float]) -> float | None:
    """(V − V_two-stage) / (V_oracle − V_two-stage), mean over budgets; ``None`` where two-stage leaves no regret."""
    gaps = [o - t for o, t in zip(oracle, two_stage, strict=True)]
    if min(gaps) <= 0:
        return None
    return mean([(v - t) / gap for v, t, gap in zip(value, two_stage, gaps, strict=True)])


def closed(results: Results, dataset: str, method: str, two_stage: str) -> Closed | None:
    """Over the seeds that have both; ``None`` without an oracle, such a seed, or regret."""
    if not results.has_oracle(dataset):
        return None
    shares = [
        regret_closed(
            results.values(dataset, method, seed),
            results.values(dataset, two_stage, seed),
            results.reference(dataset, seed, ORACLE),
        )
        for seed in results.seeds(dataset, method)
        if seed in results.seeds(dataset, two_stage)
    ]
    known = tuple(s for s in shares if s is not None)
    if not known or len(known) < len(shares):
        return None
    low, high = interval(known) if len(known) > 1 else (None, None)
    return Closed(known, mean(known), low, high)


def gain(results: Results, dataset: str, method: str, seeds: Sequence[int]) -> float:
    """Value above control's, mean over budgets and seeds."""
    return mean(
        [mean(results.values(dataset, method, s)) - mean(results.reference(dataset, s, CONTROL)) for s in seeds]
    )


@dataclass(frozen=True)
class Finding:
    """One thing that must hold.

    Attributes:
        text: what was found.
        holds: ``None`` where nothing can be said yet.
    """

    text: str
    holds: bool | None


def findings(results: Results) -> list[Finding]:
    """Everything that is asked of ``default``."""
    found = []
    for dataset in results.suite.datasets:
        found += on_data_set(results, dataset)
        if (paired := against(results, dataset, DEFAULT, WITHOUT_GOAL)) is not None:
            found.append(Finding(f"{dataset}: what the goal adds to its learner {told(paired)}", paired.mean_high >= 0))
    rivals = [m for m in results.suite.methods if results.kinds.get(m) in RIVALS]
    return found + [f for m in rivals for f in against_rival(results, m)]


def on_data_set(results: Results, dataset: str) -> list[Finding]:
    """Against the best two-stage method there."""
    baseline = best_two_stage(results, dataset)
    if baseline is None or not results.seeds(dataset, DEFAULT):
        missing = DEFAULT if baseline is not None else "two-stage"
        return [Finding(f"{dataset}: no cell of {missing}", None)] if results.methods(dataset) else []
    paired = against(results, dataset, DEFAULT, baseline)
    if paired is None:
        return [Finding(f"{dataset}: {DEFAULT} and {baseline} share no seed", None)]
    if results.has_oracle(dataset) and results.any_cell(dataset)["train_rows"] >= LARGE:
        return [*_half(results, dataset, baseline), _nowhere_worse(paired)]
    text = f"{dataset}: {DEFAULT} minus {baseline} {told(paired)}"
    return [Finding(text, paired.mean_high >= 0)]


def _half(results: Results, dataset: str, baseline: str) -> list[Finding]:
    share = closed(results, dataset, DEFAULT, baseline)
    if share is None:
        return [Finding(f"{dataset}: {baseline} leaves no regret at some budget", None)]
    ends = "" if share.low is None else f" ({share.low:.0%} … {share.high:.0%})"
    text = f"{dataset}: {DEFAULT} closes {share.mean:.0%}{ends} of the regret of {baseline}, asked for {HALF:.0%}"
    return [Finding(text, share.mean >= HALF)]


def _nowhere_worse(paired: Paired) -> Finding:
    fractions = [f for f, high in enumerate(paired.high) if high < 0]
    where = f"worse at {len(fractions)} of {len(paired.high)} budgets" if fractions else "worse at no budget"
    return Finding(f"{paired.dataset}: {where}, beyond the interval, than {paired.baseline}", not fractions)


def against_rival(results: Results, method: str) -> list[Finding]:
    """Gains over control, mean over the data sets that both finished, in two units.

    Of the best two-stage method's gain, which weighs a data set by how little that is, however little is known of it;
    and of control's value, which is far from 0.
    """
    pairs: dict[str, list[tuple[float, float]]] = {"two-stage's gain over control": [], "control's value": []}
    for dataset in results.datasets():
        baseline = best_two_stage(results, dataset)
        if baseline is None:
            continue
        having = [set(results.seeds(dataset, m)) for m in (DEFAULT, method, baseline)]
        seeds = sorted(set.intersection(*having))
        if not seeds:
            continue
        control = mean([mean(results.reference(dataset, s, CONTROL)) for s in seeds])
        for unit, scale in zip(pairs, (gain(results, dataset, baseline, seeds), control), strict=True):
            if scale > 0:
                ours, theirs = (gain(results, dataset, m, seeds) / scale for m in (DEFAULT, method))
                pairs[unit].append((ours, theirs))
    found = []
    for unit, shares in pairs.items():
        if shares:
            ours, theirs = (mean(side) for side in zip(*shares, strict=True))
            text = f"{DEFAULT} {ours:.2%}, {method} {theirs:.2%} of {unit}, mean over {len(shares)} data sets"
            found.append(Finding(text, ours >= theirs))
    return found


def last_line(found: Sequence[Finding]) -> str:
    """``holds``, or ``falls short`` with what does."""
    short = [f.text for f in found if f.holds is False]
    if short:
        return f"falls short: {'; '.join(short)}"
    unknown = [f.text for f in found if f.holds is None]
    if unknown or not found:
        return f"undecided: {'; '.join(unknown) or 'no cell of ' + DEFAULT + ' beside a two-stage one'}"
    return "holds"


def told(paired: Paired) -> str:
    """The mean over budgets with its interval."""
    return f"{paired.mean:+.4g} ({paired.mean_low:+.4g} … {paired.mean_high:+.4g})"
