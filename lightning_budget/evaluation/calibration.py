"""Do predictions mean what they say, for every method, outcome and arm."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.evaluation.results import CalibrationBins, known
from lightning_budget.metrics.functional import Calibration, calibration
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable

BINS = 10


def calibrations(
    table: RCTTable, schema: DataSchema, predictions: Mapping[str, ResponsePrediction]
) -> list[CalibrationBins]:
    """Ten bins of equal size for every method × outcome × arm; bins that ties leave empty are left out."""
    found = []
    for name, p in predictions.items():
        for what, prediction, outcome in (("value", p.value, table.value), ("cost", p.cost, table.cost)):
            measured = calibration(prediction, table.treatment, outcome, table.propensity, table.weight, BINS)
            found += [_bins(name, what, arm, j, measured) for j, arm in enumerate(schema.treatments)]
    return found


def _bins(method: str, outcome: str, arm: str, j: int, c: Calibration) -> CalibrationBins:
    held = c.rows[j] > 0

    def of(x: Tensor) -> list[float]:
        return x[j][held].tolist()

    return CalibrationBins(
        method,
        outcome,
        arm,
        of(c.mean_prediction),
        of(c.mean_outcome),
        [known(x) for x in of(c.standard_error)],
        [round(n) for n in of(c.rows)],
        float(c.expected_error[j]),
        known(float(c.slope[j])),
        known(float(c.intercept[j])),
    )
