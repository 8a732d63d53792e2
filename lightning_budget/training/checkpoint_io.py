"""Checkpoints of one file: written whole or not at all, read through the page cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol

from lightning_budget.atomic import atomic_path, sync_path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own serialises into memory first, a second copy of every table, and may move across file systems.

    Remote paths are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside ``path`` and take its place; a checkpoint folder there is replaced too."""
        if not _is_local_file_protocol(str(path)):
            return super().save_checkpoint(checkpoint, path, storage_options)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        old = target.with_name(f".{target.name}.old")
        for left in target.parent.glob(f".*.tmp-{target.name}"):
            # By a process that was killed while it wrote.
            left.unlink()
        with atomic_path(target) as temporary:
            torch.save(checkpoint, temporary)
            if target.is_dir():
                # Its place is free for an instant only: what takes it is on disk already.
                sync_path(temporary)
                target.rename(old)
        shutil.rmtree(old, ignore_errors=True)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Mapped into memory, so that a rank reads only its own rows."""
        if not _is_local_file_protocol(str(path)):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return torch.load(path, map_location=map_location, mmap=True, weights_only=True)
