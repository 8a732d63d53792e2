"""The hub of the watchdogs, a thread in rank 0's process: hears every rank and decides which one ended first."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from lightning_budget.training.watchdog_wire import (
    BROKEN,
    BYE,
    END,
    FAILED,
    INTERRUPTED,
    LOST,
    WELCOME,
    Cause,
    Line,
    Message,
    owned,
)

JOIN = 60.0
"""Seconds a rank has to connect."""
SETTLE = 3.0
"""Seconds that a rank whose collective broke is not yet believed to be the cause."""
PATIENCE = 10.0
"""Seconds the first rank to end has for its traceback and loggers before the others leave."""
DRAIN = 3.0
"""Seconds the others have to be gone before those that rank 0's process started are killed."""
FAREWELL = 0.5
"""Seconds rank 0 waits for the others to hear that it ended well."""

LOST_TEXT = "was lost without a word (killed, or out of memory?)"
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class Hub(threading.Thread):
    """Started on rank 0; ends when rank 0 leaves, or when the run failed and the other ranks are gone.

    Args:
        world_size: number of ranks, rank 0 among them.
        everywhere: listen on every interface instead of on this machine alone.

    Attributes:
        port, token: what a rank needs to connect.
    """

    def __init__(self, world_size: int, everywhere: bool = False) -> None:
        super().__init__(name="watchdog-hub", daemon=True)
        dual = everywhere and socket.has_dualstack_ipv6()
        self._listener = owned(
            socket.create_server(
                ("" if everywhere else "127.0.0.1", 0),
                family=socket.AF_INET6 if dual else socket.AF_INET,
                dualstack_ipv6=dual,
                backlog=world_size,
            )
        )
        self.port, self.token = int(self._listener.getsockname()[1]), secrets.token_hex(16)
        # Without a file descriptor of its own that a forked process would share.
        self._selector = selectors.PollSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._missing = set(range(world_size))
        self._ranks: dict[Line, int] = {}
        self._pids: dict[int, int] = {}
        self._left: set[int] = set()
        self._cause: Cause | None = None
        self._over = False
        self._alarms: list[tuple[float, Callable[[], None]]] = []

    def run(self) -> None:
        self._later(JOIN, self._miss)
        while not self._over or any(self._ranks.values()):
            due = min((at for at, _ in self._alarms), default=None)
            self._hear(self._selector.select(None if due is None else max(0.0, due - time.monotonic())))
            for alarm in [a for a in self._alarms if a[0] <= time.monotonic()]:
                self._alarms.remove(alarm)
                alarm[1]()
        for key in list(self._selector.get_map().values()):
            self._disconnect(key.data)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._alarms.append((time.monotonic() + seconds, action))

    def _hear(self, ready: Iterable[tuple[selectors.SelectorKey, int]]) -> None:
        arrived: list[tuple[Line, list[Message] | None]] = []
        for key, _ in ready:
            if key.data is not None:
                arrived.append((key.data, key.data.receive()))
            else:
                with contextlib.suppress(OSError):
                    line = Line(self._listener.accept()[0])
                    self._selector.register(line.socket, selectors.EVENT_READ, line)
        # What ranks said comes first: a rank may have been killed by one that told before why.
        for line, messages in arrived:
            for message in messages or ():
                self._take(line, message)
        for line, messages in arrived:
            if messages is None:
                self._lose(line)

    def _take(self, line: Line, message: Message) -> None:
        rank = self._ranks.get(line)
        if rank is None:
            self._admit(line, message)
        elif message["kind"] == BYE:
            self._left.add(rank)
            if rank == 0:
                self._end()
        elif message["kind"] == BROKEN:
            self._later(SETTLE, lambda: self._believe(rank, message["text"]))
        else:
            self._decide(Cause(message["kind"], rank, message["text"]))

    def _admit(self, line: Line, hello: Message) -> None:
        rank = hello.get("rank")
        known = hmac.compare_digest(str(hello.get("token")).encode(), self.token.encode())
        if not known or not isinstance(rank, int) or rank not in self._missing:
            self._disconnect(line)
            return
        self._missing.remove(rank)
        self._ranks[line] = rank
        with contextlib.suppress(OSError):
            if line.socket.getpeername()[0] in LOOPBACK:
                self._pids[rank] = int(hello["pid"])
        line.send({"kind": WELCOME})
        if not self._missing:
            for key in list(self._selector.get_map().values()):
                if key.data not in self._ranks:
                    self._disconnect(key.data)

    def _disconnect(self, line: Line | None) -> None:
        """Close a connection; with ``None``, the door."""
        connection = self._listener if line is None else line.socket
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection)
        connection.close()

    def _lose(self, line: Line) -> None:
        self._disconnect(line)
        rank = self._ranks.pop(line, None)
        if rank is None:
            return
        if self._cause is None and rank not in self._left:
            self._decide(Cause(LOST, rank, self._how_it_died(rank)))
        elif self._cause is not None and rank == self._cause.rank:
            self._end()

    def _decide(self, cause: Cause) -> None:
        if self._cause is None and not self._over:
            self._cause = cause
            self._tell(asdict(cause))
            if cause.rank in self._ranks.values():
                self._later(PATIENCE, self._end)
            else:
                self._end()

    def _believe(self, rank: int, text: str) -> None:
        """Blame a rank whose collective broke, unless another never connected."""
        if self._missing:
            self._decide(Cause(LOST, min(self._missing), LOST_TEXT))
        left = ", ".join(str(r) for r in sorted(self._left))
        self._decide(Cause(FAILED, rank, f"{text} (rank {left} had ended before)" if left else text))

    def _miss(self) -> None:
        if self._missing:
            self._decide(Cause(LOST, min(self._missing), "never connected to rank 0's watchdog"))

    def _end(self) -> None:
        """Let the ranks leave or, if rank 0 ended well, go on unwatched: no collective is possible any more."""
        if not self._over:
            self._over = True
            self._tell({"kind": END})
            self._later(FAREWELL if self._cause is None else DRAIN, self._kill_stragglers)

    def _tell(self, message: Message) -> None:
        for line in self._ranks:
            line.send(message)

    def _kill_stragglers(self) -> None:
        """Part with the ranks that are still connected; those of a failed run that are our children must not stay."""
        for line, rank in [(line, rank) for line, rank in self._ranks.items() if rank != 0]:
            ends_by_itself = self._cause is None or self._cause.kind == INTERRUPTED
            if not ends_by_itself and self._status(rank) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pids[rank], signal.SIGKILL)
            self._disconnect(line)
            del self._ranks[line]

    def _status(self, rank: int) -> Any:
        """How a rank's process ended, ``False`` while it runs, ``None`` if this process has not started it."""
        try:
            # Not reaped: whoever started it will do that.
            return os.waitid(os.P_PID, self._pids[rank], os.WEXITED | os.WNOHANG | os.WNOWAIT) or False
        except (ChildProcessError, KeyError):
            return None

    def _how_it_died(self, rank: int) -> str:
        status = self._status(rank)
        for _ in range(20):
            if status is not False:
                break
            # Its sockets close a moment before it can be waited for.
            time.sleep(0.01)
            status = self._status(rank)
        if not status:
            return LOST_TEXT
        if status.si_code == os.CLD_EXITED:
            return f"exited with code {status.si_status} without a word"
        memory = " (out of memory?)" if status.si_status == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(status.si_status).name}{memory}"
