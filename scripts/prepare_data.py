"""A published data set as typed Parquet, checked: ``python scripts/prepare_data.py NAME --from PATH``.

Without ``--from`` it says where a person gets the data and under which licence; without NAME, which data sets there
are. Nothing is downloaded.

Exit codes: 0 done (with ``--force`` also if a check failed); 1 a check failed; 2 input error; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lightning_budget.errors import InputError
from lightning_budget.published.catalogue import GENERATED, PUBLISHED, known_name
from lightning_budget.published.generate import ROWS, SEED, campaign_mt7, criteo_mt7
from lightning_budget.published.prepare import Advance, Prepared, prepare
from lightning_budget.published.prepare import Progress as Report
from lightning_budget.published.render import checks_table, description, overview

WIDTH = 120
NAMED = 3


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="prepare_data.py", description="A published data set as typed Parquet, checked.")
    p.add_argument("name", nargs="?", metavar="NAME", help=", ".join([*PUBLISHED, *GENERATED]))
    p.add_argument("--from", dest="source", type=Path, metavar="PATH", help="the publisher's file or folder")
    p.add_argument("--to", type=Path, metavar="PATH", help="default: NAME.parquet beside the source")
    p.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    p.add_argument("--force", action="store_true", help="write the file although a check failed")
    p.add_argument("--rows", type=int, default=ROWS, help=f"users of criteo_mt7 and campaign_mt7 (default {ROWS:,})")
    p.add_argument("--seed", type=int, default=SEED, help=f"of criteo_mt7 and campaign_mt7 (default {SEED})")
    return p


def console() -> Console:
    """Wide enough that no number is cut off; the terminal folds longer lines."""
    made = Console(highlight=False)
    made.size = ConsoleDimensions(max(made.width, WIDTH), made.height)
    return made


@contextmanager
def bars() -> Iterator[Report]:
    """Progress bars on standard error, where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as shown:

        def report(task: str, size: int) -> Advance:
            number = shown.add_task(task, total=size)
            return lambda done: shown.advance(number, done)

        yield report


def tell(out: Console, name: str) -> None:
    """Where the data is from."""
    if name in PUBLISHED:
        out.print(description(PUBLISHED[name]))
        out.print(f"\nThen: python scripts/prepare_data.py {name} --from PATH", markup=False)
    else:
        out.print(overview([(name, GENERATED[name])]))
        if name == "criteo_mt7":
            out.print(description(PUBLISHED["criteo"]))
        out.print(f"\nThen: python scripts/prepare_data.py {name} --from PATH_OF_CRITEO", markup=False)


def output_of(args: argparse.Namespace) -> Path:
    """Where the file goes.

    Raises:
        InputError: if it is there already.
    """
    if args.to is not None:
        output = args.to
    else:
        folder = Path() if args.source is None else args.source if args.source.is_dir() else args.source.parent
        output = folder / f"{args.name}.parquet"
    output = output.expanduser()
    if args.source is not None and output.exists() and args.source.exists() and output.samefile(args.source):
        raise InputError(f"{output} is the source itself", "another file", "--to another.parquet")
    if output.exists() and not args.overwrite:
        raise InputError(f"{output} is there already", "a new file", "--overwrite, or another --to")
    return output


def make(args: argparse.Namespace, report: Report) -> Prepared:
    """Prepare or generate."""
    output = output_of(args)
    if args.name == "campaign_mt7":
        return campaign_mt7(output, args.rows, args.seed, report)
    if args.name == "criteo_mt7":
        return criteo_mt7(args.source, output, args.rows, args.seed, args.force, report)
    return prepare(PUBLISHED[args.name], args.source, output, args.force, report)


def show(out: Console, done: Prepared) -> None:
    """Checks, remarks, and what was written."""
    if done.checks:
        out.print(checks_table(done.checks))
    for remark in done.remarks:
        out.print(f"- {remark}", markup=False)
    if done.output is not None:
        out.print(f"\n{done.rows:,} rows: {done.output}", markup=False)


def run(argv: Sequence[str] | None = None) -> int:
    """The whole command; returns the exit code.

    Raises:
        InputError: for what a person can mend.
    """
    args, out = parser().parse_args(argv), console()
    if args.name is None:
        out.print(overview([*((d.name, d.title) for d in PUBLISHED.values()), *GENERATED.items()]))
        return 0
    args.name = known_name(args.name)
    if args.source is None and args.name != "campaign_mt7":
        tell(out, args.name)
        return 0
    if args.source is not None:
        args.source = args.source.expanduser()
    with bars() as report:
        done = make(args, report)
    show(out, done)
    if done.passed:
        return 0
    failed = [check.name for check in done.checks if check.passed is False]
    more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    what = f"not as published: {'; '.join(failed[:NAMED])}{more}"
    if done.output is not None:
        print(f"warning: {what}; written all the same", file=sys.stderr)
        return 0
    print(f"error: {what}; nothing written; fix: get the file anew, or --force", file=sys.stderr)
    return 1


def main() -> None:
    """Entry point."""
    try:
        code = run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
