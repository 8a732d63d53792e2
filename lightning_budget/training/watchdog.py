"""The end of one rank is the end of all, and its cause is what the user reads.

A collective waits for a rank that will never come, and ranks that do notice show a stack trace about a closed
connection. So every rank keeps a TCP connection to a hub, a thread in rank 0's process::

    rank 1   "failed: ValueError: …"  ─┐       ┌─→  rank 0 prints one line and exits
    rank 2                            ─┼─ hub ─┤
    rank 0                            ─┘       └─→  rank 2 prints one line and exits

The kernel closes the connection of a process however it dies; one that closes without ``bye`` is a lost rank. There
are no heartbeats that could come late: a rank that computes for minutes, holds the interpreter's lock or is stopped
still has its connection. The loss of a whole machine is told by TCP keepalive, which kernels answer.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing.util import Finalize
from types import TracebackType
from typing import TYPE_CHECKING

from lightning_budget.errors import InputError
from lightning_budget.training.watchdog_hub import DRAIN, JOIN, LOST_TEXT, PATIENCE, SETTLE, Hub
from lightning_budget.training.watchdog_wire import (
    BROKEN,
    BYE,
    END,
    FAILED,
    INTERRUPTED,
    LOST,
    REFUSED,
    Cause,
    Line,
    Message,
)

if TYPE_CHECKING:
    import torch.distributed as dist

GRACE = 2.0
"""Seconds a rank has to end by itself when another was interrupted or refused its input."""
EXIT_CODES = {LOST: 1, FAILED: 1, REFUSED: 2, INTERRUPTED: 130}
MAX_TEXT = 500

_BROKEN = re.compile(r"gloo|nccl|collective|connection|socket|store|process ?group|timed? ?out", re.IGNORECASE)
_watching: Watchdog | None = None


class Watchdog:
    """One rank's connection to the hub; :func:`watch` makes it.

    Args:
        rank: of this process.
        address: host and port of the hub.
        token: shared by the ranks of the run; the hub drops connections without it.
        hub: on rank 0, started.

    Raises:
        OSError: the hub cannot be reached or drops this rank.
    """

    def __init__(self, rank: int, address: tuple[str, int], token: str, hub: Hub | None = None) -> None:
        self.rank, self._hub, self._pid = rank, hub, os.getpid()
        self._cause: Cause | None = None
        self._decided, self._own_way, self._over = threading.Event(), threading.Event(), threading.Event()
        self._line = Line(socket.create_connection(address, timeout=JOIN))
        self._line.send({"token": token, "rank": rank, "pid": self._pid})
        welcome = self._line.receive()
        if not welcome:
            raise ConnectionError(f"the watchdog at {address[0]}:{address[1]} does not take rank {rank}")
        self._line.socket.settimeout(None)
        self._previous_hook = sys.excepthook
        self._hook = sys.excepthook = self._on_uncaught
        # As atexit, but also run in ranks that multiprocessing started.
        self._at_exit = Finalize(None, self.stop, exitpriority=0)
        self._thread = threading.Thread(target=self._listen, args=(welcome[1:],), name="watchdog", daemon=True)
        self._thread.start()

    def report(self, exception: BaseException) -> None:
        """Tell the other ranks that this one ends, and why.

        Returns if this rank is the first to end, so that its traceback is seen. If another one is, this does not
        return: that rank's message is printed and the process exits. An ``InputError`` is left to rank 0 to tell, so
        that what every rank refuses is said once. An interruption is passed on quietly.
        """
        if self._over.is_set() or os.getpid() != self._pid:
            return
        kind = _kind(exception)
        self._line.send({"kind": kind, "text": _one_line(exception)})
        if kind == INTERRUPTED:
            self._own_way.set()
            return
        # Rank 0 speaks for all whose input was refused, and may be busy.
        self._decided.wait(SETTLE + (PATIENCE if kind == REFUSED else 2))
        cause = self._cause
        if cause is not None and cause.kind == kind == REFUSED:
            if self.rank != 0:
                self._leave(EXIT_CODES[REFUSED])
        elif cause is not None and cause.rank != self.rank:
            self._thread.join()
        self._own_way.set()

    def stop(self) -> None:
        """Leave in peace; the other ranks go on. Done by itself when the process exits."""
        if os.getpid() != self._pid:
            return
        cause = self._cause
        if cause is not None and cause.rank != self.rank and not self._own_way.is_set():
            self._thread.join()
        self._say_goodbye()
        self._thread.join()
        self._line.socket.close()
        self._at_exit.cancel()
        _unhook(self)

    def _say_goodbye(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self._line.send({"kind": BYE})
        with contextlib.suppress(OSError):
            self._line.socket.shutdown(socket.SHUT_RDWR)
        if self._hub is not None:
            self._hub.join(DRAIN + 1)

    def _on_uncaught(self, kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        """Exceptions outside a trainer, which Lightning does not hear of."""
        self.report(value)
        self._previous_hook(kind, value, trace)

    def _listen(self, messages: list[Message] | None) -> None:
        while messages is not None:
            for message in messages:
                if message["kind"] == END:
                    self._finish()
                    return
                self._learn(Cause(**message))
            try:
                messages = self._line.receive()
            except TimeoutError:
                break
        if not self._over.is_set():
            self._learn(Cause(LOST, 0, LOST_TEXT))
            self._finish()

    def _learn(self, cause: Cause) -> None:
        if self._cause is None:
            self._cause = cause
            self._line.socket.settimeout(PATIENCE + DRAIN)
            if cause.kind in (LOST, FAILED) and cause.rank != self.rank:
                _say(cause, self.rank)
            self._decided.set()

    def _finish(self) -> None:
        """The hub has ended: so does this process, if the cause lies with another rank."""
        cause = self._cause
        if cause is None:
            self._over.set()
            # The hub waits for that.
            with contextlib.suppress(OSError):
                self._line.socket.shutdown(socket.SHUT_RDWR)
        elif cause.rank != self.rank:
            if cause.kind == INTERRUPTED or (cause.kind == REFUSED and self.rank == 0):
                if self._own_way.wait(GRACE):
                    return
                if self.rank == 0:
                    _say(cause, self.rank)
            self._leave(EXIT_CODES[cause.kind])

    def _leave(self, code: int) -> None:
        _within(1.0, sys.stdout.flush)
        _within(1.0, sys.stderr.flush)
        self._say_goodbye()
        # The main thread may be inside a collective that never returns.
        os._exit(code)


def watch(group: dist.ProcessGroup, nodes: int = 1) -> Watchdog | None:
    """Watch the ranks of a run from now until their processes exit. Called on every rank; later calls do nothing.

    Args:
        group: of all ranks, on gloo.
        nodes: machines of the run; with more than one, rank 0 is reached at ``MASTER_ADDR``.

    Returns:
        The watchdog, or ``None`` for a single rank.

    Raises:
        OSError: rank 0 cannot be reached.
    """
    # Here, so that a rank's watchdog can be used before torch is loaded.
    import torch.distributed as dist

    global _watching
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    if world_size == 1 or _watching is not None:
        return _watching
    hub = Hub(world_size, everywhere=nodes > 1) if rank == 0 else None
    if hub is not None:
        hub.start()
    box = [None if hub is None else (hub.port, hub.token)]
    dist.broadcast_object_list(box, src=0, group=group)
    assert box[0] is not None
    port, token = box[0]
    host = os.environ["MASTER_ADDR"] if nodes > 1 else "127.0.0.1"
    _watching = Watchdog(rank, (host, port), token, hub)
    _retire_lightnings_observer()
    return _watching


def report(exception: BaseException) -> None:
    """:meth:`Watchdog.report` of this process's watchdog; nothing where there is none."""
    if _watching is not None:
        _watching.report(exception)


def _retire_lightnings_observer() -> None:
    """Lightning's launcher sends rank 0 a SIGKILL when a rank has died, perhaps before the cause is printed."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            # It ends when none of its processes can fail.
            thread._child_processes = []  # type: ignore[attr-defined]


def _kind(exception: BaseException) -> str:
    # Lightning raises a subclass of SystemExit on every rank after a SIGTERM.
    if isinstance(exception, (KeyboardInterrupt, SystemExit)) and type(exception) is not SystemExit:
        return INTERRUPTED
    if isinstance(exception, InputError):
        return REFUSED
    # gloo's errors are plain RuntimeErrors. To take another error for one of them only costs SETTLE seconds.
    return BROKEN if isinstance(exception, RuntimeError) and _BROKEN.search(str(exception)) else FAILED


def _one_line(exception: BaseException) -> str:
    text = " ".join(str(exception).split())
    if not isinstance(exception, InputError):
        text = f"{type(exception).__name__}: {text}" if text else type(exception).__name__
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _say(cause: Cause, rank: int) -> None:
    text = {
        LOST: f"error: rank {cause.rank} {cause.text}; rank {rank} stops; resume with ckpt_path=<run folder>",
        FAILED: f"error: rank {cause.rank} failed: {cause.text}; rank {rank} stops",
        REFUSED: f"error: rank {cause.rank}: {cause.text}",
        INTERRUPTED: f"rank {cause.rank} was interrupted; rank {rank} stops",
    }[cause.kind]
    # Not through Python's buffers, whose locks the main thread may hold; on a terminal, below a progress bar.
    start = "\n" if os.isatty(2) else ""
    _within(1.0, lambda: os.write(2, f"{start}{text}\n".encode()))


def _within(seconds: float, action: Callable[[], object]) -> None:
    """Do what may block for ever, such as writing to a pipe that nobody reads, and go on after a while."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            action()

    thread = threading.Thread(target=quietly, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is shutting down
        quietly()
    else:
        thread.join(seconds)


def _unhook(watchdog: Watchdog) -> None:
    global _watching
    if _watching is watchdog:
        _watching = None
    if sys.excepthook == watchdog._hook:
        sys.excepthook = watchdog._previous_hook


def _forget() -> None:
    """In a forked process, which is no rank."""
    if _watching is not None:
        _unhook(_watching)


os.register_at_fork(after_in_child=_forget)
