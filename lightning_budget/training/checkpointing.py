"""The part of the strategy that writes and reads checkpoints, of whole tables and of shards."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torchrec.optim.keyed import KeyedOptimizer

from lightning_budget.errors import InputError
from lightning_budget.training.checkpoint import (
    FUSED_OPTIMIZER_KEY,
    check_sizes,
    full_fused_state,
    full_state_dict,
    fused_state,
    load_fused_state,
    sizes,
)
from lightning_budget.training.checkpoint_io import AtomicCheckpointIO
from lightning_budget.training.host_groups import host_group
from lightning_budget.training.sharded_checkpoint import (
    FUSED,
    STATE,
    add_prefix,
    is_sharded_checkpoint,
    load_into,
    read_rest,
    save_sharded,
    tensor_sizes,
)

CHECKPOINT_FORMATS = ("full", "sharded", "sharded_async")


class ShardCheckpointing(DDPStrategy):
    """Checkpoints for a strategy whose module holds sharded tables with optimizers of their own.

    Args:
        checkpoint: format to write, one of :data:`CHECKPOINT_FORMATS`; either is read.
        kwargs: as :class:`DDPStrategy`.

    Raises:
        InputError: for an unknown format.
    """

    def __init__(self, *args: Any, checkpoint: str = "full", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if checkpoint not in CHECKPOINT_FORMATS:
            raise InputError(f"checkpoint={checkpoint!r}", ", ".join(CHECKPOINT_FORMATS), "choose one of them")
        self._checkpoint = checkpoint
        self._gloo: dist.ProcessGroup | None = None
        self._pending: Future[None] | None = None

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizers of the tables, as one."""
        raise NotImplementedError(f"{type(self).__name__} must define fused_optimizer")

    @property
    def _module(self) -> LightningModule:
        module = self.lightning_module
        assert module is not None
        return module

    @property
    def _cpu_group(self) -> dist.ProcessGroup:
        assert self._gloo is not None
        return self._gloo

    def setup_environment(self) -> None:
        super().setup_environment()
        self._gloo = host_group("checkpoints")

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Rows can only be loaded into shards that exist."""
        return True

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """The plugin given to the trainer, else :class:`AtomicCheckpointIO`."""
        if self._checkpoint_io is None:
            self._checkpoint_io = AtomicCheckpointIO()
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO) -> None:
        self._checkpoint_io = io

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole, plain tensors on rank 0, or live shards, as the checkpoint format asks. Called on every rank."""
        state = self._module.state_dict()
        return full_state_dict(state, self._cpu_group) if self._checkpoint == "full" else state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        self.finish_saving()
        with_optimizers = "optimizer_states" in checkpoint
        if self._checkpoint == "full":
            if with_optimizers:
                checkpoint[FUSED_OPTIMIZER_KEY] = full_fused_state(self.fused_optimizer, self._cpu_group)
            return super().save_checkpoint(checkpoint, filepath, storage_options)
        rest = {k: v for k, v in checkpoint.items() if k != "state_dict"}
        tensors = add_prefix(STATE, checkpoint["state_dict"])
        if with_optimizers:
            tensors |= add_prefix(FUSED, fused_state(self.fused_optimizer))
        path = Path(self.broadcast(str(filepath)))
        self._pending = save_sharded(path, tensors, rest, self._cpu_group, self._checkpoint == "sharded_async")
        if self._checkpoint == "sharded":
            self.finish_saving()

    def finish_saving(self) -> None:
        """Wait until an asynchronous save is on disk.

        Raises:
            Exception: what the save failed with.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def remove_checkpoint(self, filepath: Any) -> None:
        self.finish_saving()
        super().remove_checkpoint(filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of either format; a sharded one goes straight into the live tables."""
        self.finish_saving()
        if not is_sharded_checkpoint(checkpoint_path):
            return self.checkpoint_io.load_checkpoint(checkpoint_path)
        checkpoint = read_rest(checkpoint_path)
        tensors = add_prefix(STATE, self._module.state_dict())
        if "optimizer_states" in checkpoint and self._module.trainer.state.fn == TrainerFn.FITTING:
            tensors |= add_prefix(FUSED, fused_state(self.fused_optimizer))
        check_sizes(tensor_sizes(checkpoint_path), sizes(tensors), extra=True)
        load_into(checkpoint_path, tensors, self._cpu_group)
        return {**checkpoint, "state_dict": None}

    def load_weights(self, path: str | Path) -> None:
        """Take over the weights of a checkpoint of either format, and nothing else; every rank calls it."""
        if not is_sharded_checkpoint(path):
            return self.load_model_state_dict(self.checkpoint_io.load_checkpoint(str(path)))
        tensors = add_prefix(STATE, self._module.state_dict())
        check_sizes(tensor_sizes(path), sizes(tensors), extra=True)
        load_into(path, tensors, self._cpu_group)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        state = checkpoint["state_dict"]
        if state is None:
            return
        check_sizes(sizes(state), sizes(self._module.state_dict()), extra=not strict)
        # Sharded modules cut their rows out of whole tensors themselves.
        self._module.load_state_dict(dict(state), strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        super().load_optimizer_state_dict(checkpoint)
        if checkpoint["state_dict"] is not None:
            load_fused_state(self.fused_optimizer, checkpoint[FUSED_OPTIMIZER_KEY])
        # Lightning gives loaders their position where it builds them, and a schedule that asks for the number of steps
        # has had them built before the checkpoint was read.
        fit_loop = self._module.trainer.fit_loop
        fit_loop._load_combined_loader_states()
        _end_the_epoch_of_its_last_batch(fit_loop)


def _end_the_epoch_of_its_last_batch(fit_loop: Any) -> None:
    """Take a checkpoint written after an epoch's last batch as one of the epoch's end; its validation is left out.

    Lightning would take the next epoch for the rest of this one: its start is told to nobody, and the position in it is
    lost at the checkpoint after.
    """
    batches, epochs = fit_loop.epoch_loop.batch_progress, fit_loop.epoch_progress
    if batches.is_last_batch and epochs.current.processed == epochs.current.ready - 1:
        batches.increment_completed()
        epochs.increment_processed()
        # Counted anew by the setter: nothing is left of the epoch.
        fit_loop.restarting = True
