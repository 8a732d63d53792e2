"""Schema and statistics of a training split from what a scan has added up."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from lightning_budget.data.columns import ESTIMATED, MEAN, TableColumns
from lightning_budget.data.dense import dense_names
from lightning_budget.data.ids import listed_feature
from lightning_budget.data.strata import shares_of
from lightning_budget.data.stream.facts import PieceFacts, merge_moments
from lightning_budget.errors import InputError
from lightning_budget.learned import NullFill
from lightning_budget.schema import DataSchema, SparseFeature
from lightning_budget.statistics import FLOOR, DataStatistics


def learned_schema(
    facts: PieceFacts, labels: Mapping[str, Collection[str]], columns: TableColumns, name: str
) -> DataSchema:
    """As :func:`~lightning_budget.data.trial.learn_schema` of all rows in memory.

    Args:
        facts: of all pieces; labels: in the training rows, of each id feature whose labels are listed.
        name: of the file or folder, for errors.

    Raises:
        InputError: for features without a label or a number in the training split, and strata that lack an arm.
    """
    shares = None
    if columns.propensity == ESTIMATED:
        strata = sorted(facts.strata)
        shares = shares_of(name, columns, strata, np.stack([facts.strata[s] for s in strata]))
    return DataSchema(
        treatments=columns.arms,
        dense=dense_names(columns),
        sparse=tuple(_feature(feature, columns, labels, name) for feature in (*columns.categorical, *columns.lists)),
        value_kind=columns.value_kind,
        cost_kind=columns.cost_kind,
        known_cost=columns.cost_per_arm or (),
        value_unit=columns.value_unit,
        cost_unit=columns.cost_unit,
        nulls=tuple(_fill(column, columns, facts, name) for column in columns.nulls),
        shares=shares,
    )


def learned_statistics(facts: PieceFacts, columns: TableColumns, schema: DataSchema) -> DataStatistics:
    """As :meth:`~lightning_budget.statistics.DataStatistics.from_table` of all training rows in memory.

    Raises:
        InputError: if a treatment has no training row, or none that counts.
    """
    counts, weight, value, cost, value_above, cost_above, unconverted = facts.arms.T
    for arm, rows, there in zip(schema.treatments, counts.tolist(), weight.tolist(), strict=True):
        if not there > 0:
            raise InputError(
                f"arm {arm!r} has no rows{' with a weight above 0' if rows else ''} in the training split of "
                f"{int(counts.sum())}",
                "every arm of `arms` in the training split",
                "remove the arm from `arms`, or enlarge the training split",
            )
    total = weight.sum()
    mean, std = _dense_moments(facts, columns, schema)
    value_scale, cost_scale = (float(np.sqrt(square / total)) for square in facts.squares)
    return DataStatistics(
        dense_mean=tuple(mean),
        dense_std=tuple(std),
        arm_share=tuple((weight / total).tolist()),
        value_mean=tuple((value / weight).tolist()),
        cost_mean=tuple((cost / weight).tolist()),
        value_conversion=tuple((value_above / weight).tolist()),
        cost_conversion=tuple((cost_above / weight).tolist()),
        unconverted_cost=tuple((unconverted / np.where(cost > 0, cost, 1)).tolist()),
        value_scale=value_scale if schema.value_kind == "continuous" and value_scale > FLOOR else 1.0,
        cost_scale=cost_scale if schema.cost_kind == "continuous" and cost_scale > FLOOR else 1.0,
        weight_mean=float(total / counts.sum()),
        value_min=facts.value_min,
    )


def _feature(feature: str, columns: TableColumns, labels: Mapping[str, Collection[str]], name: str) -> SparseFeature:
    if (declared := columns.unlisted(feature)) is not None:
        return declared
    if not labels[feature]:
        raise InputError(
            f"{name}: column {feature!r} has no label in the training split",
            "at least one",
            "remove it from the features",
        )
    return listed_feature(feature, labels[feature], feature in columns.lists)


def _fill(column: str, columns: TableColumns, facts: PieceFacts, name: str) -> NullFill:
    value = columns.nulls[column]
    if value == MEAN:
        i = columns.dense.index(column)
        if not facts.moments[i, 0] > 0:
            raise InputError(
                f"{name}: column {column!r} has no number in the training split", "at least one", "remove it from dense"
            )
        value = facts.moments[i, 1]
    return NullFill(column, float(value), column in columns.null_flags)


def _dense_moments(facts: PieceFacts, columns: TableColumns, schema: DataSchema) -> tuple[list[float], list[float]]:
    moments = dict(zip(columns.dense, facts.moments, strict=True))
    missing = dict(zip(columns.dense, facts.missing, strict=True))
    rows = []
    for fill in schema.nulls:
        here = missing[fill.column]
        # What is filled in is float32.
        filled = np.array([here, float(np.float32(fill.value)), 0.0])
        flags = [[moments[fill.column][0], 0.0, 0.0], [here, 1.0, 0.0]]
        if fill.flag:
            moments[fill.flag_name] = merge_moments(*(np.array(f)[None] for f in flags))[0]
        moments[fill.column] = merge_moments(moments[fill.column][None], filled[None])[0]
    rows = [moments[name] for name in schema.dense]
    deviations = [float(np.sqrt(m2 / w)) for w, _, m2 in rows]
    return [float(mean) for _, mean, _ in rows], [s if s > FLOOR else 1.0 for s in deviations]
