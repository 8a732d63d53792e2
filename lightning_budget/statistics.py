"""What a model needs to know of its training split: scales, means and shares; travels inside the checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema, Outcome
from lightning_budget.table import RCTTable

FLOOR = 1e-8


@dataclass(frozen=True)
class DataStatistics:
    """Moments of the training split, K treatments and D dense features, as plain numbers.

    Where rows have sample weights all of them are weighted: a row of weight 2 counts as two.

    Attributes:
        dense_mean, dense_std: D each; a standard deviation below 1e-8 counts as 1.
        arm_share: K, share of rows given each treatment.
        value_mean, cost_mean: K each, mean observed outcome of the rows given each treatment.
        value_scale, cost_scale: root mean square of the outcome over all rows (below 1e-8 counts as 1);
            1 for a binary outcome.
        weight_mean: mean sample weight, 1 where there are none.
        value_conversion, cost_conversion: K each, share of outcomes above 0 of the rows given each treatment; empty:
            unknown.
        unconverted_cost: K each, share of their cost that is of rows whose value is not above 0; empty: unknown.
        value_min: least observed value, whatever the row's weight.
    """

    dense_mean: tuple[float, ...]
    dense_std: tuple[float, ...]
    arm_share: tuple[float, ...]
    value_mean: tuple[float, ...]
    cost_mean: tuple[float, ...]
    value_scale: float
    cost_scale: float
    weight_mean: float = 1.0
    value_conversion: tuple[float, ...] = ()
    cost_conversion: tuple[float, ...] = ()
    unconverted_cost: tuple[float, ...] = ()
    value_min: float = 0.0

    @classmethod
    def from_table(cls, table: RCTTable, schema: DataSchema) -> DataStatistics:
        """Compute from the training split.

        Args:
            table: N rows, the training split and nothing else.
            schema: names of its treatments.

        Raises:
            InputError: if the table is empty or a treatment has no rows, or none with a weight above 0.
        """
        k = schema.num_treatments
        weight = None if table.weight is None else table.weight.double()
        counts = torch.bincount(table.treatment, weight, minlength=k).double()
        for name, count in zip(schema.treatments, counts.tolist(), strict=True):
            if not count > 0:
                which = "" if weight is None else " with a weight above 0"
                raise InputError(
                    f"arm {name!r} has no rows{which} in the training split of {len(table)}",
                    "every arm of `arms` in the training split",
                    "remove the arm from `arms`, or enlarge the training split",
                )
        mean, std = _column_moments(table.dense, weight)
        cost_mean = _mean_by_arm(table.cost, table.treatment, counts, weight)
        unconverted = _mean_by_arm(table.cost.where(table.value <= 0, 0.0), table.treatment, counts, weight)
        return cls(
            dense_mean=tuple(mean),
            dense_std=tuple(std),
            arm_share=tuple((counts / counts.sum()).tolist()),
            value_mean=_mean_by_arm(table.value, table.treatment, counts, weight),
            cost_mean=cost_mean,
            value_conversion=_mean_by_arm(table.value > 0, table.treatment, counts, weight),
            cost_conversion=_mean_by_arm(table.cost > 0, table.treatment, counts, weight),
            unconverted_cost=tuple(
                part / whole if whole else 0.0 for part, whole in zip(unconverted, cost_mean, strict=True)
            ),
            value_scale=_scale(table.value, schema.value_kind, weight),
            cost_scale=_scale(table.cost, schema.cost_kind, weight),
            weight_mean=1.0 if weight is None else float(weight.mean()),
            value_min=float(table.value.min()),
        )

    @property
    def free_spend(self) -> float:
        """Currency per user that giving everybody one arm costs: the most valuable of those that cost anything.

        The unit of budget fractions, 0 where no arm costs anything.
        """
        return max(zip(self.value_mean, self.cost_mean, strict=True), key=lambda arm: (arm[1] > 0, arm[0]))[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, so a checkpoint loads with ``weights_only=True``."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> DataStatistics:
        """Inverse of :meth:`to_dict`."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in state.items()}
        return cls(**plain)


def _column_moments(dense: Tensor, weight: Tensor | None) -> tuple[list[float], list[float]]:
    # Column by column: a float64 copy of the whole matrix would double the memory of a large table.
    mean, std = [], []
    for column in dense.unbind(1):
        x = column.double()
        m = _mean(x, weight)
        s = float(x.std(correction=0)) if weight is None else float(_mean((x - m).square(), weight).sqrt())
        mean.append(float(m))
        std.append(s if s > FLOOR else 1.0)
    return mean, std


def _mean(x: Tensor, weight: Tensor | None) -> Tensor:
    return x.mean() if weight is None else (x * weight).sum() / weight.sum()


def _mean_by_arm(outcome: Tensor, treatment: Tensor, counts: Tensor, weight: Tensor | None) -> tuple[float, ...]:
    x = outcome.double() if weight is None else outcome.double() * weight
    return tuple((torch.zeros_like(counts).index_add_(0, treatment, x) / counts).tolist())


def _scale(outcome: Tensor, kind: Outcome, weight: Tensor | None) -> float:
    rms = float(_mean(outcome.double().square(), weight).sqrt())
    return rms if kind == "continuous" and rms > FLOOR else 1.0
