"""Process groups on the host that one training after another in a process shares.

A gloo group holds threads that wake up as long as it lives, and torch keeps it until ``destroy_process_group``:
hundreds of trainings in one process, each with groups of its own, would leave its processors to them.
"""

from __future__ import annotations

import weakref
from datetime import timedelta
from typing import cast

import torch.distributed as dist

# Weakly: torch owns groups, and ends their threads with the last reference.
_kept: weakref.WeakValueDictionary[tuple[str, timedelta | None], dist.ProcessGroup] = weakref.WeakValueDictionary()
_of: weakref.ref[dist.ProcessGroup] | None = None


def host_group(purpose: str, timeout: timedelta | None = None) -> dist.ProcessGroup:
    """The gloo group of all ranks for a purpose: collectives of different purposes never wait for each other.

    Made at the first call, which every rank must make, and again once the default group is another.

    Args:
        purpose: name of what it is for.
        timeout: of its collectives; ``None``: as torch has it.
    """
    global _of
    world = cast(dist.ProcessGroup, dist.group.WORLD)
    if _of is None or _of() is not world:
        _kept.clear()
        _of = weakref.ref(world)
    if (group := _kept.get((purpose, timeout))) is None:
        group = _kept[purpose, timeout] = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))
    return group
