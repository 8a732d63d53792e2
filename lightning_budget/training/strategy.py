"""TorchRec under Lightning: embedding tables sharded, the rest data-parallel, one code path for any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.overrides.distributed import prepare_for_backward
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.strategies.ddp import _DDPForwardRedirection
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper
from torchrec.distributed.types import ShardedModule
from torchrec.optim.keyed import KeyedOptimizer

from lightning_budget.errors import InputError
from lightning_budget.training import watchdog
from lightning_budget.training.checkpointing import ShardCheckpointing
from lightning_budget.training.even_batches import even_batches
from lightning_budget.training.given_rows import refuse_cached_tables
from lightning_budget.training.host_groups import host_group
from lightning_budget.training.optimizers import check_runs_on
from lightning_budget.training.pipeline import pipelined
from lightning_budget.training.plan import (
    ShardingConfig,
    describe_plan,
    plan_here,
    plan_lines,
    save_plan,
    sharding_plan,
)
from lightning_budget.training.prefetch import prefetch
from lightning_budget.training.sharding import embedding_tables, init_shards_, sharders, table_parameter

AVERAGES = (StochasticWeightAveraging, WeightAveraging)


class _ForwardRedirection(_DDPForwardRedirection):
    """Lightning reaches ``training_step`` through the wrapper's ``forward``; here one more wrapper lies around DDP."""

    def on_after_inner_forward(self, wrapper_module: nn.Module, original_module: LightningModule) -> None:
        super().on_after_inner_forward(_inner(wrapper_module), original_module)

    def on_after_outer_forward(self, wrapper_module: nn.Module, original_module: LightningModule) -> None:
        super().on_after_outer_forward(_inner(wrapper_module), original_module)


def _inner(wrapper: nn.Module) -> Any:
    return getattr(wrapper, "_dmp_wrapped_module", wrapper)


def _data_parallel_wrapper(ddp_arguments: Mapping[str, Any]) -> DefaultDataParallelWrapper:
    own = {k: v for k, v in ddp_arguments.items() if k in ("static_graph", "find_unused_parameters", "bucket_cap_mb")}
    others = {k: v for k, v in ddp_arguments.items() if k not in own}
    return DefaultDataParallelWrapper(**{"static_graph": False, **own}, ddp_kwargs=others)


class TorchRecStrategy(ShardCheckpointing):
    """Shard every ``EmbeddingBagCollection`` of a LightningModule and keep DDP around the rest.

    The module builds its collections on ``meta`` in ``configure_model``, tags them with
    :func:`~lightning_budget.training.optimizers.step_in_backward`, and hands
    :func:`~lightning_budget.training.optimizers.dense_parameters` to its optimizer. Learning-rate schedules of that
    optimizer scale the tables' rate too; gradient clipping acts on the dense parameters. One process, several, and GPUs
    take the same way.

    Args:
        sharding: what the planner has to keep to.
        checkpoint: ``full``: one file of whole, plain tensors, gathered on rank 0; ``sharded``: a folder that all ranks
            write in parallel, for tables that one host cannot hold; ``sharded_async``: the same while training goes on.
            Either can be resumed whatever this is.
        pipeline: send a batch's ids while the one before computes; the numbers stay the same. Meant for several GPUs,
            where it has not been run; on CPU it changes nothing.
        plan_file: where the plan is written as JSON, to be read with ``ShardingConfig(plan=…)``.
        init_seed: start of every table row, with the table's name and the row's number; ``None``: the module's
            hyperparameter ``seed``, else 0.
        timeout: of a collective, so that a lost rank ends the run.
        kwargs: as :class:`DDPStrategy`.

    Raises:
        InputError: for an unknown checkpoint format.
    """

    strategy_name = "torchrec"
    shards_tables = True

    def __init__(
        self,
        *args: Any,
        sharding: ShardingConfig | None = None,
        checkpoint: str = "full",
        pipeline: bool = False,
        plan_file: str | Path | None = None,
        init_seed: int | None = None,
        timeout: timedelta = timedelta(minutes=10),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, checkpoint=checkpoint, timeout=timeout, **kwargs)
        self._forward_redirection = _ForwardRedirection()
        self._sharding, self._plan_file = sharding or ShardingConfig(), plan_file
        self._init_seed, self._pipeline = init_seed, pipeline
        self._batches_group: dist.ProcessGroup | None = None
        self._dmp: DistributedModelParallel
        self._start_lr: tuple[float, list[float]]

    def setup_environment(self) -> None:
        super().setup_environment()
        self._batches_group = host_group("batches", self._timeout)
        watchdog.watch(self._cpu_group, self.num_nodes)

    def process_dataloader(self, dataloader: object) -> object:
        """Ranks do equally many steps on equally large batches: every lookup in a sharded table is a collective.

        On a GPU, batches that are collated in this process are made ready and copied ahead.
        """
        assert self._batches_group is not None
        collates_here = getattr(dataloader, "even_over_ranks", False) and getattr(dataloader, "num_workers", 1) == 0
        if self.root_device.type == "cuda" and collates_here:
            # On a CPU the thread would take from the model what it gives.
            dataloader = prefetch(dataloader, device=self.root_device)
        training = self._module.trainer.training
        loader = even_batches(dataloader, self._batches_group, training)
        return pipelined(loader, self._module, self.root_device) if self._pipeline and training else loader

    def on_exception(self, exception: BaseException) -> None:
        """Tell the other ranks, who would wait for this one."""
        super().on_exception(exception)
        watchdog.report(exception)

    def connect(self, model: LightningModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuse what cannot be honoured before callbacks, which may copy the model, set themselves up."""
        super().connect(model)
        if model._trainer is not None and model.trainer.state.fn == TrainerFn.FITTING:
            self.refuse_what_in_backward_cannot_do(model.trainer)

    def setup(self, trainer: Trainer) -> None:
        """Shard, start or load the tables, wrap in DDP, build the optimizers."""
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting and self._layer_sync and self.model is not None:
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
            self._ask_for_sigterm_on_the_host(trainer)
            _optimizers_to_device(self.optimizers, self.root_device)
            group = self.optimizers[0].param_groups[0]
            self._start_lr = (
                group.get("initial_lr", group["lr"]),
                [g["lr"] for g in self.fused_optimizer.param_groups],
            )

    def _ask_for_sigterm_on_the_host(self, trainer: Trainer) -> None:
        # Before every step Lightning asks rank 0 whether to end, by a tensor on the device that the host waits for.
        def ask() -> None:
            flag = torch.tensor([int(trainer.received_sigterm)])
            dist.broadcast(flag, src=0, group=self._batches_group)
            if flag.item():
                raise SIGTERMException

        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = ask

    def refuse_what_in_backward_cannot_do(self, trainer: Trainer) -> None:
        """Called before training starts.

        Raises:
            InputError: on gradient accumulation, scaled gradients, or averages of weights over steps.
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
        averages = next((c for c in trainer.callbacks if isinstance(c, AVERAGES)), None)  # pyright: ignore[reportAttributeAccessIssue]
        if averages is not None:
            raise InputError(
                f"callback {type(averages).__name__} copies and averages all weights, sharded tables included",
                "callbacks that leave the tables where they are",
                "take it out",
            )

    def refuse_what_cannot_be_laid_out(self, module: nn.Module) -> None:
        """Asked of a module with tables on ``meta``, before there are other ranks.

        Raises:
            InputError: for a table whose optimizer does not exist on this device, or if no plan fits.
        """
        self._check_devices(module)
        plan_here(module, self._sharding, self.root_device, self.num_nodes * self.num_processes, self.num_processes)

    def _check_devices(self, module: nn.Module) -> None:
        for path, config in embedding_tables(module):
            check_runs_on(table_parameter(module, path, config), config.name, self.root_device)

    def _shard(self, module: LightningModule) -> None:
        tables = list(embedding_tables(module))
        self._check_devices(module)
        plan = sharding_plan(
            module, self._sharding, self.root_device, self.world_size, self.num_processes, self._cpu_group
        )
        refuse_cached_tables(module, plan)
        if tables and self.is_global_zero:
            self._tell(describe_plan(plan, tables))
        self._dmp = DistributedModelParallel(
            module,
            device=self.root_device,
            plan=plan,
            sharders=sharders(),
            init_data_parallel=False,
            data_parallel_wrapper=_data_parallel_wrapper(self._ddp_kwargs),
        )
        # Sharding throws a CPU-built collection's weights away; every table starts here.
        state = module.state_dict()
        seed = module.hparams.get("seed", 0) if self._init_seed is None else self._init_seed
        for path, config in tables:
            weight = state[f"{path}.embedding_bags.{config.name}.weight"]
            if isinstance(weight, ShardedTensor) and config.init_fn is not None:
                init_shards_(weight, config, seed)
        self._dense_to_device(module)

    def _tell(self, plan: list[dict[str, Any]]) -> None:
        if self._plan_file is not None:
            save_plan(Path(self._plan_file), plan, self.root_device, self.world_size)
        if self.world_size > 1:
            print("\n".join(["Tables over ranks:", *(f"  {line}" for line in plan_lines(plan))]), flush=True)

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
        again = next((o for o in self.optimizers if isinstance(o, torch.optim.LBFGS)), None)
        if again is not None:
            raise InputError(
                f"optimizer {type(again).__name__} evaluates its closure several times a step, and tables would step "
                "each time",
                "optimizers with one backward a step",
                "use Adam, AdamW or SGD",
            )

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

    def teardown(self) -> None:
        """Give the optimizers' memory back, and leave the tables where they are: they may not fit one host."""
        self.finish_saving()
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
