"""Whether an exported model scores as the training model does, and how fast."""

from __future__ import annotations

import statistics as stats
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation import policy_treatment
from lightning_budget.batch import RCTBatch
from lightning_budget.errors import InputError
from lightning_budget.models.learner import Learner
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import IdList, RCTTable

Scores = tuple[Tensor, Tensor, Tensor]
"""Value ``[N, K]``, cost ``[N, K]`` and treatment ``[N]``."""

Scorer = Callable[[RCTBatch, float], Callable[[], Scores]]
"""Takes a batch and a multiplier, gives the call that scores them: only that call is timed."""

TOLERANCE = 1e-5
"""Largest difference of a float file from the training model, in standard deviations of the prediction."""

ROUNDING = 1e-6
"""What float32 may add to that, as a share of the largest prediction: a few units in the last place."""

BATCH, LATENCY_USERS, CALLS = 16384, (1, 1024), 50


@dataclass(frozen=True)
class Comparison:
    """One file beside the training model.

    Attributes:
        name: of the file.
        file_bytes, table_bytes: size of the file; of its embedding tables.
        value_error: largest ``|Δvalue|`` over users and arms, value units per user.
        value_error_relative: that, over the standard deviation of the training model's values.
        cost_error: largest ``|Δcost|``, currency per user.
        changed: share of users whose treatment differs at the multiplier; ``None`` without one.
        milliseconds: median time from features to treatments for each of :data:`LATENCY_USERS`.
    """

    name: str
    file_bytes: int
    table_bytes: int
    value_error: float
    value_error_relative: float
    cost_error: float
    changed: float | None
    milliseconds: tuple[float, ...]


class Trial:
    """What the training model predicts for N users, to compare files with.

    Args:
        score: the training model's; users: N ≥ 1 of them; multiplier: λ, or ``None``.

    Raises:
        InputError: if it predicts anything that is not finite.
    """

    def __init__(self, score: Scorer, users: RCTTable, multiplier: float | None) -> None:
        self.score, self.users, self.multiplier = score, users, multiplier
        # The rule is compared even where no multiplier travels along, at a price that divides the users.
        value, cost, _ = self._scores(score, 0.0)
        if not bool(value.isfinite().all() and cost.isfinite().all()):
            raise InputError("the checkpoint's predictions are not finite", "finite numbers", "retrain the model")
        self.probe = float(value.std() / cost.std().clamp_min(1e-8)) if multiplier is None else multiplier
        self.expected = self._scores(score, self.probe)

    @classmethod
    def of(cls, model: Learner, users: RCTTable, multiplier: float | None) -> Trial:
        """With the training model itself, followed by the allocation's own policy."""

        def prepare(batch: RCTBatch, price: float) -> Callable[[], Scores]:
            def call() -> Scores:
                prediction = model(batch.dense, batch.sparse)
                return prediction.value, prediction.cost, policy_treatment(prediction.value, prediction.cost, price)

            return call

        return cls(prepare, users, multiplier)

    def reference(self, table_bytes: int) -> Comparison:
        """The training model beside itself, for its times; the size of its file is 0, to be filled in."""
        changed = None if self.multiplier is None else 0.0
        return Comparison("training model", 0, table_bytes, 0.0, 0.0, 0.0, changed, self._milliseconds(self.score))

    def compare(self, name: str, score: Scorer, file_bytes: int, table_bytes: int, exact: bool) -> Comparison:
        """Score all users with a file.

        Args:
            exact: refuse differences above :data:`TOLERANCE`; otherwise they are only stated.

        Raises:
            InputError: for such a difference, predictions that are not finite, or treatments that are not the policy's.
        """
        value, cost, treatment = self._scores(score, self.probe)
        errors = []
        for what, got, wanted in (("value", value, self.expected[0]), ("cost", cost, self.expected[1])):
            error = float((got.double() - wanted.double()).abs().max())
            allowed = TOLERANCE * float(wanted.double().std()) + ROUNDING * float(wanted.abs().max())
            if not error <= (allowed if exact else float("inf")):
                raise InputError(
                    f"{name} predicts another {what} than the checkpoint, by up to {error:.3g}",
                    f"at most {allowed:.3g}" if exact else "a finite difference",
                    "report it with the version of torch; nothing was written",
                )
            errors.append(error)
        if not torch.equal(treatment, policy_treatment(value, cost, self.probe)):
            raise InputError(
                f"{name} chooses other treatments than the policy from the same value and cost",
                "the same",
                "report it with the version of torch; nothing was written",
            )
        spread = float(self.expected[0].double().std())
        return Comparison(
            name,
            file_bytes,
            table_bytes,
            errors[0],
            errors[0] / spread if spread > 0 else float(errors[0] > 0) * float("inf"),
            errors[1],
            None if self.multiplier is None else float((treatment != self.expected[2]).double().mean()),
            self._milliseconds(score),
        )

    @torch.no_grad()
    def _scores(self, score: Scorer, multiplier: float) -> Scores:
        parts = [score(self.users.batch(i), multiplier)() for i in torch.arange(len(self.users)).split(BATCH)]
        value, cost, treatment = (torch.cat(x) for x in zip(*parts, strict=True))
        return value, cost, treatment

    @torch.no_grad()
    def _milliseconds(self, score: Scorer) -> tuple[float, ...]:
        out = []
        for n in LATENCY_USERS:
            call = score(self.users.batch(torch.arange(n) % len(self.users)), self.probe)
            times = []
            for _ in range(CALLS + 5):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            out.append(1e3 * stats.median(times[5:]))
        return tuple(out)


def random_users(schema: DataSchema, statistics: DataStatistics, n: int = 1024, seed: int = 0) -> RCTTable:
    """Users drawn from the schema: normal dense features, uniform ids, lists of none to five."""
    g = torch.Generator().manual_seed(seed)
    mean, std = torch.tensor(statistics.dense_mean), torch.tensor(statistics.dense_std)
    ids: dict[str, Tensor | IdList] = {}
    for feature in schema.sparse:
        lengths = torch.randint(0, 6, (n,), generator=g) if feature.is_list else torch.ones(n, dtype=torch.int64)
        most = 2**62 if feature.ids == "managed" else feature.num_embeddings
        values = torch.randint(0, most, (int(lengths.sum()),), generator=g)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        ids[feature.name] = IdList(values, offsets) if feature.is_list else values
    return RCTTable(
        user=torch.arange(n),
        dense=mean + std * torch.randn(n, len(schema.dense), generator=g),
        ids=ids,
        treatment=torch.zeros(n, dtype=torch.int64),
        value=torch.zeros(n),
        cost=torch.zeros(n),
        propensity=torch.ones(n),
    )
