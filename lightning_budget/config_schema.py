"""Schemas of the command lines: a mistyped key or a value of the wrong type fails before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from lightning_budget.estimators import ESTIMATORS, estimator_arguments


@dataclass
class OptimizerConfig:
    lr: float = 1e-3
    embedding_lr: float = 0.01
    embedding_optimizer: str = "rowwise_adagrad"
    weight_decay: float = 0.0
    schedule: str = "constant"


@dataclass
class ModelConfig:
    name: str = MISSING
    embedding_dim: int = 16
    dense_hidden: list[int] = field(default_factory=lambda: [32])
    trunk_hidden: list[int] = field(default_factory=lambda: [64, 32])
    head_hidden: int = 16
    dropout: float = 0.0
    backbone: str = "mlp"
    cross_layers: int = 2
    cross_rank: int = 0
    value_head: str = "plain"
    cost_head: str = "plain"
    share_doses: int = 0
    wide: bool = False
    arm_dim: int | None = None
    propensity_weight: float | None = None
    targeted_weight: float | None = None
    entire_space_weight: float | None = None
    cross_weight: float | None = None
    described: list[str] | None = None
    description_weight: float | None = None
    wide_if_described: bool | None = None
    sensitivity: bool | None = None
    user_history: bool | None = None
    pairs: str | None = None
    roi_scale: float | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass
class LossConfig:
    name: str = "factual"
    folds: int = 5
    ridge: float = 100.0
    max_categories: int = 64


def _estimator_config() -> type:
    """Name, and every argument that some estimator has; which of them this one has is checked where it is built."""
    names = sorted({argument for name in ESTIMATORS for argument in estimator_arguments(name)})
    arguments = [(name, Any, field(default=None)) for name in names]
    return make_dataclass("EstimatorConfig", [("name", str, field(default=MISSING)), *arguments])


EstimatorConfig = _estimator_config()


@dataclass
class ObjectiveConfig:
    enabled: bool = True
    weight: float = 1.0
    prior_rows: float = 0.0
    warm_start_epochs: int = 2
    warm_start_ckpt: str | None = None
    ramp_epochs: float = 0.0
    width_start: float = 1.0
    width_end: float = 1.0
    form: str = "dual"
    cost_term: str = "lambda"
    weighting: str = "doubly_robust"
    outcome_model: str = "own"
    baseline: str = "none"
    entropy: float = 1.0
    width_unit: str = "spread"
    budgets: Any = None
    budget_unit: str = "fraction"
    multipliers: list[float] | None = None
    source: str = "full"
    refresh_every_n_steps: int | None = None
    momentum: float = 0.95


@dataclass
class TrainerConfig:
    """Lightning's Trainer, all arguments but those a run fills in itself, with their defaults."""

    accelerator: str = "auto"
    strategy: str = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    precision: Any = None
    fast_dev_run: Any = False
    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: Any = None
    limit_train_batches: Any = None
    limit_val_batches: Any = None
    limit_test_batches: Any = None
    limit_predict_batches: Any = None
    overfit_batches: Any = 0.0
    val_check_interval: Any = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | None = None
    log_every_n_steps: int | None = None
    enable_checkpointing: bool | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None
    deterministic: Any = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    profiler: str | None = None
    detect_anomaly: bool = False
    barebones: bool = False
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    enable_autolog_hparams: bool = True
    model_registry: str | None = None


@dataclass
class TableShardingConfig:
    types: list[str] = field(default_factory=lambda: ["row_wise", "table_wise"])
    kernels: list[str] = field(default_factory=list)
    min_columns: int | None = None


@dataclass
class ShardingConfig:
    default: TableShardingConfig = field(default_factory=TableShardingConfig)
    tables: Any = None
    hbm_gib: float | None = None
    ddr_gib: float | None = None
    plan: str | None = None
    pipeline: bool = False


@dataclass
class TrainConfig:
    seed: int = 0
    budgets: list[float] = MISSING
    baseline: bool = True
    resamples: int = 200
    run_dir: str = MISSING
    ckpt_path: str | None = None
    data: Any = None
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)  # type: ignore[valid-type]
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    checkpoint: str = "full"
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: Any = None
    logger: Any = None
    benchmark: Any = None


@dataclass
class EvaluateConfig:
    ckpt: Any = None
    predictions: Any = None
    user_column: str = "user_id"
    value_columns: Any = None
    cost_columns: Any = None
    row_order: bool = False
    split: str = "test"
    data: Any = None
    logger: Any = None
    budgets: list[float] | None = None
    resamples: int = 200
    seed: int = 0
    run_dir: str | None = None


@dataclass
class AllocateConfig:
    budget: float = MISSING
    input: str = MISSING
    output: str = MISSING
    ckpt: str | None = None
    user_column: str = "user_id"
    value_columns: Any = None
    cost_columns: Any = None
    treatments: list[str] | None = None
    allow_negative_cost: bool = True
    check_duplicates: bool = True
    batch_size: int = 16384
    accelerator: str = "auto"


@dataclass
class ExportConfig:
    ckpt: str = MISSING
    output: str | None = None
    formats: list[str] = field(default_factory=lambda: ["plain", "program", "int8"])
    multiplier: float | None = None
    policy: str | None = None
    users: str | None = None


@dataclass
class SweepConfig:
    users: list[float] = field(default_factory=lambda: [1e8, 1e9, 1e10])
    embedding_dim: list[int] = field(default_factory=lambda: [16, 64, 128])
    ranks: list[int] = field(default_factory=lambda: [8, 64, 256])


@dataclass
class PlanConfig:
    users: float | None = 1e9
    embedding_dim: int = 64
    tables: Any = None
    precision: str = "fp32"
    optimizer: str = "rowwise_adagrad"
    dense_parameters: float = 1e6
    user_history: bool = False
    batch_size: int = 65536
    ranks: int = 8
    ranks_per_node: int = 8
    device: str = "cuda"
    hbm_gib: float = 80.0
    node_ddr_gib: float = 2000.0
    intra_gib_s: float = 600.0
    inter_gib_s: float = 12.5
    host_gib_s: float = 32.0
    sharding: list[str] = field(default_factory=lambda: ["row_wise", "table_wise"])
    kernels: list[str] = field(default_factory=lambda: ["fused", "fused_uvm", "fused_uvm_caching"])
    cache_load_factor: float = 0.2
    output: str | None = None
    sweep: bool = False
    grid: SweepConfig = field(default_factory=SweepConfig)
    picture: str | None = None


@dataclass
class SimulateConfig:
    output: str = MISSING
    rows: float = 1e6
    split: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])
    users: float | None = None
    oracle: bool = False
    workers: int = 1
    partition_rows: float = 262144
    seed: int = 0
    face_values: list[float] = field(default_factory=lambda: [0, 2, 4, 7, 11])
    train_days: int = 10
    val_days: int = 2
    test_days: int = 2
    newcomers: float = 0.3
    purchase_logit: float = -1.2
    spend_sigma: float = 0.6
    repeat: float = 1.0
    zero_inflation: float = 0.0
    spend_tail: float | None = None
    drift_base: float = 0.0
    drift_sensitivity: float = 0.0
    weekly_base: float = 0.0
    weekly_sensitivity: float = 0.0
    propensity: str = "uniform"
    propensity_floor: float = 0.05


@dataclass
class BenchmarkConfig:
    methods: list[str] | None = None
    datasets: list[str] | None = None
    seeds: list[int] | None = None
    trials: int | None = None
    preset: str = "full"
    report_only: bool = False
    workers: int | None = None
    folder: str = MISSING
    output: str | None = None
    data_root: str = MISSING
    resamples: int = 200
    overrides: list[str] = field(default_factory=list)
    search: Any = None
    presets: Any = None
    catalogue: Any = None


_SCHEMAS = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "allocate": AllocateConfig,
    "export": ExportConfig,
    "plan": PlanConfig,
    "simulate": SimulateConfig,
    "benchmark": BenchmarkConfig,
}
for _name, _node in _SCHEMAS.items():
    ConfigStore.instance().store(name=f"{_name}_schema", node=_node)
