"""How near each estimator comes to the exact gradient of the Gaussian-smoothed goal, and at what price."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from estimator_trial import Trial, cosine
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.estimators import ESTIMATORS, Gaussian, build_estimator, estimator_arguments
from lightning_budget.losses.gains import ArmsFirst, Weighting, gains
from lightning_budget.losses.measure import no_constants, score_spread

WIDTHS = {"sigma": 1.0, "temperature": 0.83, "half_width": 2.0}
"""Of Gaussian noise, in units of the spread of scores, and of the kernels that come next to it."""
COUNT_NAMES = ("pairs", "samples")
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {"ifd": ({"clip": "box"}, {"clip": "push"})}
"""Arguments that an estimator is tried with, where it is tried with more than its default."""
REFERENCE_NODES = 40
REFERENCE_USERS = 4_096
"""At a time: the reference holds several float64 matrices of them."""


@dataclass(frozen=True)
class Quality:
    """An estimator at one size.

    Attributes:
        name: in the registry; label: with what it was tried with.
        evaluations: of each multiplier's policy, a step.
        cosine: to the exact gradient, by the predictions; cosine_head: by the weights of the linear head.
        deviation, deviation_head: root mean square deviation of a draw from the mean of draws, over the size of the
            exact gradient.
        milliseconds: of processor time.
    """

    name: str
    label: str
    evaluations: int
    cosine: float
    cosine_head: float
    deviation: float
    deviation_head: float
    milliseconds: float


def tried(counts: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and config of every estimator of the registry, random ones with each number of samples or pairs."""
    for name, kind in ESTIMATORS.items():
        widths = {kind.width_name: WIDTHS[kind.width_name]} if kind.width_name in WIDTHS else {}
        of_count = [n for n in COUNT_NAMES if n in estimator_arguments(name)]
        sizes: list[dict[str, Any]] = [{n: c} for n in of_count for c in counts] or [{}]
        for variant in VARIANTS.get(name, ({},)):
            for size in sizes:
                said = [*(str(x) for x in variant.values()), *(f"{c} {n}" for n, c in size.items())]
                yield ", ".join([name, *said]), {"name": name, **widths, **variant, **size}


@dataclass(frozen=True)
class Given:
    """What estimators are given for a trial, and the gradient that they should find.

    Attributes:
        scores, gains: ``[B, K, N]`` float32; spread: ``[B]``; arm: ``[N]``.
        chain: ``[2, B]``, from scores to predicted value and cost.
        columns: ``[N, P]``; exact: ``[2, K, N]``, by the predictions.
    """

    scores: Tensor
    gains: Tensor
    spread: Tensor
    arm: Tensor
    chain: Tensor
    columns: Tensor
    exact: Tensor

    @classmethod
    def of(cls, trial: Trial, weighting: Weighting) -> Given:
        """Gains of value net of cost at each multiplier; ``doubly_robust`` with the prediction as its baseline."""
        prediction, multipliers = trial.prediction, trial.multipliers.float()
        own = ArmsFirst.of(prediction)
        shares = torch.ones_like(multipliers), -multipliers
        constants = no_constants(multipliers, trial.treatments)
        gain = gains(trial.batch, weighting, constants, own, *shares, has_base=False)
        chain, spread, scores = torch.stack(shares), spread_of(prediction, trial.multipliers), own.scores(multipliers)
        exact = _exact(scores, gain, WIDTHS["sigma"] * spread, chain)
        return cls(scores, gain, spread, trial.table.treatment, chain, trial.columns, exact)

    def by_head(self, by_prediction: Tensor) -> Tensor:
        """``[2, K, N] → [2, K, P]``."""
        return by_prediction.double() @ self.columns.double()


def spread_of(prediction: ResponsePrediction, multipliers: Tensor) -> Tensor:
    """Unit of the widths, ``[B]`` float32."""
    return score_spread(prediction, multipliers).float()


def by_prediction(gradient: Tensor, chain: Tensor) -> Tensor:
    """Sum over multipliers, ``[B, K, N] → [2, K, N]``."""
    return (chain.to(gradient) @ gradient.flatten(1)).view(2, *gradient.shape[1:])


def _exact(scores: Tensor, gain: Tensor, width: Tensor, chain: Tensor) -> Tensor:
    """By quadrature in float64 with more nodes than change anything, some users at a time."""
    estimator, parts = Gaussian(nodes=REFERENCE_NODES), []
    for a, g in zip(scores.split(REFERENCE_USERS, dim=2), gain.split(REFERENCE_USERS, dim=2), strict=True):
        found = estimator.estimate(a.double(), g.double(), width.double())
        parts.append(by_prediction(found.gradient, chain))
    return torch.cat(parts, dim=2)


def examine(given: Given, label: str, config: dict[str, Any], draws: int, seed: int = 0) -> Quality:
    """One estimator, drawn several times; cosine and time are medians, as one draw is what a step has."""
    estimator = build_estimator(config)
    exact, exact_head = given.exact, given.by_head(given.exact)
    width = estimator.width * given.spread
    found, seconds = [], []
    # A first, untimed one where it costs little: it pays for the memory that the others find.
    for d in range(draws) if estimator.is_random else range(-1, draws):
        generator = torch.Generator().manual_seed(1_000 * seed + max(d, 0))
        start = time.process_time()
        gradient = estimator.estimate(given.scores, given.gains, width, given.arm, generator).gradient
        if d >= 0:
            seconds.append(time.process_time() - start)
            found.append(by_prediction(gradient, given.chain))
    heads = [given.by_head(g) for g in found]
    return Quality(
        config["name"],
        label,
        estimator.evaluations_per_step,
        statistics.median(cosine(g, exact) for g in found),
        statistics.median(cosine(g, exact_head) for g in heads),
        _deviation(found, exact),
        _deviation(heads, exact_head),
        1e3 * statistics.median(seconds),
    )


def _deviation(draws: Sequence[Tensor], exact: Tensor) -> float:
    if len(draws) < 2:
        return math.nan
    return float(torch.stack(list(draws)).double().var(dim=0).sum().sqrt() / exact.double().norm())


def examine_all(
    users: int, treatments: int, counts: Sequence[int], draws: int, trials: int = 1, weighting: Weighting = "ipw"
) -> list[Quality]:
    """Every estimator of the registry on trials of one size; what is told is the mean over trials."""
    every: dict[str, list[Quality]] = {}
    for seed in range(trials):
        given = Given.of(Trial.draw(users, treatments, seed), weighting)
        for label, config in tried(counts):
            every.setdefault(label, []).append(examine(given, label, config, draws, seed))
    return [_mean(found) for found in every.values()]


def _mean(found: Sequence[Quality]) -> Quality:
    numbers = ("cosine", "cosine_head", "deviation", "deviation_head", "milliseconds")
    first = found[0]
    means = {n: statistics.fmean(getattr(q, n) for q in found) for n in numbers}
    return Quality(first.name, first.label, first.evaluations, **means)
