"""Pieces of work on several threads of one process, which fail together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


def for_each(things: Iterable[T], work: Callable[[T], None], threads: int) -> None:
    """Do the work for all things, so many at a time; on one thread, in their order and without another thread.

    Raises:
        BaseException: that of the first thing in order whose work failed; what had not begun by then is left.
    """
    if threads < 2:
        for thing in things:
            work(thing)
        return
    with ThreadPoolExecutor(threads, "piece") as pool:
        begun = [pool.submit(work, thing) for thing in things]
        try:
            wait(begun, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        for one in begun:
            if not one.cancelled():
                one.result()
