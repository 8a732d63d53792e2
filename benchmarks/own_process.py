"""Measurements in a process of their own: with its own threads, memory layout and peak of memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    """What the function returns, called in a new process.

    Raises:
        SystemExit: if that process dies.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["estimator_cost"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        sys.exit(f"{function.__name__} died, see above")
    process.join()
    return result


def _send(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    connection.send(function(*arguments))
