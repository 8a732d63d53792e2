"""Files on this machine, and behind URLs that fsspec knows: ``s3://…``, ``gs://…``, ``memory://…``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, cast

from lightning_budget.errors import InputError


def is_url(path: str | Path) -> bool:
    """Whether it names a store other than this machine's disks."""
    return "://" in str(path)


def open_binary(path: str) -> BinaryIO:
    """A file or URL, for reading anywhere in it.

    Raises:
        OSError: if it is not there.
    """
    if not is_url(path):
        return open(path, "rb")
    system, inside = _system(path)
    return cast("BinaryIO", system.open(inside, "rb"))


def size_and_version(path: str) -> tuple[int, str]:
    """Bytes of a file or URL, and a text that changes when it is written anew.

    Raises:
        OSError: if it is not there.
    """
    if not is_url(path):
        stat = Path(path).stat()
        return stat.st_size, str(stat.st_mtime_ns)
    system, inside = _system(path)
    system.invalidate_cache()
    return int(system.info(inside)["size"]), str(system.ukey(inside))


def files_below(url: str) -> tuple[list[str], bool]:
    """All files at any depth below a URL as URLs, in the order of their names, and whether it is a file itself.

    Raises:
        OSError: if there is nothing.
    """
    system, inside = _system(url)
    if not system.exists(inside):
        raise FileNotFoundError(url)
    if system.isfile(inside):
        return [url], True
    return sorted(system.unstrip_protocol(path) for path in system.find(inside)), False


def filesystem_of(url: str) -> tuple[Any, str]:
    """The store's ``fsspec`` file system, and the path in it.

    Raises:
        InputError: if there is no such store, or its package is not installed.
    """
    return _system(url)


def _system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as e:
        raise InputError(
            f"{url}: {(str(e) or type(e).__name__).splitlines()[0]}",
            f"a path, or a URL of {', '.join(sorted(fsspec.available_protocols())[:40])}",
            "install the package of that store, or copy the files",
        ) from e
