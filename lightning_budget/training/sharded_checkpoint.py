"""Checkpoints in which every rank reads and writes its own rows, in parallel: a folder of saves.

::

    last.ckpt/
      CURRENT        name of the newest complete save; replaced in one step once all ranks have written theirs
      save-7/        one save by torch.distributed.checkpoint: a file per rank, their index, and
        rest.pt      everything that is no shard: dense optimizer, loops, callbacks, hyperparameters

A kill at any moment leaves the save that CURRENT names.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata
from torch.distributed._shard.sharded_tensor.shard import Shard
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from lightning_budget.atomic import atomic_path, sync_path

CURRENT, REST = "CURRENT", "rest.pt"
STATE, FUSED = "state_dict.", "fused_optimizer."
"""How the names of the model's tensors begin, and those of the optimizers that run inside backward."""


def add_prefix(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under names that begin with ``prefix``."""
    return {prefix + name: t for name, t in tensors.items()}


def is_sharded_checkpoint(path: str | Path) -> bool:
    """Whether a folder holds a complete save."""
    return (Path(path) / CURRENT).is_file()


def newest_save(path: str | Path) -> Path:
    """The folder of the newest complete save, in the format of ``torch.distributed.checkpoint``."""
    return Path(path) / (Path(path) / CURRENT).read_text().strip()


def save_sharded(
    path: Path,
    tensors: Mapping[str, Tensor | ShardedTensor],
    rest: Mapping[str, Any],
    group: dist.ProcessGroup,
    asynchronous: bool = False,
) -> Future[None]:
    """Write a save and make it the current one; every rank must call it.

    Args:
        path: of the checkpoint; a folder, a checkpoint of one file to be replaced, or not there yet.
        tensors: sharded ones from the ranks that own shards, whole ones the same on all ranks.
        rest: the remaining entries, written by rank 0.
        group: a gloo group; an asynchronous save keeps it busy until it is done.
        asynchronous: copy this rank's rows and return; a thread writes.

    Returns:
        Done, or failed, when the save is the current one; to be waited for on every rank before the next save.
    """
    box: list[Any] = [_begin(path, rest) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0, group=group)
    folder: Path = box[0]
    done: Future[None] = Future()

    def write(tensors: Mapping[str, Any]) -> None:
        try:
            with warnings.catch_warnings():
                # Sharded tensors are what TorchRec has, deprecated by PyTorch and still taken by its checkpoints.
                warnings.simplefilter("ignore")
                save(dict(tensors), checkpoint_id=folder, process_group=group)
            # Rank 0 writes the index after it has heard that all ranks' files are whole.
            if dist.get_rank() == 0:
                _commit(path, folder)
            dist.barrier(group)
            done.set_result(None)
        except BaseException as e:
            done.set_exception(e)

    if asynchronous:
        # The stager of torch's own async_save takes no sharded tensors.
        copies = {name: _copy(t) for name, t in tensors.items()}
        Thread(target=write, args=(copies,), name="checkpoint", daemon=True).start()
    else:
        write(tensors)
    return done


def _copy(tensor: Tensor | ShardedTensor) -> Tensor | ShardedTensor:
    if not isinstance(tensor, ShardedTensor):
        return tensor.detach().to("cpu", copy=True)
    shards = [Shard(s.tensor.detach().to("cpu", copy=True), _on_host(s.metadata)) for s in tensor.local_shards()]
    whole = tensor.metadata()
    metadata = ShardedTensorMetadata([_on_host(m) for m in whole.shards_metadata], whole.size, whole.tensor_properties)
    return ShardedTensor._init_from_local_shards_and_global_metadata(shards, metadata, tensor._process_group)


def _on_host(shard: ShardMetadata) -> ShardMetadata:
    assert shard.placement is not None
    return ShardMetadata(shard.shard_offsets, shard.shard_sizes, f"rank:{shard.placement.rank()}/cpu")


def _begin(path: Path, rest: Mapping[str, Any]) -> Path:
    # Beside a checkpoint of one file until this one is whole.
    root = path.with_name(f".{path.name}.new") if path.is_file() else path
    root.mkdir(parents=True, exist_ok=True)
    current = newest_save(root).name if is_sharded_checkpoint(root) else None
    numbers = [0]
    for old in root.glob("save-*"):
        numbers.append(int(old.name.removeprefix("save-")))
        if old.name != current:
            # Left by a process that was killed.
            shutil.rmtree(old)
    folder = root / f"save-{max(numbers) + 1}"
    folder.mkdir()
    torch.save(dict(rest), folder / REST)
    return folder


def _commit(path: Path, folder: Path) -> None:
    for file in folder.iterdir():
        sync_path(file)
    sync_path(folder)
    with atomic_path(folder.parent / CURRENT) as temporary:
        temporary.write_text(folder.name)
    if folder.parent != path:
        path.unlink()
        folder.parent.rename(path)
    for old in path.glob("save-*"):
        if old.name != folder.name:
            shutil.rmtree(old)


def read_rest(path: str | Path) -> dict[str, Any]:
    """Everything of the current save but its tensors."""
    return torch.load(newest_save(path) / REST, map_location="cpu", weights_only=True)


def tensor_sizes(path: str | Path) -> dict[str, torch.Size]:
    """Size of every tensor of the current save, by name."""
    stored = FileSystemReader(newest_save(path)).read_metadata().state_dict_metadata
    return {name: entry.size for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}


def load_into(path: str | Path, tensors: Mapping[str, Tensor | ShardedTensor], group: dist.ProcessGroup) -> None:
    """Copy the current save into live tensors, in place, each rank its own rows; every rank must call it.

    The number of ranks and the sharding may differ from those of the save.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(dict(tensors), checkpoint_id=newest_save(path), process_group=group)


def read_tensors(path: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """Whole tensors of the current save into host memory, without a process group.

    Args:
        path: of the checkpoint.
        prefix: only names that start with it, which the result leaves out.
    """
    folder = newest_save(path)
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    whole = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if isinstance(entry, TensorStorageMetadata) and name.startswith(prefix)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(cast("dict[str, Any]", whole), checkpoint_id=folder, no_dist=True)
    return {name.removeprefix(prefix): t for name, t in whole.items()}
