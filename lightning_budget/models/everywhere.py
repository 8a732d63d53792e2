"""Numbers of a training step of all processes together, where each process keeps the same count."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def everywhere(mine: list[Tensor]) -> list[Tensor]:
    """Each tensor ``[n]`` followed by those of all other processes, in the order of the processes.

    A collective operation where there are several processes; all tensors of one kind.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return mine
    whole = torch.cat(mine)
    size = torch.tensor([len(x) for x in mine], device=whole.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    lengths = [s.tolist() for s in sizes]
    # Of one size, as gloo and nccl both want.
    most = max(map(sum, lengths))
    padded = torch.cat([whole, whole.new_zeros(most - len(whole))])
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    parts = [g[: sum(n)].split(n) for g, n in zip(gathered, lengths, strict=True)]
    return [torch.cat(of_feature) for of_feature in zip(*parts, strict=True)]
