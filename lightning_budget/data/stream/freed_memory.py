"""Memory that is freed stays with the process, to be used again."""

from __future__ import annotations

import ctypes
import os
from functools import cache

import pyarrow as pa

ARENA_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -8, -3, -1
LARGEST, KEPT = 32 << 20, 256 << 20
POOL = "ARROW_DEFAULT_MEMORY_POOL"
"""Environment variable: whoever names a pool for Arrow keeps it."""


@cache
def keep_freed_memory() -> bool:
    """Ask the C library not to give freed blocks of up to 32 MiB back to the system, nor free space below 256 MiB.

    Columns of a million rows are made and dropped all the time; getting pages from the system anew costs more than what
    is done with them. All threads take from the same space, which alone is kept, and so does Arrow; what has been freed
    elsewhere until then is given back. Of the whole process, once; whether the library has taken it: glibc does.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError):
        return False
    settings = ((ARENA_MAX, 1), (MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, KEPT))
    if not all(mallopt(name, value) for name, value in settings):
        return False
    if POOL not in os.environ:
        pa.default_memory_pool().release_unused()
        pa.set_memory_pool(pa.system_memory_pool())
    trim(0)
    return True
