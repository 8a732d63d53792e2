"""Every interval of a trial, and how often such intervals hold the truth over many trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from evaluation_trial import AUCC_ARM, FRACTIONS, MODELS, Population, Trial
from torch import Tensor

from lightning_budget.metrics.functional import (
    Influence,
    MatchedInterval,
    aucc,
    bootstrap_aucc,
    bootstrap_curves,
    eom_hajek,
    eom_influence,
    matched_interval,
    normal_interval,
    percentile_interval,
    standard_error,
)
from lightning_budget.metrics.functional.checks import Normalization

PERCENTILE, NORMAL, CLOSED = "percentile", "normal", "closed form"
"""Quantiles of resamples; estimate ± 1.96 standard deviations of resamples, or standard errors in closed form."""

Ends = tuple[Tensor, Tensor]


@dataclass
class Found:
    """What trials said of one number.

    Attributes:
        truth: in the population; estimates: one for each trial; ends: low and high of each trial, by kind of interval.
    """

    truth: float
    estimates: list[float] = field(default_factory=list)
    ends: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    @property
    def trials(self) -> int:
        return len(self.estimates)

    @property
    def spread(self) -> float:
        """Standard deviation of the estimates over trials: the true one."""
        return float(torch.tensor(self.estimates).double().std())

    @property
    def bias(self) -> float:
        """Of the mean estimate, in true standard deviations."""
        return (math.fsum(self.estimates) / self.trials - self.truth) / self.spread

    def coverage(self, kind: str) -> tuple[float, float]:
        """Share of the intervals that hold the truth, and its standard error."""
        share = sum(low <= self.truth <= high for low, high in self.ends[kind]) / self.trials
        return share, math.sqrt(share * (1 - share) / self.trials)

    def width(self, kind: str) -> float:
        """Mean width over that of an interval of ±1.96 true standard deviations."""
        mean = math.fsum(high - low for low, high in self.ends[kind]) / self.trials
        return mean / (2 * 1.959964 * self.spread)


def truths(population: Population) -> dict[str, Found]:
    """The numbers that are estimated, by name, with what they are in the population."""
    a, b = (population.true_eom(model) for model in MODELS)
    found = {}
    for kind, numbers in (("EOM hajek", a), ("EOM ipw", a), ("difference", a - b)):
        for fraction, truth in zip(FRACTIONS, numbers.tolist(), strict=True):
            found[f"{kind}, {100 * fraction:.0f} %"] = Found(truth)
    found["difference, mean"] = Found(float((a - b).mean()))
    first, second = (population.true_aucc(model) for model in MODELS)
    return {**found, "AUCC": Found(first), "AUCC difference": Found(first - second)}


def simulate(
    population: Population, users: int, trials: Iterable[int], resamples: int, with_aucc: bool = True
) -> dict[str, Found]:
    """Trials of so many users each, by their seeds, and all of their intervals.

    ``with_aucc``: AUCC too, which a trial of few users may not have, its arm seeming to earn less than control.
    """
    found = truths(population)
    for seed in trials:
        trial = population.trial(users, seed)
        readings = eom_readings(population, trial, resamples, seed)
        if with_aucc:
            readings |= aucc_readings(population, trial, resamples, seed)
        for name, (estimate, ends) in readings.items():
            found[name].estimates.append(estimate)
            for kind, (low, high) in ends.items():
                found[name].ends.setdefault(kind, []).append((low, high))
    return found


Reading = tuple[float, dict[str, tuple[float, float]]]


def eom_readings(population: Population, trial: Trial, resamples: int, seed: int) -> dict[str, Reading]:
    """EOM of model a, self-normalised and not, and what it is above model b."""
    logged = (trial.value, trial.cost, trial.propensity)
    intervals = {m: matched_interval(*(x[trial.row] for x in population.predictions[m]), trial.treatment) for m in "ab"}

    def of(interval: MatchedInterval, normalization: Normalization) -> tuple[Influence, Tensor]:
        drawn = bootstrap_curves(
            interval, trial.user, *logged, population.budgets, resamples, seed, normalization=normalization
        )
        return eom_influence(interval, *logged, population.budgets, normalization), drawn

    (a, drawn_a), (b, drawn_b), (ipw, drawn_ipw) = (
        of(intervals["a"], "hajek"),
        of(intervals["b"], "hajek"),
        of(intervals["a"], "ipw"),
    )
    # The same seed gives both models the same resamples.
    difference, drawn = Influence(a.estimate - b.estimate, a.rows - b.rows), drawn_a - drawn_b
    mean = Influence(difference.estimate.mean(0, keepdim=True), difference.rows.mean(0, keepdim=True))
    labels = [f"{100 * f:.0f} %" for f in FRACTIONS]
    readings = {}
    for kind, names, influence, samples in (
        ("EOM hajek", labels, a, drawn_a),
        ("EOM ipw", labels, ipw, drawn_ipw),
        ("difference", labels, difference, drawn),
        ("difference", ["mean"], mean, drawn.mean(1, keepdim=True)),
    ):
        error = standard_error(influence.rows, trial.user)
        ends = {**_resampled(influence.estimate, samples), CLOSED: normal_interval(influence.estimate, error)}
        for i, name in enumerate(names):
            readings[f"{kind}, {name}"] = _reading(influence.estimate, ends, i)
    return readings


def aucc_readings(population: Population, trial: Trial, resamples: int, seed: int) -> dict[str, Reading]:
    """AUCC of model a's ranking for one arm against control, and what it is above model b's."""
    kept = (trial.treatment == 0) | (trial.treatment == AUCC_ARM)
    row, treatment, value, cost = (x[kept] for x in (trial.row, trial.treatment, trial.value, trial.cost))
    weighted = {"weight": 1 / trial.propensity[kept], "arm": AUCC_ARM}
    scores = torch.stack([population.scores[m][row] for m in MODELS])
    a, b = (aucc(treatment, value, cost, score=s, **weighted)[None] for s in scores)
    drawn_a, drawn_b = bootstrap_aucc(
        scores, trial.user[kept], treatment, value, cost, resamples, seed, **weighted
    ).unsqueeze(2)
    return {
        name: _reading(estimate, _resampled(estimate, drawn[~drawn[:, 0].isnan()]), 0)
        for name, estimate, drawn in (("AUCC", a, drawn_a), ("AUCC difference", a - b, drawn_a - drawn_b))
    }


def half_widths(
    population: Population, sizes: Iterable[int], trials: int, tell: Callable[[], object]
) -> dict[str, list[tuple[float, float]]]:
    """Rows, and 1.96 standard deviations of the estimate over trials, by name, for each number of users.

    ``tell`` is called after every trial.
    """
    found: dict[str, list[tuple[float, float]]] = {"EOM hajek, 30 %": [], "difference, 30 %": [], "AUCC": []}
    for users in sizes:
        rows, drawn = 0, []
        for seed in range(trials):
            trial = population.trial(users, seed)
            a, b = (
                eom_hajek(
                    *(x[trial.row] for x in population.predictions[m]),
                    trial.treatment,
                    trial.value,
                    trial.cost,
                    trial.propensity,
                    budgets=population.budgets[1],
                ).value[0]
                for m in MODELS
            )
            score, weight = population.scores["a"][trial.row], 1 / trial.propensity
            area = aucc(trial.treatment, trial.value, trial.cost, score=score, weight=weight, arm=AUCC_ARM)
            drawn.append([float(a), float(a - b), float(area)])
            rows += len(trial.row)
            tell()
        spread = torch.tensor(drawn).double().std(0)
        for name, s in zip(found, spread.tolist(), strict=True):
            found[name].append((rows / trials, 1.959964 * s))
    return found


def _resampled(estimate: Tensor, samples: Tensor) -> dict[str, Ends]:
    return {PERCENTILE: percentile_interval(samples), NORMAL: normal_interval(estimate, samples.std(0))}


def _reading(estimate: Tensor, ends: dict[str, Ends], i: int) -> Reading:
    return float(estimate[i]), {kind: (float(low[i]), float(high[i])) for kind, (low, high) in ends.items()}
