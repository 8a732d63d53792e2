"""The one pass over all rows before training: every check, the training split's sums, and samples of users to keep."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightning_budget.data.collisions import DistinctSketch
from lightning_budget.data.column import Column
from lightning_budget.data.files import File
from lightning_budget.data.id_hash import Identities, identities
from lightning_budget.data.screening import PartScreened, assigned, of_parts, screened_part
from lightning_budget.data.share_check import Assignments, check_arm_shares, checks_shares
from lightning_budget.data.splits import SPLITS
from lightning_budget.data.straddling import settle
from lightning_budget.data.stream.facts import PieceFacts, facts_of, merged
from lightning_budget.data.stream.labels import LabelSet, found_in
from lightning_budget.data.stream.learn import learned_schema, learned_statistics
from lightning_budget.data.stream.placed import placed
from lightning_budget.data.stream.profile import Profile
from lightning_budget.data.stream.sample import UserSample, user_hash
from lightning_budget.data.stream.seen import SeenUsers
from lightning_budget.data.stream.stratify import arm_cuts
from lightning_budget.data.stream.trial_source import TrialSource
from lightning_budget.data.trial_rows import check_agrees, file_of_rows, trial_rows
from lightning_budget.data.where import Where
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.streaming.progress import Rows, progress
from lightning_budget.streaming.ranks import Ranks
from lightning_budget.streaming.source import Piece
from lightning_budget.streaming.threads import for_each
from lightning_budget.table import RCTTable, concatenate

MAX_USERS = 4_000_000
"""Of a split, remembered to tell who straddles: with more users, val and test keep fewer."""
MAX_LABELS = 2_000_000
"""Of one feature: a checkpoint holds every label, and so does every process."""


@dataclass(frozen=True)
class ScanRequest:
    """What a scan is to do.

    Attributes:
        sample_rows: training rows kept; eval_rows: rows kept of val, and of test.
        check_shares: level of the test of propensities, see
            :func:`~lightning_budget.data.share_check.check_arm_shares`; it is made on the rows kept.
        threads: pieces looked at together; shown: whether this process shows its progress.
        folder: for what memory does not hold; ``None``: the system's for temporary files.
    """

    sample_rows: int
    eval_rows: int
    check_shares: float
    threads: int = 1
    shown: bool = True
    folder: Path | None = None


def scan(trial: TrialSource, request: ScanRequest, schema: DataSchema | None, ranks: Ranks) -> Profile:
    """Look at every row once, and before at users and arms if need be; the same result on any number of processes.

    Args:
        schema: encode by this schema (a checkpoint's) instead of learning one.
        ranks: the processes that share the pieces; each gets the whole result.

    Raises:
        InputError: for anything amiss in any row, naming file, row group and column, in every process.
    """
    if trial.rule.stratify:
        trial = replace(trial, cuts=arm_cuts(trial, request.folder, request.threads, request.shown, ranks))
    pass_over = _Scan(trial, request, schema)
    mine = trial.source.pieces[ranks.rank :: ranks.size]
    share = sum(p.rows for p in mine) / max(trial.source.rows, 1)
    with progress("Scanning", trial.source.rows, 0, share, request.shown and ranks.rank == 0) as tell:
        ranks.each(lambda: for_each(mine, lambda piece: pass_over.add(piece, tell), request.threads))
    for other in ranks.gather(pass_over.found) if ranks.size > 1 else []:
        pass_over.found.merge(other)
    return pass_over.result()


class _Found:
    """What one process has found.

    Attributes:
        facts: by number of the piece.
        labels: of each id feature whose labels are listed, those in the training rows.
        sketches: of each other id feature, how many labels there are in them.
        samples: of each split.
        seen: users of train and of val, where their rows in later splits are to be dropped.
        screens: by number of the piece, where rows are left out; given: what all rows were given then, a sample.
    """

    def __init__(self, listed: Sequence[str], unlisted: Sequence[str], most: dict[str, int], drops: bool) -> None:
        self.facts: dict[int, PieceFacts] = {}
        self.labels = {name: LabelSet() for name in listed}
        self.sketches = {name: DistinctSketch() for name in unlisted}
        self.samples = {name: UserSample(most[name]) for name in SPLITS}
        self.seen = {name: SeenUsers(MAX_USERS) for name in SPLITS[:2]} if drops else {}
        self.screens: dict[int, PartScreened] = {}
        self.given = UserSample(sum(most.values()))

    def merge(self, other: _Found) -> None:
        """Take in what another process has found; what this one has found changes nothing."""
        if self.facts.keys() >= other.facts.keys():
            return
        self.facts |= other.facts
        for name, labels in other.labels.items():
            self.labels[name].merge(labels)
        for name, sketch in other.sketches.items():
            self.sketches[name].merge(sketch)
        for name, sample in other.samples.items():
            self.samples[name].merge(sample)
        for name, seen in other.seen.items():
            self.seen[name].merge(seen)
        self.screens |= other.screens
        self.given.merge(other.given)


class _Scan:
    def __init__(self, trial: TrialSource, request: ScanRequest, schema: DataSchema | None) -> None:
        columns = trial.columns
        self.trial, self.request, self.schema = trial, request, schema
        if schema is not None:
            check_agrees(schema, columns, trial.source.root)
        names = (*columns.categorical, *columns.lists)
        unlisted = [name for name in names if columns.unlisted(name) is not None]
        listed = [name for name in names if schema is None and name not in unlisted]
        most = {name: request.sample_rows if name == "train" else request.eval_rows for name in SPLITS}
        self.drops = trial.rule.by != "user" and trial.rule.on_straddling == "drop" and columns.user is not None
        self.tested = checks_shares(columns, request.check_shares)
        self.found = _Found(listed, unlisted, most, self.drops)
        self._alone = threading.Lock()

    def add(self, piece: Piece, tell: Rows) -> None:
        """One piece.

        Raises:
            InputError: naming file, row group and column.
        """
        placed(self.trial.source, piece, self._add)
        tell(piece.rows)

    def _add(self, piece: Piece) -> None:
        columns, found = self.trial.columns, self.found
        file = self.trial.read(piece)
        given = screen = None
        if self.trial.exclude:
            # Before rows leave for their outcomes, which may depend on the arm.
            given = self._given(assigned(file, columns)) if self.tested else None
            file, screen = screened_part(file, columns, self.trial.exclude)
        part = self.trial.split_of(file)
        facts = facts_of(file, columns, part)
        labels = {name: found_in(file[name], part == 0, name in columns.lists) for name in found.labels}
        sketches = {name: self._sketch(file[name], part == 0) for name in found.sketches}
        number = (file[columns.treatment].where or Where()).of_rows(len(part))
        user = number if columns.user is None else file[columns.user].users()
        u = user_hash(user)
        # Users that no sample will keep need not be remembered.
        least = max(found.samples[name].threshold for name in SPLITS[1:])
        users = {name: np.unique(user[(part == i) & (u < least)]) for i, name in enumerate(found.seen)}
        rows = pa.table({name: column.data for name, column in file.items()})
        kept = {}
        for i, name in enumerate(SPLITS):
            keep = (part == i) & (u < found.samples[name].threshold)
            kept[name] = u[keep], number[keep], rows.filter(pa.array(keep))
        with self._alone:
            found.facts[piece.number] = facts
            if screen is not None:
                found.screens[piece.number] = screen
            if given is not None:
                found.given.add(*given)
            for name, seen in labels.items():
                found.labels[name].add(seen)
            for name, sketch in sketches.items():
                found.sketches[name].merge(sketch)
            for name, some in kept.items():
                found.samples[name].add(*some)
            for name, some in users.items():
                found.seen[name].add(some)
                found.seen[name].limit(least)
            self._check_labels()

    def result(self) -> Profile:
        """Of all pieces."""
        self._check_labels()
        trial, root = self.trial, self.trial.source.root
        parts = [self.found.facts[p.number] for p in trial.source.pieces]
        screens = [self.found.screens[p.number] for p in trial.source.pieces if p.number in self.found.screens]
        rows = of_parts(screens, root) if screens else None
        facts = merged(parts)
        for name, count in zip(SPLITS, facts.rows, strict=True):
            if not count:
                seen = ", ".join(f"{n:,} {split}" for split, n in zip(SPLITS, facts.rows, strict=True))
                raise InputError(
                    f"{root}: split {name!r} is empty ({seen})",
                    "at least one row per split",
                    "give it a larger share, or bring more rows",
                )
        labels = {name: seen.labels() for name, seen in self.found.labels.items()}
        schema = self.schema or learned_schema(facts, labels, trial.columns, root)
        statistics = learned_statistics(facts, trial.columns, schema)
        kept = self._dropped() if self.drops else {name: s.finish() for name, s in self.found.samples.items()}
        self._check_straddling({name: rows for name, (rows, _) in kept.items()})
        tables = {name: self._encoded(rows, number, schema) for name, (rows, number) in kept.items()}
        if self.tested:
            given = (
                self._assignments()
                if trial.exclude
                else Assignments.of_table(concatenate(list(tables.values())), trial.columns.user is None)
            )
            check_arm_shares(given, trial.columns.arms, root, self.request.check_shares)
        features = {f.name: f for f in schema.sparse}
        collisions = tuple(sketch.collisions(features[name]) for name, sketch in self.found.sketches.items())
        piece_rows = tuple(p.rows[0] for p in parts)
        return Profile(schema, statistics, piece_rows, facts.rows, tables, collisions, rows, trial.cuts)

    def _given(self, file: File) -> tuple[NDArray[np.float64], NDArray[np.int64], pa.Table]:
        """Which rows were given what: what :meth:`UserSample.add` takes."""
        columns = self.trial.columns
        names = {columns.treatment, columns.propensity_column, columns.user, columns.weight} - {None}
        number = (file[columns.treatment].where or Where()).of_rows(len(file[columns.treatment].data))
        u = user_hash(number if columns.user is None else file[columns.user].users())
        return u, number, pa.table({name: column.data for name, column in file.items() if name in names})

    def _assignments(self) -> Assignments:
        rows, number = self.found.given.finish()
        where = Where(numbers=number, parts=self.trial.parts)
        return Assignments.of_file(file_of_rows(rows, self.trial.source.root, where), self.trial.columns)

    def _sketch(self, column: Column, rows: NDArray[np.bool_]) -> DistinctSketch:
        if column.name in self.trial.columns.lists:
            column, offsets = column.lists()
            rows = np.repeat(rows, np.diff(offsets))
        ids, sketch = identities(column), DistinctSketch()
        sketch.update(Identities(ids.values[rows], ids.present[rows]))
        return sketch

    def _encoded(self, rows: pa.Table, number: NDArray[np.int64], schema: DataSchema) -> RCTTable:
        where = Where(numbers=number, parts=self.trial.parts)
        return trial_rows(file_of_rows(rows, self.trial.source.root, where), self.trial.columns, schema)

    def _dropped(self) -> dict[str, tuple[pa.Table, NDArray[np.int64]]]:
        """The samples without the rows of users whom an earlier split has too; those of train all stay.

        Raises:
            InputError: if a split is left without a row.
        """
        root, user, seen = self.trial.source.root, self.trial.columns.user, self.found.seen
        assert user is not None
        earlier, known, kept = np.empty(0, np.int64), np.inf, {}
        for name, sample in self.found.samples.items():
            rows, number = sample.finish()
            users = Column(root, user, rows.column(user)).users()
            stay = ~np.isin(users, earlier) & (user_hash(users) < known)
            if not stay.any():
                raise InputError(
                    f"{root}: split {name!r} is empty: all {len(rows):,} rows are of users whom an earlier split has",
                    "at least one row per split",
                    "move the boundaries, or set straddling to warn",
                )
            kept[name] = rows.filter(pa.array(stay)), number[stay]
            if name in seen:
                # Of users with higher hashes nobody remembers whether they were there.
                earlier, known = np.union1d(earlier, seen[name].users()), min(known, seen[name].threshold)
        return kept

    def _check_straddling(self, kept: dict[str, pa.Table]) -> None:
        """Users in two splits show in the samples, which are of the same hashes."""
        user, rule = self.trial.columns.user, self.trial.rule
        if rule.by == "user" or user is None or self.drops:
            return
        least = min(sample.threshold for sample in self.found.samples.values())
        columns, parts = [], []
        for i, name in enumerate(SPLITS):
            column = kept[name].column(user)
            below = user_hash(Column(self.trial.source.root, user, column).users()) < least
            columns += column.filter(pa.array(below)).chunks
            parts.append(np.full(int(below.sum()), i, np.int8))
        settle(
            Column(self.trial.source.root, user, pa.chunked_array(columns)), np.concatenate(parts), rule.on_straddling
        )

    def _check_labels(self) -> None:
        for name, labels in self.found.labels.items():
            if len(labels) > MAX_LABELS:
                raise InputError(
                    f"{self.trial.source.root}: column {name!r} has more than {MAX_LABELS:,} different labels in the "
                    "training split",
                    f"up to {MAX_LABELS:,} labels in a list",
                    f"hash them: data.hashed={{{name}: {2 * MAX_LABELS}}} gives them a table of so many rows",
                )
