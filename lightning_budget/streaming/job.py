"""One allocation job from files to files: sample, scan, check, decide, write."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning_budget.allocation.finish import Miss
from lightning_budget.allocation.frontier import LARGEST
from lightning_budget.allocation.search import Bracket
from lightning_budget.allocation.shared_decision import Decision
from lightning_budget.allocation.shared_search import decide, spend_at
from lightning_budget.allocation.shared_users import OpenShare
from lightning_budget.errors import InputError
from lightning_budget.streaming import work
from lightning_budget.streaming.batches import BATCH_ROWS
from lightning_budget.streaming.duplicates import check_unique, unproved_pieces
from lightning_budget.streaming.output import POLICY, check_output, prepare, publish, write_certificate, write_partition
from lightning_budget.streaming.predictions import Scorer
from lightning_budget.streaming.progress import Rows, progress
from lightning_budget.streaming.ranks import Ranks
from lightning_budget.streaming.scan import bracket_of, draw, sample_pieces, scan_piece
from lightning_budget.streaming.source import Piece, Source
from lightning_budget.streaming.spool import Footer, read_footer, read_open
from lightning_budget.streaming.threads import for_each

ALL_OPEN = 1 << 18
"""So many users are all kept open: no bracket can then miss."""

MOST_PASSES = 12


@dataclass(frozen=True)
class Request:
    """What a job is to do.

    Attributes:
        output: a file or a folder, as the input is; a missing folder is made.
        budget: **total** currency.
        batch_rows: rows scored at once.
        allow_negative_cost: whether a treatment may earn currency.
        check_duplicates: whether a user in two rows is refused; if not, every row is a user.
        threads: pieces that this process works on at the same time.
        shown: whether this process shows its progress.
        save_policy: given a path and the certificate, writes the policy that serves the allocation; it then stands at
            :func:`lightning_budget.streaming.output.policy_path`.
    """

    output: Path
    budget: float
    batch_rows: int = BATCH_ROWS
    allow_negative_cost: bool = True
    check_duplicates: bool = True
    threads: int = 1
    shown: bool = True
    save_policy: Callable[[Path, dict[str, float | int]], None] | None = None


@dataclass(frozen=True)
class Result:
    """What a job found.

    Attributes:
        counts: users per treatment.
        passes: over the rows, 1 unless the sample's bracket missed.
        seconds: that each part of the job took, by its title.
    """

    certificate: dict[str, float | int]
    counts: list[int]
    passes: int
    seconds: dict[str, float]


def allocate_files(source: Source, scorer: Scorer, request: Request, ranks: Ranks | None = None) -> Result:
    """Give every user of the input one treatment within the budget; the output is complete or untouched.

    A job that was killed goes on where it was when the same command runs again: pieces that were scanned, and
    partitions that were written, are not touched again unless the input or the request changed.

    Args:
        source: the input.
        scorer: its predictions.
        request: the rest.
        ranks: the processes that share the work; they see the same files.

    Raises:
        InputError: for anything amiss with input or request, in one line, in every process.
    """
    ranks = Ranks() if ranks is None else ranks
    try:
        return _Job(source, scorer, request, ranks).run()
    except OSError as e:
        raise InputError(
            f"{request.output.parent} cannot be written: {e.strerror or e}",
            "a folder with room for the output and about as much again",
            "make room and run the same command again; it goes on where it stopped",
        ) from e


class _Job:
    def __init__(self, source: Source, scorer: Scorer, request: Request, ranks: Ranks) -> None:
        self.source, self.scorer, self.request, self.ranks = source, scorer, request, ranks
        self.folder = work.work_folder(request.output)
        self.shown = request.shown and ranks.rank == 0
        self.mine = source.pieces[ranks.rank :: ranks.size]
        self.seconds: dict[str, float] = {}

    def run(self) -> Result:
        self.ranks.first(lambda: check_output(Path(self.source.root), self.request.output))
        bracket = self._first_bracket()
        for number in range(1, MOST_PASSES):
            footers = self._scan(bracket)
            if number == 1:
                self._check_users(footers)
            decision = self._decide(bracket, footers)
            if isinstance(decision, Decision):
                return self._write(decision, footers, number)
            bracket = _moved(bracket, decision, number)
            self._say(f"The multiplier lies {'above' if decision.above else 'below'} what the sample said: once more.")
            self.ranks.first(lambda b=bracket: self._keep_bracket(b))
        raise AssertionError("no bracket holds the multiplier")

    def _first_bracket(self) -> Bracket:
        """That of the job that was killed, all multipliers for few users, or one from a sample."""
        if self.source.rows <= ALL_OPEN:
            return 0.0, LARGEST
        path, same = self.folder / "bracket.json", {"budget": self.request.budget, "scorer": self.scorer.seal}
        state = self.ranks.first(lambda: work.read_state(path))
        bracket = state.pop("bracket", None)
        if bracket is not None and state == same:
            return bracket[0], bracket[1]
        pieces = sample_pieces(self.source)
        rows = sum(p.rows for p in pieces)
        mine = pieces[self.ranks.rank :: self.ranks.size]
        with self._part("Sampling", rows, 0, sum(p.rows for p in mine)) as tell:

            def sample() -> list[tuple[int, object]]:
                drawn: list[tuple[int, object]] = []

                def one(piece: Piece) -> None:
                    drawn.append((piece.number, self._draw(piece)))
                    tell(piece.rows)

                for_each(mine, one, self.request.threads)
                return drawn

            everyone = sorted((d for some in self.ranks.each(sample) for d in some), key=lambda d: d[0])
        bracket = bracket_of([d for _, d in everyone], self.source, self.request.budget)  # type: ignore[misc]
        self.ranks.first(lambda: self._keep_bracket(bracket))
        return bracket

    def _draw(self, piece: Piece) -> object:
        request = self.request
        alone = request.threads < 2
        return draw(self.source, piece, self.scorer, request.batch_rows, request.allow_negative_cost, ahead=alone)

    def _keep_bracket(self, bracket: Bracket) -> None:
        state = {"budget": self.request.budget, "scorer": self.scorer.seal, "bracket": list(bracket)}
        work.write_state(self.folder / "bracket.json", state)

    def _seal(self, piece: Piece, bracket: Bracket) -> str:
        text = json.dumps([self.source.seal(piece), self.scorer.seal, bracket, self.request.batch_rows, work.boot()])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _spool(self, piece: Piece) -> Path:
        return self.folder / "spools" / f"{self.source.label(piece)}.spool"

    def _scan(self, bracket: Bracket) -> list[Footer]:
        """Spools of all pieces for the bracket; those that are there already are left alone."""
        found: dict[int, Footer] = {}

        def look() -> None:
            self._spool(self.mine[0] if self.mine else self.source.pieces[0]).parent.mkdir(exist_ok=True)
            for piece in self.mine:
                footer = read_footer(self._spool(piece))
                if footer is not None and footer.seal == self._seal(piece, bracket):
                    found[piece.number] = footer

        self.ranks.each(look)
        done = sum(self.ranks.gather(sum(p.rows for p in self.mine if p.number in found)))
        left = [p for p in self.mine if p.number not in found]
        if done:
            self._say(f"{done:,} of {self.source.rows:,} rows were scanned before.")
        with self._part("Scanning", self.source.rows, done, sum(p.rows for p in left)) as tell:
            request, together = self.request, self.request.threads > 1

            def scan(piece: Piece) -> None:
                found[piece.number] = scan_piece(
                    self.source,
                    piece,
                    self.scorer,
                    bracket,
                    self._spool(piece),
                    self._seal(piece, bracket),
                    request.batch_rows,
                    request.allow_negative_cost,
                    tell,
                    ahead=not together,
                )

            self.ranks.each(lambda: for_each(left, scan, request.threads))
        everyone = {n: footer for some in self.ranks.gather(found) for n, footer in some.items()}
        return [everyone[p.number] for p in self.source.pieces]

    def _check_users(self, footers: list[Footer]) -> None:
        if not self.request.check_duplicates:
            return
        pieces = unproved_pieces(self.source, footers)
        if not pieces:
            return
        rows = sum(p.rows for p in pieces)
        mine = pieces[self.ranks.rank :: self.ranks.size]
        with self._part("Checking user ids", rows, 0, sum(p.rows for p in mine)) as tell:
            check_unique(self.source, pieces, self.scorer.ids, self.folder / "users", self.ranks, tell)

    def _decide(self, bracket: Bracket, footers: list[Footer]) -> Decision | Miss:
        share = OpenShare(
            bracket,
            lambda: (read_open(self._spool(p), footers[p.number], p.number) for p in self.mine),
            sum(footers[p.number].open for p in self.mine),
            [x for p in self.mine for x in footers[p.number].spend],
            [x for p in self.mine for x in footers[p.number].worth],
        )
        budget = self.request.budget
        start = time.perf_counter()
        decision = decide(share, budget, self.ranks)
        self.seconds["Deciding"] = self.seconds.get("Deciding", 0.0) + time.perf_counter() - start
        if isinstance(decision, Miss) and decision.above and bracket[1] >= LARGEST:
            least = spend_at(share, LARGEST, self.ranks)
            raise InputError(
                f"budget={budget!r} in total",
                f"at least {least!r}, the least feasible spend",
                "raise the budget or add a cheaper treatment, such as a free control arm",
            )
        return decision

    def _write(self, decision: Decision, footers: list[Footer], passes: int) -> Result:
        certificate = decision.certificate(self.source.rows, self.request.budget)
        made = self.folder / "out"
        files = range(len(self.source.files))[self.ranks.rank :: self.ranks.size]
        counts: dict[int, list[int]] = {}
        text = json.dumps([certificate, self.scorer.treatments, [f.seal for f in footers]])
        seal = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        done = self.folder / "written"
        room = self.folder / "writing"

        def make_folders() -> None:
            done.mkdir(exist_ok=True)
            room.mkdir(exist_ok=True)
            prepare(made, self.source)

        self.ranks.first(make_folders)

        def mark(index: int) -> Path:
            return done / f"{hashlib.blake2b(self.source.files[index].name.encode(), digest_size=12).hexdigest()}.json"

        rows = [f.rows for f in self.source.files]
        for index in files:
            state = work.read_state(mark(index))
            if state.get("seal") == seal and (made / self.source.files[index].name).is_file():
                counts[index] = state["counts"]
        left = [i for i in files if i not in counts]
        before = sum(self.ranks.gather(sum(rows[i] for i in counts)))
        with self._part("Writing", self.source.rows, before, sum(rows[i] for i in left)) as tell:

            def write(index: int) -> None:
                spools = {p.number: (self._spool(p), footers[p.number]) for p in self.source.pieces if p.file == index}
                path = made / self.source.files[index].name
                counts[index] = write_partition(
                    self.source,
                    index,
                    spools,
                    decision,
                    certificate,
                    self.scorer,
                    path,
                    room,
                    self.request.batch_rows,
                    tell,
                )
                work.write_state(mark(index), {"seal": seal, "counts": counts[index]})

            self.ranks.each(lambda: for_each(left, write, self.request.threads))

        def finish() -> None:
            for file in self.source.files:
                file.check_unchanged()
            if not self.source.single:
                write_certificate(made, certificate)
            if self.request.save_policy is not None:
                self.request.save_policy(made / POLICY, certificate)
            publish(made, self.request.output, self.source.single)
            shutil.rmtree(self.folder / "spools")

        self.ranks.first(finish)
        everyone = [c for some in self.ranks.gather(list(counts.values())) for c in some]
        return Result(certificate, [sum(x) for x in zip(*everyone, strict=True)], passes, self.seconds)

    @contextmanager
    def _part(self, title: str, total: int, done: int, mine: int) -> Iterator[Rows]:
        """Show and time one part of the job, of whose rows left this process does ``mine``."""
        start = time.perf_counter()
        with progress(title, total, done, max(mine, 1) / max(total - done, 1), self.shown) as tell:
            yield tell
        self.seconds[title] = self.seconds.get(title, 0.0) + time.perf_counter() - start

    def _say(self, text: str) -> None:
        if self.shown:
            print(text)


def _moved(bracket: Bracket, miss: Miss, tries: int) -> Bracket:
    """The bracket beside the one that missed, wider each time, in the end all that is left on that side."""
    low, high = bracket
    width = max(high - low, 1e-3 * high, 1e-300) * 4**tries
    if miss.above:
        return high, LARGEST if tries > 3 else min(high + width, LARGEST)
    return 0.0 if tries > 3 else max(low - width, 0.0), min(miss.fits, high)
