"""The numbers of a comparison, as values that turn into plain JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from lightning_budget.metrics.functional import PairedDifference

CONTROL, UNIFORM, ORACLE = "control", "uniform", "oracle"
TWO_STAGE, END_TO_END = "two_stage", "end_to_end"
LEVEL = 0.95

Truth = tuple[Tensor, Tensor]
"""True mean value and cost, ``[N, K]`` each."""


def label(method: str) -> str:
    """How people read the name of a method."""
    return {TWO_STAGE: "two-stage", END_TO_END: "end-to-end", UNIFORM: "uniform random"}.get(method, method)


@dataclass(frozen=True)
class Outcome:
    """What a policy does at one budget, by one way of knowing it.

    Attributes:
        value: value units per user.
        spend: currency per user; the budget, or less where the policy leaves money over.
        roi: (value − control's value) / (spend − control's spend); ``None`` unless more is spent than at control.
        low, high: 95 % bootstrap interval of the value, where one was made.
        regret: value of the oracle's optimum at the budget minus ``value``, where the truth is known.
    """

    value: float
    spend: float
    roi: float | None
    low: float | None = None
    high: float | None = None
    regret: float | None = None

    def items(self) -> Iterator[tuple[str, float | None]]:
        """Fields that exist; only ``roi`` exists as ``None``."""
        for f in fields(self):
            if (x := getattr(self, f.name)) is not None or f.name == "roi":
                yield f.name, x


@dataclass(frozen=True)
class Row:
    """One method at one budget; ``true`` is ``None`` without an oracle."""

    fraction: float
    budget: float
    method: str
    eom_hajek: Outcome
    eom_ipw: Outcome
    true: Outcome | None = None

    def to_dict(self) -> dict[str, Any]:
        """Flat keys, such as ``eom_hajek``, ``eom_hajek_spend``, ``eom_hajek_roi``, ``true_value``, ``true_spend``."""
        flat: dict[str, Any] = {"fraction": self.fraction, "budget": self.budget, "method": self.method}
        for kind in ("eom_hajek", "eom_ipw"):
            flat |= {kind if name == "value" else f"{kind}_{name}": x for name, x in getattr(self, kind).items()}
        if self.true is not None:
            flat |= {f"true_{name}": x for name, x in self.true.items()}
        return flat


@dataclass(frozen=True)
class Difference:
    """Value of ``method`` minus value of ``baseline`` at the same budgets, on common resamples of users."""

    method: str
    baseline: str
    eom_hajek: PairedDifference
    true_value: PairedDifference | None = None

    def to_dict(self) -> dict[str, Any]:
        """``eom_hajek`` and, where known, ``true_value``: each with the fields of :class:`PairedDifference`."""
        kinds = ("eom_hajek", "true_value")
        paired = {k: p for k in kinds if (p := getattr(self, k)) is not None}
        numbers = {k: {f.name: getattr(p, f.name).tolist() for f in fields(p)} for k, p in paired.items()}
        return {"method": self.method, "baseline": self.baseline, **numbers}


@dataclass(frozen=True)
class Deployment:
    """What would be served at one budget: the multiplier that meets it on *predicted* cost, applied to every user.

    Attributes:
        multiplier: λ, value per currency; ``None`` where even the cheapest arms are predicted to cost more.
        predicted_spend: currency per user.
        factual_spend: currency per user that it would really cost, by ``factual_source``.
        factual_source: ``true`` (oracle means) or ``hajek`` (estimated on the trial).
        share: users per arm, each in [0, 1].
    """

    fraction: float
    budget: float
    method: str
    multiplier: float | None
    predicted_spend: float
    factual_spend: float
    factual_source: str
    share: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """Value against spend over all multipliers, thinned; ``kind`` is ``true`` or ``eom_hajek``."""

    method: str
    kind: str
    spend: list[float]
    value: list[float]


@dataclass(frozen=True)
class Band:
    """EOM (Hájek) of a method at budgets on a grid, with the ends of its 95 % bootstrap interval.

    Attributes:
        budget: currency per user, ascending; value, low, high: value units per user.
    """

    method: str
    budget: list[float]
    value: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Report:
    """A comparison of methods under budgets.

    Attributes:
        row_count, user_count: size of the split.
        arm_share: share of rows that the trial gave each arm, by name, control first.
        value_unit, cost_unit: names of the units.
        fractions, budgets: B budgets, as fractions of ``free_spend`` and in currency per user.
        free_spend, free_spend_source: currency per user, and whose spend it is.
        has_oracle: true values are known; without them no field tells of them.
        resamples, seed, level: of the bootstrap over users.
        methods: names of the predictions compared.
        rows: every budget × control, uniform, methods, oracle.
        differences, deployments, curves: see there.
    """

    row_count: int
    user_count: int
    arm_share: dict[str, float]
    value_unit: str
    cost_unit: str
    fractions: list[float]
    budgets: list[float]
    free_spend: float
    free_spend_source: str
    has_oracle: bool
    resamples: int
    seed: int
    level: float
    methods: list[str]
    rows: list[Row]
    differences: list[Difference]
    deployments: list[Deployment]
    curves: list[Curve]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only; what is not known is absent."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["rows"] = [r.to_dict() for r in self.rows]
        plain["differences"] = [d.to_dict() for d in self.differences]
        plain["deployments"] = [asdict(d) for d in self.deployments]
        plain["curves"] = [asdict(c) for c in self.curves]
        return plain

    def numbers(self, split: str = "test") -> dict[str, float]:
        """Flat names and numbers for a logger, such as ``test/eom_hajek/end_to_end@0.1``."""
        named: dict[str, float] = {}
        for row in self.rows:
            at = f"{row.method}@{row.fraction:g}"
            named[f"{split}/eom_hajek/{at}"] = row.eom_hajek.value
            if row.true is not None:
                named[f"{split}/true_value/{at}"] = row.true.value
        for d in self.differences:
            for kind in ("eom_hajek", "true_value"):
                if (paired := getattr(d, kind)) is not None:
                    for end in ("mean", "mean_low", "mean_high"):
                        named[f"{split}/{kind}/{d.method}-{d.baseline}/{end}"] = float(getattr(paired, end))
        return named
