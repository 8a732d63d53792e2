"""The folder beside the output in which a job keeps what it has done, and the lock that makes it the only one there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_budget.errors import InputError
from lightning_budget.streaming.ranks import Ranks

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def work_folder(output: Path) -> Path:
    """Where a job with this output works."""
    return output.with_name(f".{output.name}.work")


@contextmanager
def only_job(folder: Path, output: Path) -> Iterator[None]:
    """Make the folder and hold its lock.

    The system lets go of the lock when the process ends in whatever way, so a killed job does not bar the next one.

    Raises:
        InputError: if another job has it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
                raise InputError(
                    f"output={str(output)!r} is being written by {holder}",
                    "one job at a time for an output",
                    "wait for it, or give another output=…",
                ) from None
            if _same_file(folder / "lock", descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                yield
                return
            # The last job removed the folder between our two steps.
        finally:
            os.close(descriptor)


@contextmanager
def workplace(output: Path, ranks: Ranks) -> Iterator[Path]:
    """The work folder of all processes of the only job with this output.

    It goes when the job ends well, or badly with nothing worth keeping; else it stays for the next try.

    Raises:
        InputError: if another job has it, or it cannot be made.
    """
    folder, new = work_folder(output), _missing(output.parent)
    with contextlib.ExitStack() as lock:

        def take() -> None:
            try:
                lock.enter_context(only_job(folder, output))
            except OSError as e:
                why = f"output={str(output)!r}: {e.strerror or e}"
                raise InputError(why, "a folder that can be written", "give another output=…") from e
            lock.callback(_clear, folder, new)

        ranks.first(take)
        yield folder


def _missing(folder: Path) -> list[Path]:
    return [p for p in (folder, *folder.parents) if not p.exists()]


def _clear(folder: Path, new: list[Path]) -> None:
    """Remove the folder unless it holds a spool, and folders that were made for nothing."""
    if any((folder / "spools").glob("*.spool")):
        return
    remove(folder)
    for path in new:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def remove(folder: Path) -> None:
    """Remove the folder with all that is in it, the lock last."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name == "lock":
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with contextlib.suppress(FileNotFoundError):
        (folder / "lock").unlink()
        folder.rmdir()


def read_state(path: Path) -> dict[str, Any]:
    """What :func:`write_state` left; empty if there is nothing, or if the machine was started anew since.

    Spools are not forced onto the disk, which would cost more than the scan; after a crash of the machine they may be
    anything, and are not used.
    """
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return state if state.pop("boot", None) == boot() else {}


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Record plain data, whole or not at all."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps({**state, "boot": boot()}))
    os.replace(temporary, path)


def boot() -> str:
    """Changes when the machine is started anew; empty where that cannot be told."""
    return _BOOT.read_text().strip() if _BOOT.exists() else ""


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
