"""Bring your own trial, larger than memory: Parquet files on this machine or behind a URL."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from datamodules.base import SPLITS
from datamodules.streaming import StreamLoader
from datamodules.table_rct import TableRCTDataModule
from lightning_budget.data.collisions import told
from lightning_budget.data.stream.plan import EpochPlan
from lightning_budget.data.stream.profile import Profile, alone
from lightning_budget.data.stream.scan import ScanRequest, scan
from lightning_budget.data.stream.trial_source import TrialSource
from lightning_budget.data.stream.windows import TrainingStream
from lightning_budget.errors import InputError
from lightning_budget.streaming.ranks import Ranks
from lightning_budget.streaming.storage import is_url
from lightning_budget.table import RCTTable

CACHE = "~/.cache/lightning_budget"
PIECE_ROWS = 1 << 16
"""Rows at which a piece is full; a larger row group is a piece of its own."""
PIECES = 8
"""Pieces of a window at least, so that rows of different files and times come into one batch."""


class ParquetRCTDataModule(TableRCTDataModule):
    """A randomized trial from Parquet files of any size.

    The files are scanned once: every row is checked, vocabularies and statistics are those of the whole training split,
    and what was found is kept in ``cache``. Training then streams windows of ``buffer_rows`` rows, which are
    shuffled among themselves, see :mod:`lightning_budget.data.stream.plan`: two are in memory, and the pieces of one.
    Evaluation, and what the goal is measured on, are tables in memory: of a split that does not fit a sample of users,
    all their rows.

    Args:
        path: a Parquet file or a folder of them, with ``key=value`` folders if need be, or such a URL: ``s3://…``,
            ``gs://…``, whatever fsspec knows.
        buffer_rows: rows that are shuffled among themselves; at least a row group. All: a full shuffle.
        sample_rows: training rows kept in memory as ``train``, for measuring the goal.
        eval_rows: rows kept in memory of ``val``, and of ``test``.
        cache: folder for what scans have found; ``None``: every start scans.
        **trial: as :class:`TableRCTDataModule`. For ``stratify`` users and arms are read once more, before the scan,
            and eight bytes a row lie in ``cache`` meanwhile. With ``straddling=drop`` val and test hold users of low
            hashes only where the files have more than :data:`~lightning_budget.data.stream.scan.MAX_USERS` in a split.

    Attributes:
        train_is_sample: whether ``train`` has fewer rows than train.
        rows: of each split in the files, with those that ``straddling=drop`` drops; after :meth:`setup`.

    Raises:
        InputError: if the parts do not fit together; on :meth:`setup` for anything amiss in any row, naming file, row
            group and column.
    """

    def __init__(
        self,
        path: str | None,
        *,
        buffer_rows: int = 1 << 20,
        sample_rows: int = 1_000_000,
        eval_rows: int = 1_000_000,
        cache: str | None = CACHE,
        **trial: Any,
    ) -> None:
        super().__init__(path, **trial)
        for name, rows in (("buffer_rows", buffer_rows), ("sample_rows", sample_rows), ("eval_rows", eval_rows)):
            if rows < 1:
                raise InputError(f"{name}={rows}", "at least 1", f"raise data.{name}")
        self.buffer_rows, self.sample_rows, self.eval_rows = buffer_rows, sample_rows, eval_rows
        self.cache = None if cache is None else Path(cache).expanduser()
        self.piece_rows = min(PIECE_ROWS, max(buffer_rows // PIECES, 1))
        self._trial: TrialSource | None = None
        self._profile: Profile | None = None

    def setup(self, stage: str | None = None) -> None:
        """Scan the files, or read what a scan before has found, whatever the stage; later calls return at once."""
        if self._profile is not None:
            return
        trial = self.open()
        self._profile = profile = self._found(trial)
        self._trial = trial if profile.cuts is None else replace(trial, cuts=profile.cuts)
        self.schema, self.statistics, self.collisions = profile.schema, profile.statistics, profile.collisions
        self.screened = profile.screened
        self.train, self.val, self.test = (profile.tables[name] for name in SPLITS)
        self.rows = dict(zip(SPLITS, profile.rows, strict=True))
        self.train_is_sample = len(self.train) < profile.rows[0]
        if line := told(self.collisions):
            rank_zero_only(print)(line)

    def open(self) -> TrialSource:
        """The files, of which the footers have been read."""
        path = self.path if is_url(self.path) else str(Path(self.path).expanduser())
        return TrialSource.open(path, self.columns, self.rule, self.piece_rows, self.exclude)

    def load(self) -> tuple[dict[str, RCTTable], Any]:
        """What is kept in memory of each split, and the schema."""
        self.setup()
        return {name: self.split(name) for name in SPLITS}, self.schema

    def train_dataloader(self) -> StreamLoader:  # type: ignore[override]
        """All training rows, shuffled anew every epoch; see :class:`StreamLoader`."""
        self.setup()
        assert self._trial is not None
        assert self._profile is not None
        rank, ranks = self._place()
        if self.batch_size < 1 or self.batch_size % ranks:
            raise InputError(
                f"global batch size {self.batch_size} over {ranks} processes",
                f"a positive multiple of {ranks}",
                f"set it to {max(1, round(self.batch_size / ranks)) * ranks}",
            )
        if self.rows["train"] < ranks:
            raise InputError(
                f"{self.rows['train']} training rows for {ranks} processes", "a row for every process", "use fewer"
            )
        plan = EpochPlan(
            piece_rows=self._profile.piece_rows,
            batch_rows=self.batch_size // ranks,
            buffer_rows=self.buffer_rows,
            rank=rank,
            ranks=ranks,
            workers=max(self.num_workers, 1),
            seed=self.seed,
            epoch=0,
        )
        threads = 1 if self.num_workers else _cores()
        return StreamLoader(TrainingStream(self._trial, self.schema, plan, threads), self.num_workers, self.pin_memory)

    def _found(self, trial: TrialSource) -> Profile:
        request = ScanRequest(self.sample_rows, self.eval_rows, self.check_shares, _cores())
        ranks = _ranks()
        if self.cache is None:
            return scan(trial, request, self._schema, ranks)
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            # Processes that talk to each other scan together, and would wait for each other's lock for ever.
            with alone(self.cache / f"lock-{trial.key}-{ranks.rank}"):
                return self._cached(trial, replace(request, folder=self.cache), ranks)
        except OSError as e:
            warnings.warn(f"{self.cache} cannot be used: {e}; the next start scans again", stacklevel=2)
            return scan(trial, request, self._schema, ranks)

    def _cached(self, trial: TrialSource, request: ScanRequest, ranks: Ranks) -> Profile:
        assert self.cache is not None
        ours = self.cache / self._name(trial, self._schema is not None)
        # A scan that has learned the very schema that is given found what one with it would.
        known = [Profile.load(p) for p in {ours, self.cache / self._name(trial, False)}]
        usable = [p for p in known if p is not None and self._schema in (None, p.schema)]
        if all(ranks.gather(bool(usable))):
            return usable[0]
        profile = scan(trial, request, self._schema, ranks)
        profile.save(ours)
        return profile

    def _name(self, trial: TrialSource, with_schema: bool) -> str:
        sizes = (self.sample_rows, self.eval_rows, self.check_shares, self.piece_rows)
        schema = self._schema if with_schema else None
        return hashlib.sha256(repr((trial.key, sizes, schema)).encode()).hexdigest()[:32] + ".profile"


def _ranks() -> Ranks:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def _cores() -> int:
    """Of this process's share."""
    return max((os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
