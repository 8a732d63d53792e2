"""Process groups on the host that one training after another in a process shares.

A gloo group holds threads that wake up as long as it lives, and nothing ends it before the process ends: hundreds of
trainings in one process, each with groups of its own, would leave its processors to them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import cast

import torch.distributed as dist

_kept: dict[tuple[str, timedelta | None], dist.ProcessGroup] = {}
_of: dist.ProcessGroup | None = None


def host_group(purpose: str, timeout: timedelta | None = None) -> dist.ProcessGroup:
    """The gloo group of all ranks for a purpose: collectives of different purposes never wait for each other.

    Made at the first call, which every rank must make, and again once the default group is another.

    Args:
        purpose: name of what it is for.
        timeout: of its collectives; ``None``: as torch has it.
    """
    global _of
    if _of is not dist.group.WORLD:
        _kept.clear()
        _of = dist.group.WORLD
    if (purpose, timeout) not in _kept:
        _kept[purpose, timeout] = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))
    return _kept[purpose, timeout]
