"""TorchRec under Lightning: embedding tables sharded, the rest data-parallel, one code path for any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.overrides.distributed import prepare_for_backward
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.strategies.ddp import _DDPForwardRedirection
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper
from torchrec.distributed.types import ShardedModule
from torchrec.optim.keyed import KeyedOptimizer

from lightning_budget.errors import InputError
from lightning_budget.training.checkpoint import (
    FUSED_OPTIMIZER_KEY,
    full_fused_state,
    full_state_dict,
    load_fused_state,
)
from lightning_budget.training.sharding import embedding_tables, init_rows_, sharders, sharding_plan


class _ForwardRedirection(_DDPForwardRedirection):
    """Lightning reaches ``training_step`` through the wrapper's ``forward``; here one more wrapper lies around DDP."""

    def on_after_inner_forward(self, wrapper_module: nn.Module, original_module: LightningModule) -> None:
        super().on_after_inner_forward(_inner(wrapper_module), original_module)

    def on_after_outer_forward(self, wrapper_module: nn.Module, original_module: LightningModule) -> None:
        super().on_after_outer_forward(_inner(wrapper_module), original_module)


def _inner(wrapper: nn.Module) -> Any:
    return getattr(wrapper, "_dmp_wrapped_module", wrapper)


class TorchRecStrategy(DDPStrategy):
    """Shard every ``EmbeddingBagCollection`` of a LightningModule and keep DDP around the rest.

    The module builds its collections on ``meta`` in ``configure_model``, tags them with
    :func:`~lightning_budget.training.optimizers.step_in_backward`, and hands
    :func:`~lightning_budget.training.optimizers.dense_parameters` to its optimizer. Learning-rate schedules of that
    optimizer scale the tables' rate too. Checkpoints hold whole, plain tensors.

    Args:
        init_seed: start of every table row, with the table's name and the row's number; ``None``: the module's
            hyperparameter ``seed``, else 0.
        timeout: of a collective, so that a lost rank ends the run.
        kwargs: as :class:`DDPStrategy`.
    """

    strategy_name = "torchrec"

    def __init__(
        self, *args: Any, init_seed: int | None = None, timeout: timedelta = timedelta(minutes=10), **kwargs: Any
    ) -> None:
        super().__init__(*args, timeout=timeout, **kwargs)
        self._forward_redirection = _ForwardRedirection()
        self._init_seed = init_seed
        self._gloo: dist.ProcessGroup | None = None
        self._dmp: DistributedModelParallel
        self._start_lr: tuple[float, list[float]]

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
        if self._gloo is None:
            self._gloo = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))

    def setup(self, trainer: Trainer) -> None:
        """Shard, start or load the tables, wrap in DDP, build the optimizers."""
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting:
            self.refuse_what_in_backward_cannot_do(trainer)
            if self._layer_sync and self.model is not None:
                self.model = self._layer_sync.apply(self.model)
        module = self._module
        self.precision_plugin.convert_module(module)
        self._shard(module)
        if fitting:
            self._dmp.init_data_parallel()
        else:
            self._sync_dense(module)
        self.model = self._dmp
        if fitting:
            self.setup_optimizers(trainer)
            self._check_optimizers()
        self.setup_precision_plugin()
        if fitting:
            _optimizers_to_device(self.optimizers, self.root_device)
            group = self.optimizers[0].param_groups[0]
            self._start_lr = (
                group.get("initial_lr", group["lr"]),
                [g["lr"] for g in self.fused_optimizer.param_groups],
            )

    def refuse_what_in_backward_cannot_do(self, trainer: Trainer) -> None:
        """Called before training starts.

        Raises:
            InputError: on gradient accumulation or scaled gradients.
        """
        if trainer.accumulate_grad_batches != 1:
            raise InputError(
                f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}",
                "1, because embedding tables step inside backward",
                "raise data.batch_size instead",
            )
        if getattr(self.precision_plugin, "scaler", None) is not None:
            raise InputError(
                "trainer.precision=16-mixed scales gradients, which tables stepping inside backward would apply",
                "32-true, bf16-mixed",
                "set trainer.precision=bf16-mixed",
            )

    def _shard(self, module: LightningModule) -> None:
        tables = list(embedding_tables(module))
        plan = sharding_plan(module, self.root_device, self.world_size, self.num_processes, self._cpu_group)
        self._dmp = DistributedModelParallel(
            module,
            device=self.root_device,
            plan=plan,
            sharders=sharders(),
            init_data_parallel=False,
            data_parallel_wrapper=DefaultDataParallelWrapper(static_graph=False),
        )
        # Sharding throws a CPU-built collection's weights away; every table starts here.
        state = module.state_dict()
        seed = module.hparams.get("seed", 0) if self._init_seed is None else self._init_seed
        for path, config in tables:
            weight = state[f"{path}.embedding_bags.{config.name}.weight"]
            if isinstance(weight, ShardedTensor) and config.init_fn is not None:
                init_rows_(weight, config.init_fn, config.name, seed)
        self._dense_to_device(module)

    def _dense_to_device(self, module: nn.Module) -> None:
        for child in module.children():
            if not isinstance(child, ShardedModule):
                self._dense_to_device(child)
        for name, p in module._parameters.items():
            if p is not None and p.device != self.root_device:
                module._parameters[name] = nn.Parameter(p.to(self.root_device), p.requires_grad)
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = b.to(self.root_device)

    def _sync_dense(self, module: LightningModule) -> None:
        sharded = set(DistributedModelParallel._sharded_parameter_names(module))
        with torch.no_grad():
            for name, p in module.named_parameters():
                if name not in sharded:
                    dist.broadcast(p.data, 0)

    def model_to_device(self) -> None:
        """Nothing: ``LightningModule.to`` would drag sharded tables along."""

    def _check_optimizers(self) -> None:
        in_backward = {id(p) for p in self._dmp.module.parameters() if hasattr(p, "_in_backward_optimizers")}
        if any(id(p) in in_backward for o in self.optimizers for g in o.param_groups for p in g["params"]):
            raise ValueError("configure_optimizers() took embedding tables too; give it dense_parameters(self)")

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizers of the tables, as one."""
        return self._dmp.fused_optimizer

    def optimizer_step(
        self,
        optimizer: torch.optim.Optimizer,
        closure: Callable[[], Any],
        model: LightningModule | nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """Step the dense optimizer; the tables' rate is set before the closure, whose forward reads it."""
        dense_start, fused_start = self._start_lr
        factor = optimizer.param_groups[0]["lr"] / dense_start if dense_start else 1.0
        groups = cast("list[dict[str, Any]]", self.fused_optimizer.param_groups)
        for group, lr in zip(groups, fused_start, strict=True):
            group["lr"] = lr * factor
        self.fused_optimizer.step()
        return super().optimizer_step(optimizer, closure, model, **kwargs)

    def pre_backward(self, closure_loss: torch.Tensor) -> None:
        """As DDP, through one more wrapper."""
        ddp = _inner(self._dmp)
        if isinstance(ddp, DistributedDataParallel) and not self._module.automatic_optimization:
            prepare_for_backward(ddp, closure_loss)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Rows can only be loaded into shards that exist."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole, plain tensors on rank 0. Called on every rank."""
        return full_state_dict(self._module.state_dict(), self._cpu_group)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if "optimizer_states" in checkpoint:
            checkpoint[FUSED_OPTIMIZER_KEY] = full_fused_state(self.fused_optimizer, self._cpu_group)
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Mapped into memory, so that a rank reads only its own rows."""
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        # Sharded modules cut their rows out of whole tensors themselves.
        self._module.load_state_dict(dict(checkpoint["state_dict"]), strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        super().load_optimizer_state_dict(checkpoint)
        load_fused_state(self.fused_optimizer, checkpoint[FUSED_OPTIMIZER_KEY])

    def teardown(self) -> None:
        """Give the optimizers' memory back, and leave the tables where they are: they may not fit one host."""
        self.model = self.lightning_module
        if self.optimizers:
            _optimizers_to_device(self.optimizers, torch.device("cpu"))
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()

    @classmethod
    def register_strategies(cls, strategy_registry: Any) -> None:
        strategy_registry.register(cls.strategy_name, cls, description="TorchRec sharded tables under Lightning")


if TorchRecStrategy.strategy_name not in StrategyRegistry:
    TorchRecStrategy.register_strategies(StrategyRegistry)
