"""The machine behind a figure: hardware, versions, memory."""

from __future__ import annotations

import os
import re
from importlib.metadata import version
from pathlib import Path

import torch


def gpu() -> str | None:
    """Name of the CUDA device, ``None`` without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def hardware() -> str:
    """Processor, cores, memory and GPU in one line."""
    name = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    parts = [name.group(1).strip() if name else "CPU", f"{os.cpu_count()} cores", f"{memory:.0f} GiB"]
    return ", ".join([*parts, *([gpu() or ""] if gpu() else [])])


def versions() -> str:
    """Packages whose versions the figures depend on."""
    return f"torch {torch.__version__}, torchrec {version('torchrec')}, lightning {version('lightning')}"


def result_file(folder: Path, benchmark: str) -> Path:
    """Where a full run writes; the name says what it ran on."""
    return folder / f"{benchmark}_{re.sub(r'[^a-z0-9]+', '_', (gpu() or 'cpu').lower()).strip('_')}.md"


def memory(field: str) -> float:
    """A memory figure of this process in GiB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) / 2**20
