"""What the watchdogs of a run say to each other: JSON lines over TCP."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import weakref
from dataclasses import dataclass
from typing import Any

KEEPALIVE = 60
"""Seconds without an answer from the kernel of a rank's machine after which the rank is lost."""
MAX_LINE = 1 << 16

LOST, FAILED, REFUSED, INTERRUPTED = "lost", "failed", "refused", "interrupted"
BROKEN = "broken"
"""A collective of this rank broke: it is a victim, or the cause if no other rank is."""
BYE = "bye"
"""From a rank: it leaves in peace."""
WELCOME, END = "welcome", "end"
"""From the hub: the token is right; there is nothing more to say."""

Message = dict[str, Any]

_open: weakref.WeakSet[socket.socket] = weakref.WeakSet()


@dataclass(frozen=True)
class Cause:
    """Why a run ends.

    Attributes:
        kind: ``lost``, ``failed``, ``refused`` (an ``InputError``) or ``interrupted``.
        rank: the first to end.
        text: its message, one line.
    """

    kind: str
    rank: int
    text: str


def owned(connection: socket.socket) -> socket.socket:
    """Have a socket closed in processes forked from this one.

    A data loader's worker that outlives its killed rank would otherwise keep the rank's connection open.
    """
    _open.add(connection)
    return connection


def _close_in_child() -> None:
    for connection in list(_open):
        connection.close()


os.register_at_fork(after_in_child=_close_in_child)


class Line:
    """Messages over a connected socket, which it owns."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, KEEPALIVE // 3),
            (socket.TCP_KEEPINTVL, KEEPALIVE // 6),
            (socket.TCP_USER_TIMEOUT, KEEPALIVE * 1000),
            (socket.TCP_NODELAY, 1),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self.socket = owned(connection)
        self._rest = b""

    def send(self, message: Message) -> None:
        """Send, or do nothing if the peer is gone: that is noticed where its messages are read."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message] | None:
        """What has arrived, waiting for something; ``None`` at the end of the connection.

        Raises:
            TimeoutError: nothing came within the socket's timeout.
        """
        try:
            data = self.socket.recv(MAX_LINE)
        except OSError as e:
            # A lost machine ends in a TimeoutError too, but in one with an error number.
            if isinstance(e, TimeoutError) and e.errno is None:
                raise
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        well = data and len(self._rest) < MAX_LINE and all(isinstance(m, dict) for m in messages)
        return messages if well else None
