"""What a data set looks like: the names, arms and id features that a model and its checkpoint must agree on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from lightning_budget.errors import InputError
from lightning_budget.learned import ArmShares, NullFill

Outcome = Literal["continuous", "binary"]
Ids = Literal["listed", "hashed", "managed"]
Eviction = Literal["lfu", "lru", "distance_lfu"]

UNKNOWN = 0
"""The table row that every unknown id falls to; known ids start at row 1."""

KINDS: tuple[Ids, ...] = get_args(Ids)

EVICTIONS: tuple[Eviction, ...] = get_args(Eviction)
"""Whose row a new managed id takes: of the id seen least often, longest ago, or least often for how long ago it was."""


@dataclass(frozen=True)
class SparseFeature:
    """One id feature, looked up in an embedding table of its own.

    =======  ============================  ====================  ============================================
    ``ids``  in the batch                  row ``UNKNOWN`` (0)   other rows
    =======  ============================  ====================  ============================================
    listed   the row                       null and new labels   one label of the training split each
    hashed   the row                       null                  all labels whose hash falls there, seen or not
    managed  63 bits of the label's hash;  null, and ids that    one id each, given and taken back in training
             0: null                       hold no row
    =======  ============================  ====================  ============================================

    Args:
        name: column name and key in the ``KeyedJaggedTensor``.
        num_embeddings: rows of the table, the row for unknown ids (``UNKNOWN``) included.
        is_list: a variable-length list of ids per user instead of exactly one.
        vocabulary: of listed ids, the known values in row order (value ``vocabulary[i]`` is row ``i + 1``); ``None``
            when the column holds integers 0, 1, …, of which ``i`` is row ``i + 1``.
        ids: how labels find their row: by the list, by a hash (:mod:`lightning_budget.data.id_hash`), or by a map that
            training keeps (:mod:`lightning_budget.models.managed_collisions`).
        eviction: of managed ids, one of :data:`EVICTIONS`.

    Raises:
        InputError: for a table too small, an unknown kind, or a vocabulary of ids that need none.
    """

    name: str
    num_embeddings: int
    is_list: bool = False
    vocabulary: tuple[str, ...] | None = None
    ids: Ids = "listed"
    eviction: Eviction = "distance_lfu"

    def __post_init__(self) -> None:
        if self.ids not in KINDS:
            raise InputError(f"feature {self.name!r} has ids={self.ids!r}", ", ".join(KINDS), "choose one of them")
        if self.eviction not in EVICTIONS:
            raise InputError(f"eviction={self.eviction!r}", ", ".join(EVICTIONS), "choose one of them")
        if self.ids != "listed" and self.vocabulary is not None:
            raise InputError(
                f"feature {self.name!r} has a vocabulary and ids={self.ids!r}", "ids='listed'", "leave out one of them"
            )
        if self.num_embeddings < 2:
            raise InputError(
                f"feature {self.name!r} has num_embeddings={self.num_embeddings}",
                "at least 2",
                "count its distinct ids plus one",
            )


@dataclass(frozen=True)
class DataSchema:
    """Names and kinds of a randomized data set; travels inside the checkpoint.

    Args:
        treatments: arm names, control first.
        dense: names of the real-valued features, in tensor order.
        sparse: the id features, in ``KeyedJaggedTensor`` key order.
        value_kind, cost_kind: ``binary`` outcomes are fitted by cross-entropy, ``continuous`` ones by squared error.
        known_cost: for each arm its cost per user where it is certain beforehand (0 for control), else ``None``.
        value_unit, cost_unit: for axis labels and tables.
        nulls: what stands for null in dense columns; their flags are dense features without a column of that name.
        shares: probabilities of the arms where they are estimated on the training split.
    """

    treatments: tuple[str, ...]
    dense: tuple[str, ...] = ()
    sparse: tuple[SparseFeature, ...] = ()
    value_kind: Outcome = "continuous"
    cost_kind: Outcome = "continuous"
    known_cost: tuple[float | None, ...] = field(default=())
    value_unit: str = "value"
    cost_unit: str = "currency"
    nulls: tuple[NullFill, ...] = ()
    shares: ArmShares | None = None

    def __post_init__(self) -> None:
        if len(self.treatments) < 2:
            raise InputError(
                f"{len(self.treatments)} treatments", "at least 2, control first", "name every arm of the trial"
            )
        if not self.known_cost:
            object.__setattr__(self, "known_cost", (None,) * len(self.treatments))
        if len(self.known_cost) != len(self.treatments):
            raise InputError(
                f"known_cost has {len(self.known_cost)} entries for {len(self.treatments)} treatments",
                "one entry per treatment",
                "give null for arms whose cost must be learned",
            )

    @property
    def num_treatments(self) -> int:
        return len(self.treatments)

    @property
    def dense_columns(self) -> tuple[str, ...]:
        """The dense features that are columns of a file: all but flags."""
        flags = {fill.flag_name for fill in self.nulls if fill.flag}
        return tuple(name for name in self.dense if name not in flags)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, so a checkpoint loads with ``weights_only=True``."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> DataSchema:
        """Inverse of :meth:`to_dict`."""
        sparse = tuple(
            SparseFeature(**{**f, "vocabulary": None if f["vocabulary"] is None else tuple(f["vocabulary"])})
            for f in state["sparse"]
        )
        tuples = {k: tuple(state[k]) for k in ("treatments", "dense", "known_cost")}
        shares = state.get("shares")
        learned = {
            "nulls": tuple(NullFill(**fill) for fill in state.get("nulls", ())),
            "shares": None if shares is None else ArmShares.from_dict(shares),
        }
        return cls(**{**state, **tuples, **learned, "sparse": sparse})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
