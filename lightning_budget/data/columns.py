"""What the columns of a trial's file mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_budget.data.formula import Formula, parse_formula
from lightning_budget.errors import InputError
from lightning_budget.learned import NULL_FLAG
from lightning_budget.schema import Eviction, Outcome, SparseFeature

UNIFORM = "uniform"
ESTIMATED = "estimated"
MEAN = "mean"
LEVEL = "level"


@dataclass(frozen=True)
class TableColumns:
    """Which column plays which part; K treatments.

    Args:
        treatment: column with the label of the arm given.
        arms: K labels as they stand in the file, control first.
        value: column with the observed value.
        cost: column with the observed cost; ``None`` if ``cost_formula`` or ``cost_per_arm`` says it.
        cost_per_arm: K costs per user (currency) certain beforehand; beside ``cost`` or ``cost_formula``, ``None`` for
            arms whose cost is learned from it.
        propensity: column, or K numbers, or ``"uniform"`` for 1/K, or ``"estimated"``: the share of the arm among the
            training rows of the row's stratum.
        dense: real-valued features.
        categorical: features of one label each; null is the unknown label.
        lists: features of a list of labels each (Parquet only); null is the empty list.
        user: column naming the user; ``None``: every row is a user of its own, named by its number.
        value_kind, cost_kind, value_unit, cost_unit: as in :class:`DataSchema`.
        weight: column of sample weights, finite and ≥ 0: a row of weight 2 counts as two rows.
        time: column of numbers, dates or times, for splits by time.
        cost_formula: the cost by arithmetic over columns, e.g. ``level * redeemed``, see :mod:`.formula`.
        levels: K numbers, one per arm, that ``cost_formula`` knows as ``level``.
        strata: columns of labels within whose combinations propensities are estimated; none: over all rows.
        nulls: dense columns that may have nulls (and NaN), each with a number to fill in or ``"mean"``, the mean of the
            training split; nulls of other columns, and all infinite entries, are refused.
        null_flags: columns of ``nulls`` that also give a feature ``<column>_is_null`` of 0 and 1.
        hashed: columns of ``categorical`` and ``lists`` whose labels are hashed into a table instead of listed, each
            with the rows of its table.
        managed: likewise, but training gives rows to labels and takes them back, as ``eviction`` says.
        eviction: whose row a new label of a managed column gets, see
            :data:`~lightning_budget.schema.EVICTIONS`.

    Raises:
        InputError: if the parts do not fit together.
    """

    treatment: str
    arms: tuple[str, ...]
    value: str
    cost: str | None = None
    cost_per_arm: tuple[float | None, ...] | None = None
    propensity: str | tuple[float, ...] = UNIFORM
    dense: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    user: str | None = None
    value_kind: Outcome = "continuous"
    cost_kind: Outcome = "continuous"
    value_unit: str = "value"
    cost_unit: str = "currency"
    weight: str | None = None
    time: str | None = None
    cost_formula: str | None = None
    levels: tuple[float, ...] = ()
    strata: tuple[str, ...] = ()
    nulls: Mapping[str, float | str] = field(default_factory=dict)
    null_flags: tuple[str, ...] = ()
    hashed: Mapping[str, int] = field(default_factory=dict)
    managed: Mapping[str, int] = field(default_factory=dict)
    eviction: Eviction = "distance_lfu"

    def __post_init__(self) -> None:
        k = len(self.arms)
        if k < 2 or len(set(self.arms)) < k:
            raise InputError(
                f"arms={list(self.arms)}",
                "2 or more different labels, control first",
                "list every arm of the trial once",
            )
        self._check_cost(k)
        self._check_formula(k)
        self._check_propensity(k)
        for kind in ("value_kind", "cost_kind"):
            if getattr(self, kind) not in ("continuous", "binary"):
                raise InputError(f"{kind}={getattr(self, kind)!r}", "continuous, binary", f"set {kind} to one of them")
        self._check_features()
        self._check_nulls()
        self._check_hashed()

    @property
    def propensity_column(self) -> str | None:
        """The column of propensities, where there is one."""
        named = isinstance(self.propensity, str) and self.propensity not in (UNIFORM, ESTIMATED)
        return self.propensity if named else None  # type: ignore[return-value]

    @property
    def formula(self) -> Formula | None:
        """``cost_formula``, parsed."""
        return None if self.cost_formula is None else parse_formula(self.cost_formula)

    @property
    def formula_columns(self) -> tuple[str, ...]:
        """Columns that ``cost_formula`` needs of the file."""
        formula = self.formula
        return () if formula is None else tuple(n for n in formula.names if n != LEVEL or not self.levels)

    def unlisted(self, name: str) -> SparseFeature | None:
        """The id feature of a column that needs no vocabulary; ``None`` for a column whose labels are listed."""
        is_list = name in self.lists
        if name in self.hashed:
            return SparseFeature(name, self.hashed[name], is_list, ids="hashed")
        if name in self.managed:
            return SparseFeature(name, self.managed[name], is_list, ids="managed", eviction=self.eviction)
        return None

    def roles(self) -> list[tuple[str, str]]:
        """Columns of the file, each with the part it plays, see :func:`~lightning_budget.data.files.read_columns`."""
        singles = [
            ("treatment", self.treatment),
            ("value", self.value),
            ("cost", self.cost),
            ("user", self.user),
            ("propensity", self.propensity_column),
            ("weight", self.weight),
        ]
        many = [(role, name) for role in ("dense", "categorical", "lists") for name in getattr(self, role)]
        many += [("cost_formula", name) for name in self.formula_columns]
        many += [("strata", name) for name in self.strata]
        return [(name, role) for role, name in singles + many if name is not None]

    def _check_cost(self, k: int) -> None:
        if self.cost is not None and self.cost_formula is not None:
            raise InputError(
                f"cost={self.cost!r} and cost_formula={self.cost_formula!r}", "one of them", "remove one of the two"
            )
        if self.cost is None and self.cost_formula is None and self.cost_per_arm is None:
            raise InputError(
                "neither cost nor cost_per_arm nor cost_formula",
                "one of them",
                f"name the cost column, or give {k} costs in cost_per_arm, or a formula",
            )
        if self.cost_per_arm is None:
            return
        observed = self.cost is not None or self.cost_formula is not None
        known = [c for c in self.cost_per_arm if c is not None]
        if (
            len(self.cost_per_arm) != k
            or (not observed and len(known) < k)
            or not all(0 <= c < float("inf") for c in known)
        ):
            raise InputError(
                f"cost_per_arm={list(self.cost_per_arm)} for {k} arms",
                f"{k} numbers ≥ 0" + (", or null for arms whose cost is learned" if observed else ""),
                "give each arm's cost per user, control first",
            )

    def _check_formula(self, k: int) -> None:
        if self.formula is None and self.levels:
            raise InputError(
                f"levels={list(self.levels)} without cost_formula", f"a formula of {LEVEL!r}", "give cost_formula"
            )
        if self.levels and (len(self.levels) != k or not all(math.isfinite(x) for x in self.levels)):
            raise InputError(f"levels={list(self.levels)} for {k} arms", f"{k} numbers", "give one per arm, in order")

    def _check_propensity(self, k: int) -> None:
        if self.strata and self.propensity != ESTIMATED:
            raise InputError(
                f"strata={list(self.strata)} with propensity={self.propensity!r}",
                f"propensity={ESTIMATED}",
                "set it, or remove strata",
            )
        if isinstance(self.propensity, str):
            return
        fits = len(self.propensity) == k and all(0 < p <= 1 for p in self.propensity)
        if not fits or abs(sum(self.propensity) - 1) > 1e-3:
            raise InputError(
                f"propensity={list(self.propensity)} for {k} arms",
                f'a column, "{UNIFORM}", "{ESTIMATED}", or {k} numbers in (0, 1] that sum to 1',
                "give the shares in which users were assigned",
            )

    def _check_features(self) -> None:
        outcomes = {self.treatment, self.value, self.cost, self.propensity_column}
        features = [*self.dense, *self.categorical, *self.lists]
        if leaks := [f for f in features if f in outcomes]:
            raise InputError(
                f"column {leaks[0]!r} as a feature and as treatment or outcome",
                "one part",
                "remove it from dense, categorical and lists",
            )
        if not features:
            raise InputError("no features", "at least one column in dense, categorical or lists", "name the features")
        for group in (list(self.dense), [*self.categorical, *self.lists]):
            if twice := [f for i, f in enumerate(group) if f in group[:i]]:
                raise InputError(f"feature {twice[0]!r} is listed twice", "each column once", "remove one of the two")

    def _check_nulls(self) -> None:
        if strange := [c for c in self.nulls if c not in self.dense]:
            raise InputError(
                f"nulls of {strange[0]!r}", ", ".join(self.dense) or "dense columns", "name a column of dense"
            )
        for column, fill in self.nulls.items():
            if fill != MEAN and not (isinstance(fill, int | float) and math.isfinite(fill)):
                raise InputError(
                    f"nulls of {column!r} filled with {fill!r}", f"a number, or {MEAN}", "give one of them"
                )
        if taken := [c for c in self.null_flags if c + NULL_FLAG in self.dense]:
            raise InputError(
                f"null_flags of {taken[0]!r} beside the dense column {taken[0] + NULL_FLAG!r}",
                "one of the two",
                "remove one of the two",
            )
        if lost := [c for c in self.null_flags if c not in self.nulls]:
            raise InputError(
                f"null_flags of {lost[0]!r}", ", ".join(self.nulls) or "columns of nulls", "say in nulls what is filled"
            )

    def _check_hashed(self) -> None:
        if both := [c for c in self.hashed if c in self.managed]:
            raise InputError(f"column {both[0]!r} is both hashed and managed", "one of them", "remove one of the two")
        ids = (*self.categorical, *self.lists)
        for kind in ("hashed", "managed"):
            for column, rows in getattr(self, kind).items():
                if column not in ids:
                    raise InputError(
                        f"{kind} column {column!r} is no id feature",
                        ", ".join(ids) or "columns of categorical and lists",
                        "list it under categorical or lists too",
                    )
                if not isinstance(rows, int) or not 2 <= rows < 2**31:
                    raise InputError(
                        f"{kind} column {column!r} with a table of {rows!r} rows",
                        "a whole number of rows, 2 or more, below 2³¹",
                        "about as many as it has different labels",
                    )
                self.unlisted(column)
