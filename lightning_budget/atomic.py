"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and vanishes otherwise.

    The temporary name ends with the name of ``path``, so writers that go by the suffix see the right one. The data is
    on disk before the rename and the rename is on disk before this returns. Permissions are those of an existing
    ``path``, else those of a newly created file.

    Args:
        path: the final file; its folder must exist.

    Yields:
        A path in the same folder, an empty file, to be written by the caller.

    Raises:
        OSError: the folder is missing or cannot be written; nothing is left behind.
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=f".tmp-{target.name}")
    temporary = Path(name)
    try:
        os.fchmod(descriptor, _mode(target))
        os.close(descriptor)
        yield temporary
        sync_path(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(target.parent)


def _mode(target: Path) -> int:
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def sync_path(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
