"""All checks of a trial at once, on a table as everything else reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lightning_budget.schema import UNKNOWN, DataSchema
from lightning_budget.table import IdList, RCTTable
from lightning_budget.trial.balance import Balance, check_balance
from lightning_budget.trial.leakage import Leakage, check_leakage
from lightning_budget.trial.levels import feature_sums
from lightning_budget.trial.logged import IdFeature, Logged, logged_trial
from lightning_budget.trial.propensity import Propensity, check_propensity
from lightning_budget.trial.rows import Rows
from lightning_budget.trial.sample_ratio import SampleRatio, check_sample_ratio
from lightning_budget.trial.verdict import Verdict


@dataclass(frozen=True)
class TrialChecks:
    """What the checks found; ``rows`` where rows were screened."""

    sample_ratio: SampleRatio
    balance: Balance
    propensity: Propensity
    leakage: Leakage
    rows: Rows | None = None

    def verdicts(self) -> dict[str, Verdict]:
        """One line a check, in the order of reading."""
        first = {} if self.rows is None else {"rows": self.rows.verdict()}
        return first | {
            "sample ratio": self.sample_ratio.verdict(),
            "balance": self.balance.verdict(),
            "propensity": self.propensity.verdict(),
            "leakage": self.leakage.verdict(),
        }

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return all(v.ok for v in self.verdicts().values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: every check by name, and its verdict under ``verdicts``."""
        checks = {
            name: check.to_dict()
            for name in ("rows", "sample_ratio", "balance", "propensity", "leakage")
            if (check := getattr(self, name)) is not None
        }
        verdicts = {name: {"ok": v.ok, "text": v.text} for name, v in self.verdicts().items()}
        return {"ok": self.ok, "verdicts": verdicts, **checks}


def check_trial(table: RCTTable, schema: DataSchema, rows: Rows | None = None) -> TrialChecks:
    """Run all checks on a table.

    Arms are drawn row by row, so what tests the draw counts every row once; sample weights enter the effective rows.

    Args:
        table: N ≥ 1 rows.
        schema: names of its arms and features.
        rows: of :func:`~lightning_budget.trial.screen_rows`, to be told beside the checks.

    Raises:
        InputError: for rows that :func:`~lightning_budget.trial.screen_rows` counts.
    """
    trial = logged_of(table, schema)
    sums = {f.name: feature_sums(trial, f) for f in trial.ids}
    return TrialChecks(
        check_sample_ratio(trial, sums),
        check_balance(trial),
        check_propensity(trial, table.weight),
        check_leakage(trial, sums),
        rows,
    )


def logged_of(table: RCTTable, schema: DataSchema) -> Logged:
    """The columns of a table as the checks read them."""
    ids = []
    for feature in schema.sparse:
        column = table.ids[feature.name]
        values, offsets = (column.values, column.offsets) if isinstance(column, IdList) else (column, None)
        if feature.ids == "managed":
            # 63 bits of a hash: levels are shared as a hashed feature's rows would be.
            values = torch.where(values == UNKNOWN, UNKNOWN, 1 + values % (feature.num_embeddings - 1))
        ids.append(IdFeature(feature.name, values, feature.num_embeddings, offsets, feature.vocabulary))
    return logged_trial(
        arms=schema.treatments,
        treatment=table.treatment,
        propensity=table.propensity,
        value=table.value,
        cost=table.cost,
        dense=table.dense,
        dense_names=schema.dense,
        ids=tuple(ids),
        user=table.user,
    )
