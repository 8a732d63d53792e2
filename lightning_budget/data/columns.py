"""What the columns of a trial's file mean."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_budget.errors import InputError
from lightning_budget.schema import Outcome

UNIFORM = "uniform"


@dataclass(frozen=True)
class TableColumns:
    """Which column plays which part; K treatments.

    Args:
        treatment: column with the label of the arm given.
        arms: K labels as they stand in the file, control first.
        value: column with the observed value.
        cost: column with the observed cost; ``None`` if ``cost_per_arm`` says it all.
        cost_per_arm: K costs per user (currency) certain beforehand; beside a ``cost`` column, ``None`` for arms whose
            cost is learned from it.
        propensity: column, or K numbers, or ``"uniform"`` for 1/K.
        dense: real-valued features.
        categorical: features of one label each.
        lists: features of a list of labels each (Parquet only).
        user: column naming the user; ``None``: every row is a user of its own, named by its number.
        value_kind, cost_kind, value_unit, cost_unit: as in :class:`DataSchema`.

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

    def __post_init__(self) -> None:
        k = len(self.arms)
        if k < 2 or len(set(self.arms)) < k:
            raise InputError(
                f"arms={list(self.arms)}",
                "2 or more different labels, control first",
                "list every arm of the trial once",
            )
        self._check_cost(k)
        if not isinstance(self.propensity, str):
            fits = len(self.propensity) == k and all(0 < p <= 1 for p in self.propensity)
            if not fits or abs(sum(self.propensity) - 1) > 1e-3:
                raise InputError(
                    f"propensity={list(self.propensity)} for {k} arms",
                    f'a column, "{UNIFORM}", or {k} numbers in (0, 1] that sum to 1',
                    "give the shares in which users were assigned",
                )
        for kind in ("value_kind", "cost_kind"):
            if getattr(self, kind) not in ("continuous", "binary"):
                raise InputError(f"{kind}={getattr(self, kind)!r}", "continuous, binary", f"set {kind} to one of them")
        self._check_features()

    def _check_cost(self, k: int) -> None:
        if self.cost is None and self.cost_per_arm is None:
            raise InputError(
                "neither cost nor cost_per_arm",
                "one of them",
                f"name the cost column, or give {k} costs in cost_per_arm",
            )
        if self.cost_per_arm is None:
            return
        known = [c for c in self.cost_per_arm if c is not None]
        if (
            len(self.cost_per_arm) != k
            or (self.cost is None and len(known) < k)
            or not all(0 <= c < float("inf") for c in known)
        ):
            raise InputError(
                f"cost_per_arm={list(self.cost_per_arm)} for {k} arms",
                f"{k} numbers ≥ 0" + (", or null for arms whose cost is learned" if self.cost else ""),
                "give each arm's cost per user, control first",
            )

    def _check_features(self) -> None:
        outcomes = {
            self.treatment,
            self.value,
            self.cost,
            self.propensity if isinstance(self.propensity, str) else None,
        }
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
