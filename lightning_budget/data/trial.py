"""A randomized trial from a file, in three splits: Parquet, csv and csv.gz."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_budget.data.collisions import Collisions, collisions_in
from lightning_budget.data.columns import ESTIMATED, TableColumns
from lightning_budget.data.dense import dense_names, learn_fills
from lightning_budget.data.files import File, read_columns
from lightning_budget.data.ids import feature_of
from lightning_budget.data.outcomes import treatment_of, weight_of
from lightning_budget.data.screening import assigned, screened
from lightning_budget.data.share_check import LEVEL, Assignments, check_arm_shares, checks_shares
from lightning_budget.data.splits import SPLITS, SplitRule, split_of
from lightning_budget.data.straddling import settle
from lightning_budget.data.strata import learn_shares
from lightning_budget.data.trial_rows import trial_rows
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable
from lightning_budget.trial.rows import Kind, Rows


@dataclass(frozen=True)
class Trial:
    """A randomized trial as read from a file.

    Attributes:
        splits: ``train``, ``val`` and ``test``, rows in the order of the file.
        schema: names, vocabularies and what else the training split has taught.
        rows: what was left out; ``None`` where nothing was asked to be.
        collisions: of the training split's ids, of every hashed and managed feature.
    """

    splits: dict[str, RCTTable]
    schema: DataSchema
    rows: Rows | None
    collisions: tuple[Collisions, ...] = ()


def read_trial(
    path: str | Path,
    columns: TableColumns,
    split: SplitRule | Sequence[float] = (0.6, 0.2, 0.2),
    split_seed: int = 0,
    schema: DataSchema | None = None,
    exclude: Sequence[Kind] = (),
    check_shares: float = LEVEL,
) -> Trial:
    """Read a trial and split it.

    By default a user's rows all go to one split, a function of ``split_seed`` and the user; without a user column rows
    with equal features go together. Vocabularies, what stands for null and estimated propensities are learned on the
    training split.

    Args:
        path: the file or folder.
        columns: what its columns mean.
        split: a rule, or the shares of the users for train, val and test; they sum to 1.
        split_seed: names the split, where ``split`` is no rule.
        schema: encode by this schema (a checkpoint's) instead of learning one.
        exclude: kinds of unusable rows to leave out, and count, see :func:`~lightning_budget.trial.screen_rows`.
        check_shares: refuse propensities that arm counts contradict, where the probability of counts so far off is
            below this level; 0: no test.

    Raises:
        InputError: for anything amiss, naming file and column; nothing is guessed, or filled in unasked, and no row is
            left out unasked.
    """
    rule = split if isinstance(split, SplitRule) else SplitRule(tuple(split), split_seed)
    file = read_columns(path, columns.roles() + rule.roles(columns))
    tested = checks_shares(columns, check_shares)
    rows = None
    if exclude:
        if tested:
            # Before rows leave for their outcomes, which may depend on the arm.
            given = Assignments.of_file(assigned(file, columns), columns)
            check_arm_shares(given, columns.arms, str(path), check_shares)
        file, rows = screened(file, columns, exclude)
    part = split_of(file, columns, rule)
    if rule.by != "user":
        _check_filled(file, part, rule)
        if columns.user is not None:
            part = settle(file[columns.user], part, rule.on_straddling)
            _check_filled(file, part, rule)
    if schema is None:
        schema = learn_schema(file, columns, part == 0)
    table = trial_rows(file, columns, schema)
    if table.weight is not None and not bool((table.weight > 0).any()):
        raise file[str(columns.weight)].error("is 0 in every row", "weights that are not all 0", "name another column")
    if tested and not exclude:
        given = Assignments.of_table(table, own_users=columns.user is None)
        check_arm_shares(given, columns.arms, str(path), check_shares)
    chosen = {name: torch.from_numpy(np.flatnonzero(part == i)) for i, name in enumerate(SPLITS)}
    splits = {name: table.select(index) for name, index in chosen.items()}
    return Trial(splits, schema, rows, collisions_in(file, schema.sparse, part == 0))


def read_rct(
    path: str | Path,
    columns: TableColumns,
    split: SplitRule | Sequence[float] = (0.6, 0.2, 0.2),
    split_seed: int = 0,
    schema: DataSchema | None = None,
    check_shares: float = LEVEL,
) -> tuple[dict[str, RCTTable], DataSchema]:
    """Splits and schema of :func:`read_trial`, every row of the file used."""
    trial = read_trial(path, columns, split, split_seed, schema, check_shares=check_shares)
    return trial.splits, trial.schema


def learn_schema(file: File, columns: TableColumns, training: NDArray[np.bool_]) -> DataSchema:
    """Vocabularies, what stands for null, and estimated propensities, from the rows ``training`` (``[N]``).

    Raises:
        InputError: for features without a label or a number there, and strata without a row of some arm.
    """
    schema = DataSchema(
        treatments=columns.arms,
        dense=dense_names(columns),
        sparse=tuple(feature_of(file[name], training, columns) for name in (*columns.categorical, *columns.lists)),
        value_kind=columns.value_kind,
        cost_kind=columns.cost_kind,
        known_cost=columns.cost_per_arm or (),
        value_unit=columns.value_unit,
        cost_unit=columns.cost_unit,
    )
    if not columns.nulls and columns.propensity != ESTIMATED:
        return schema
    weight = weight_of(file, columns)
    shares = None
    if columns.propensity == ESTIMATED:
        shares = learn_shares(file, columns, treatment_of(file, columns), training, weight)
    return replace(schema, nulls=learn_fills(file, columns, training, weight), shares=shares)


def _check_filled(file: File, part: NDArray[np.int8], rule: SplitRule) -> None:
    counts = [int((part == i).sum()) for i in range(len(SPLITS))]
    if min(counts):
        return
    first = next(iter(file.values()))
    seen = ", ".join(f"{n:,} {name}" for name, n in zip(SPLITS, counts, strict=True))
    by = f"boundaries={[str(b) for b in rule.boundaries]}" if rule.boundaries else f"column {rule.column!r}"
    raise InputError(
        f"{first.file}: split {SPLITS[counts.index(0)]!r} by {by} is empty ({seen} rows of {len(part):,})",
        "at least one row per split",
        "move the boundaries" if rule.boundaries else "label rows for every split",
    )
