"""What the parts of ``estimators.py`` found, as tables and as claims that hold or fall short."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from estimator_cost import BATCH, OBJECTIVES, PLAIN, Cost
from estimator_pyepo import MISSING, TREATMENTS, USERS, Rival
from estimator_quality import WIDTHS, Quality
from estimator_refresh import CALM, THREADS, Refresh
from estimator_trial import FRACTIONS
from estimator_truth import LEVELS, Truth

LEAST_COSINE = 0.99
STEP_LIMITS = {"softmax, μ": 0.10, "nes, 16 pairs, μ, entropy 0": 1.00}
"""Largest share of a step that a goal may add to it."""
REFRESH_LIMIT, RIVAL_LIMIT = 1.0, 300.0


@dataclass
class Claims:
    """Lines that state every claim, and those that do not hold."""

    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def state(self, text: str, holds: bool) -> None:
        self.lines.append(f"- {text}: {'holds' if holds else 'falls short'}")
        if not holds:
            self.failed.append(text)

    @property
    def verdict(self) -> str:
        return f"falls short: {'; '.join(self.failed)}" if self.failed else "holds"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """In Markdown, with an empty line after it."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)] + [""]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x / y for x, y in zip(a, b, strict=True)]


def quality_part(
    found: Mapping[tuple[int, int], Sequence[Quality]], robust: Mapping[int, Sequence[Quality]], claims: Claims
) -> list[str]:
    """A table for each number of arms, with gains under ipw, and one under doubly robust weighting.

    Args:
        found: by users and arms; robust: by users, at 5 arms; claims: are added to.
    """
    widths = ", ".join(f"{name} {x:g}" for name, x in WIDTHS.items())
    lines = [
        "## Cosine to the exact gradient",
        "",
        f"Trials of the embedded campaign, predicted by a linear head, {len(FRACTIONS)} budgets' multipliers, gains of "
        "value net of cost. Exact: Gaussian noise, by quadrature. Widths in units of the spread of scores: "
        f"{widths}. Every cell is by the predictions [by the head's weights]; deviation: of a draw from the mean of "
        "draws, over the size of the exact gradient; milliseconds of processor time, float32, one thread.",
        "",
    ]
    for treatments in sorted({k for _, k in found}):
        sizes = {n: x for (n, k), x in found.items() if k == treatments}
        lines += [f"{treatments} arms, ipw, by number of users:", "", *_quality_table(sizes)]
    lines += ["5 arms, doubly robust, by number of users:", "", *_quality_table(robust)]
    least = min(q.cosine for x in (*found.values(), *robust.values()) for q in x if q.name == "softmax")
    claims.state(f"cosine of softmax at all sizes: {least:.4f}, at least {LEAST_COSINE}", least >= LEAST_COSINE)
    return lines


def _quality_table(found: Mapping[int, Sequence[Quality]]) -> list[str]:
    """A row for each estimator, columns by number of users."""
    sizes = {n: {q.label: q for q in found[n]} for n in sorted(found)}
    labels = {label: q.evaluations for by_label in sizes.values() for label, q in by_label.items()}
    rows = []
    for label, evaluations in labels.items():
        at = [by_label.get(label) for by_label in sizes.values()]
        cells = ["–" if q is None else f"{q.cosine:.4f} [{q.cosine_head:.4f}]" for q in at]
        cells += ["–" if q is None else f"{_three(q.deviation)} [{_three(q.deviation_head)}]" for q in at]
        cells += ["–" if q is None else _three(q.milliseconds) for q in at]
        rows.append([label, str(evaluations), *cells])
    columns = [f"{what}, {n:,}" for what in ("cosine", "deviation", "ms") for n in sizes]
    return table(["estimator", "evaluations", *columns], rows)


def _three(x: float) -> str:
    """Three digits, 0 as such."""
    return "0" if x == 0 else f"{x:.{max(0, 2 - math.floor(math.log10(x)))}f}" if math.isfinite(x) else "–"


def truth_part(
    found: Mapping[tuple[str, float], Sequence[Truth]], batches: int, seeds: int, claims: Claims
) -> list[str]:
    """One table; a column for each level of noise, entropy and batch size."""
    first = next(iter(found.values()))
    sizes = list(first[0].cosines)
    lines = [
        "## Cosine to the true gradient",
        "",
        "By the weights of the linear head, softmax, 5 arms: gradient of a batch's estimated goal against that of the "
        f"goal with true means, over all rows. Mean over {seeds} campaign{'s' if seeds > 1 else ''} and up to "
        f"{batches} batches of each size. "
        "Entropy 0 is the plain smoothed goal; 1, the default, takes out what only sharpens the policy.",
        "",
    ]
    for (level, entropy), weightings in found.items():
        rows = [[w.weighting, *(f"{w.cosines[n]:.3f}" for n in sizes)] for w in weightings]
        title = f"Outcomes with {level}, entropy {entropy:g}, by rows of a batch:"
        lines += [title, "", *table(["weighting", *(f"{n:,}" for n in sizes)], rows)]
    level = list(LEVELS)[-1]
    quiet = {w.weighting: w.cosines for w in found[level, 0.0]}
    plain, robust = quiet["ipw"], quiet["doubly robust, own predictions"]
    text = ", ".join(f"{robust[n]:.3f} against {plain[n]:.3f}" for n in sizes)
    claims.state(
        f"cosine to the true gradient with {level}, doubly robust against ipw: {text}, nearer",
        all(robust[n] > plain[n] for n in sizes),
    )
    return lines


def cost_part(cost: Cost, claims: Claims) -> list[str]:
    """Training steps with and without goals."""
    plain = cost.steps[PLAIN]
    rows = [[PLAIN, spread([1e3 * s for s in plain], 1), "", "", ""]]
    for name in OBJECTIVES:
        added = [r - 1 for r in ratios(cost.steps[name], plain)]
        alone = [1e3 * s for s in cost.alone[name]]
        share = statistics.median(ratios(cost.alone[name], plain))
        rows.append(
            [
                name,
                spread([1e3 * s for s in cost.steps[name]], 1),
                spread([100 * a for a in added], 1),
                spread(alone, 2),
                f"{100 * share:.1f}",
            ]
        )
        if (limit := STEP_LIMITS.get(name)) is not None:
            text = f"{name}, added to a step: {spread([100 * a for a in added], 1)} %, at most {100 * limit:g} %"
            claims.state(text, statistics.median(added) <= limit)
    refreshes = ", ".join(f"{name} {s:.2f} s" for name, s in cost.refresh.items())
    return [
        "## What a goal adds to a training step",
        "",
        f"Default model on the campaign's schema under Lightning and TorchRecStrategy, batch {BATCH:,}, 5 arms, "
        f"{len(FRACTIONS)} budgets, primal; batches ready in memory, refreshes and logged steps left out. "
        f"{len(plain)} rounds in turns, processor time, one thread; medians and (quartiles). Alone: value of the goal "
        "and gradient by given predictions.",
        "",
        *table(["goal", "step, ms", "added, %", "alone, ms", "alone, % of a step without"], rows),
        f"A refresh on the {cost.rows:,} training rows, their prediction included: {refreshes} of processor time.",
        "",
    ]


def refresh_part(found: Refresh, cost: Cost, claims: Claims) -> list[str]:
    """A refresh on many users, and what stays of it."""
    calm = statistics.median(found.undisturbed)
    others = ", ".join(f"{100 * x:.0f}" for x in found.others)
    name = f"refresh on {found.users:,} users"
    claims.state(
        f"{name}: {calm:.2f} s on {THREADS} threads (others used {others} % of the cores), at most {REFRESH_LIMIT:g} s",
        calm <= REFRESH_LIMIT,
    )
    kept, allowed = max(cost.kept.values()), cost.rows * 5 * 2 * 4
    claims.state(
        f"kept between refreshes: {kept:,} bytes for {cost.rows:,} users, predictions have {allowed:,}", kept < allowed
    )
    return [
        "## A refresh on all users",
        "",
        f"{found.users:,} users × 5 arms, {len(FRACTIONS)} budgets, softmax, primal, μ, doubly robust; {THREADS} "
        f"threads, {len(found.whole)} times with new predictions: {statistics.median(found.whole):.2f} s "
        f"elapsed (least {min(found.whole):.2f}). Judged is the median of those during which others had less than "
        f"{100 * CALM:g} % of the cores, the least disturbed one if there is none. On one thread it takes "
        f"{found.solve:.2f} s of processor time for the multipliers and {found.measure:.2f} s for μ and the spread.",
        "",
        f"Memory on top of predictions and outcomes: {found.peak_mib:.0f} MiB at its peak. What stays: "
        f"{found.state_bytes:,} bytes of numbers by budget, and the treatments of a sample of users, "
        f"{found.sample_bytes:,} bytes; predictions of all users would be {found.prediction_bytes:,}.",
        "",
    ]


def rival_part(found: Rival | None, claims: Claims) -> list[str]:
    """Beside PyEPO, or that it is missing."""
    lines = ["## Beside PyEPO's SPO+", ""]
    if found is None:
        return [*lines, MISSING, ""]
    rows = [
        [name, spread([1e3 * s for s in seconds], 2), spread(ratios(found.theirs, seconds), 0)]
        for name, seconds in (
            ("softmax with μ", found.ours),
            ("… with multipliers and μ of this batch", found.ours_anew),
            ("SPO+, GLOP", found.theirs),
        )
    ]
    faster = ratios(found.theirs, found.ours)
    claims.state(
        f"step of softmax with μ, times faster than SPO+: {spread(faster, 0)}, at least {RIVAL_LIMIT:g}",
        statistics.median(faster) >= RIVAL_LIMIT,
    )
    return [
        *lines,
        f"{USERS:,} users × {TREATMENTS} arms, {len(FRACTIONS)} budgets, forward and backward, predictions new at "
        f"every step; {found.versions}; processor time, one thread. SPO+ solves a linear program for each budget; "
        f"their spend is over the budget by at most {found.overspend:.1e} of it.",
        "",
        *table(["step", "ms", "SPO+ over it"], rows),
    ]
