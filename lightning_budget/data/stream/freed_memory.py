"""Memory that is freed stays with the process, to be used again."""

from __future__ import annotations

import ctypes
from functools import cache

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
LARGEST, KEPT = 32 << 20, 256 << 20


@cache
def keep_freed_memory() -> bool:
    """Ask the C library not to give freed blocks of up to 32 MiB back to the system, nor free space below 256 MiB.

    Columns of a million rows are made and dropped all the time; getting pages from the system anew costs more than what
    is done with them. Of the whole process, once; whether the library has taken it: glibc does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST)) and bool(mallopt(TRIM_THRESHOLD, KEPT))
