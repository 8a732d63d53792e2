"""Ranks on gloo as real processes, forked from one that has loaded torch, each with its own record of stderr."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch.distributed as dist

from lightning_budget.errors import InputError
from lightning_budget.training import watchdog
from tests import forked

LIMIT = 10.0
"""Seconds within which every rank must be gone."""


def collective(rank: int) -> None:
    """Wait for ranks that never come."""
    dist.barrier()


def stuck(rank: int) -> None:
    """Wait for a message from a rank that lives and never sends one."""
    import torch

    dist.recv(torch.zeros(1), src=(rank + 1) % 2)


def busy(rank: int) -> None:
    """Compute without a pause."""
    while True:
        pass


def hold_the_lock(rank: int) -> None:
    """Keep all other Python threads of the process from running for a while."""
    sum(range(30_000_000))


def sleep(rank: int) -> None:
    time.sleep(600)


def nap(rank: int) -> None:
    time.sleep(0.2)


def late(rank: int) -> None:
    time.sleep(2)


def leave(rank: int) -> None:
    """End at once."""


def fail(rank: int) -> None:
    raise ValueError(f"bad luck on rank {rank}\nin two lines")


def exit_early(rank: int) -> None:
    sys.exit(3)


def refuse(rank: int) -> None:
    raise InputError("row 3 holds 1", "0", "mend it")


def refuse_late(rank: int) -> None:
    time.sleep(0.3)
    refuse(rank)


def leave_a_child(rank: int) -> None:
    """Sleep beside a forked process, as a data loader's worker, that outlives this one."""
    if os.fork() == 0:
        time.sleep(LIMIT + 5)
        os._exit(0)
    time.sleep(600)


Act = Callable[[int], None]


@dataclass
class Run:
    """Ranks of one run.

    Attributes:
        processes: by rank.
        folder: of their records.
        ends: seconds of the clock at which each was seen to be gone, by rank.
    """

    processes: list[BaseProcess]
    folder: Path
    ends: dict[int, float]

    def wait(self, limit: float = LIMIT) -> None:
        """Until all are gone.

        Raises:
            TimeoutError: after ``limit`` seconds, naming who is left.
        """
        start = time.monotonic()
        while alive := [rank for rank, p in enumerate(self.processes) if rank not in self.ends]:
            for rank in alive:
                if not self.processes[rank].is_alive():
                    self.ends[rank] = time.monotonic()
            if time.monotonic() - start > limit:
                raise TimeoutError(f"after {limit} s ranks {alive} are left: {[self.told(r) for r in alive]}")
            time.sleep(0.005)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def told(self, rank: int) -> str:
        """All that a rank wrote on stderr."""
        return (self.folder / f"{rank}.err").read_text()

    @property
    def codes(self) -> list[int | None]:
        """Exit codes by rank, negative for signals."""
        return [p.exitcode for p in self.processes]


def _rank(rank: int, world_size: int, folder: str, act: Act) -> None:
    os.dup2(os.open(f"{folder}/{rank}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.setpgid(0, 0)
    # A shell that runs tests in the background has interruptions ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    assert dist.group.WORLD is not None
    watchdog.watch(dist.group.WORLD)
    Path(folder, f"{rank}.ready").touch()
    try:
        while len(list(Path(folder).glob("*.ready"))) < world_size:
            time.sleep(0.005)
        act(rank)
    except InputError as error:
        # As the command lines do.
        watchdog.report(error)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BaseException as error:
        watchdog.report(error)
        if (slow := Path(folder, "slow")).exists():
            time.sleep(float(slow.read_text()))
        raise


@contextmanager
def ranks(folder: Path, acts: Sequence[Act]) -> Iterator[Run]:
    """Start one rank per act and wait until each is about to act; none outlives the block."""
    forkserver = forked.context()
    processes: list[BaseProcess] = [
        forkserver.Process(target=_rank, args=(rank, len(acts), str(folder), act)) for rank, act in enumerate(acts)
    ]
    try:
        for process in processes:
            process.start()
        start = time.monotonic()
        while len(list(folder.glob("*.ready"))) < len(acts):
            assert time.monotonic() - start < 60, "the ranks do not start"
            time.sleep(0.01)
        yield Run(processes, folder, {})
    finally:
        for process in processes:
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.join()
