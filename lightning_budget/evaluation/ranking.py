"""AUCC, AUUC and Qini of every method for every arm against control, and paired differences to a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.evaluation.results import Paired, Ranking, RankingDifference, known
from lightning_budget.metrics.functional import aucc, auuc, poisson_weights, qini, qini_curve, uplift_curve
from lightning_budget.report.paired import baseline_of
from lightning_budget.report.progress import Tracker, untracked
from lightning_budget.report.results import LEVEL
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable

MAX_RESAMPLED = 40_000_000
"""Rows times resamples, over all arms and methods: about ten seconds."""
MIN_RESAMPLES = 50
_CHUNK_ELEMENTS = 1 << 22


def rankings(table: RCTTable, schema: DataSchema, predictions: Mapping[str, ResponsePrediction]) -> list[Ranking]:
    """Every method × arm, rows weighted by 1 / p."""
    pairs = [_pair(table, j) for j in range(1, schema.num_treatments)]
    return [
        _ranking(name, arm, pair, pair.scores(p))
        for name, p in predictions.items()
        for arm, pair in zip(schema.treatments[1:], pairs, strict=True)
    ]


def ranking_differences(
    table: RCTTable,
    schema: DataSchema,
    predictions: Mapping[str, ResponsePrediction],
    resamples: int,
    seed: int,
    track: Tracker = untracked,
) -> list[RankingDifference]:
    """Every method minus the baseline, arm by arm, on common resamples of users.

    No more resamples than ``resamples``, nor than ``MAX_RESAMPLED`` allows; nothing where that is fewer than 50, which
    is too few for a standard deviation.
    """
    baseline = baseline_of(predictions)
    others = [name for name in predictions if name != baseline]
    pairs = [_pair(table, j) for j in range(1, schema.num_treatments)]
    rows = len(predictions) * sum(len(pair.row) for pair in pairs)
    resamples = min(resamples, MAX_RESAMPLED // max(rows, 1))
    if not others or resamples < MIN_RESAMPLES:
        return []
    found = []
    for arm, pair in track(list(zip(schema.treatments[1:], pairs, strict=True)), "Rankings"):
        counts = poisson_weights(table.user[pair.row], resamples, seed)
        drawn = {name: _measures(pair, pair.scores(p), counts) for name, p in predictions.items()}
        for name in others:
            paired = [_paired(a - b) for a, b in zip(drawn[name], drawn[baseline], strict=True)]
            found.append(RankingDifference(name, baseline, arm, resamples, *paired))
    order = {name: i for i, name in enumerate(predictions)}
    return sorted(found, key=lambda d: order[d.method])


@dataclass(frozen=True)
class _Pair:
    """Rows of control and one arm; ``[n]`` each. Weights: 1 / p, the least scaled to 1, times sample weights."""

    arm: int
    row: Tensor
    treated: Tensor
    value: Tensor
    cost: Tensor
    weight: Tensor

    def scores(self, p: ResponsePrediction) -> tuple[Tensor, Tensor]:
        """Predicted gains of value and cost of the arm over control, ``[n]`` each."""
        value, cost = (x[self.row].double() for x in (p.value, p.cost))
        return value[:, self.arm] - value[:, 0], cost[:, self.arm] - cost[:, 0]


def _pair(table: RCTTable, arm: int) -> _Pair:
    row = ((table.treatment == 0) | (table.treatment == arm)).nonzero().squeeze(1)
    p = table.propensity[row].double()
    treated = (table.treatment[row] == arm).long()
    weight = p.max() / p if table.weight is None else table.weight[row].double() * p.max() / p
    return _Pair(arm, row, treated, table.value[row], table.cost[row], weight)


def _ranking(method: str, arm: str, pair: _Pair, scores: tuple[Tensor, Tensor]) -> Ranking:
    uplift, perfect_share = (f(scores[0], pair.treated, pair.value, pair.weight) for f in (auuc, qini))
    # As one weighting of several: what is not defined is NaN instead of an error.
    return Ranking(
        method,
        arm,
        known(float(_aucc(pair, scores, pair.weight[None])[0])),
        float(uplift.area),
        known(float(uplift.normalized)),
        float(perfect_share.above_random),
        known(float(perfect_share.normalized)),
    )


def _aucc(pair: _Pair, scores: tuple[Tensor, Tensor], weight: Tensor) -> Tensor:
    value, cost = scores
    return aucc(pair.treated, pair.value, pair.cost, value_gain_hat=value, cost_gain_hat=cost, weight=weight)


def _measures(pair: _Pair, scores: tuple[Tensor, Tensor], counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """AUCC, AUUC and Qini of the rows as they are and of R resamples, ``[1 + R]`` each."""
    chunks: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in counts.split(max(1, _CHUNK_ELEMENTS // max(len(pair.row), 1))):
        weight = part * pair.weight
        if not chunks:
            weight = torch.cat([pair.weight[None], weight])
        curve = (scores[0], pair.treated, pair.value, weight)
        chunks.append((_aucc(pair, scores, weight), uplift_curve(*curve).area, qini_curve(*curve).above_random))
    first, second, third = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return first, second, third


def _paired(difference: Tensor) -> Paired | None:
    if not bool(torch.isfinite(difference).all()):
        return None
    estimate, error = float(difference[0]), float(difference[1:].std())
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    return Paired(estimate, error, estimate - half, estimate + half)
