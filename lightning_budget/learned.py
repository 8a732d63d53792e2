"""What reading a file learns on the training split besides vocabularies; travels inside the schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NULL_FLAG = "_is_null"


@dataclass(frozen=True)
class NullFill:
    """What stands for null in a dense column.

    Attributes:
        column: its name.
        value: the number filled in.
        flag: there is a dense feature ``<column>_is_null``, 1 where null was and 0 elsewhere.
    """

    column: str
    value: float
    flag: bool = False

    @property
    def flag_name(self) -> str:
        """Name of the feature that ``flag`` adds."""
        return self.column + NULL_FLAG


@dataclass(frozen=True)
class ArmShares:
    """Shares of the K arms in the training split, within each of S strata.

    Attributes:
        columns: whose labels together name a stratum; none: there is one stratum, of all rows.
        strata: S tuples of labels; the empty text stands for null.
        share: S times K numbers, each stratum's sum to 1.
    """

    columns: tuple[str, ...]
    strata: tuple[tuple[str, ...], ...]
    share: tuple[tuple[float, ...], ...]

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> ArmShares:
        """Inverse of ``dataclasses.asdict`` with lists for tuples."""
        return cls(tuple(state["columns"]), tuple(map(tuple, state["strata"])), tuple(map(tuple, state["share"])))

    def describe(self, labels: tuple[str, ...]) -> str:
        """``city 'Rome', tier null``; ``all rows`` where no column tells strata apart."""
        named = (f"{c} {label!r}" if label else f"{c} null" for c, label in zip(self.columns, labels, strict=True))
        return ", ".join(named) or "all rows"
