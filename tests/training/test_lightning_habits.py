"""What Lightning users are used to works with sharded tables."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from training_runs import small_data, small_module, small_trainer

from datamodules import CampaignDataModule
from lightning_budget.errors import InputError
from lightning_budget.training.callbacks import AllocationMetrics
from lightning_budget.training.export import checkpoint_exists, load_model, read_checkpoint
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.optimizers import dense_parameters
from lightning_budget.training.strategy import TorchRecStrategy

MONITOR = "val/eom_hajek"


def predictions(path: Path, data: CampaignDataModule) -> torch.Tensor:
    batch = data.test.batch(torch.arange(len(data.test)))
    with torch.no_grad():
        return load_model(path)(batch.dense, batch.sparse).value


@pytest.mark.parametrize("kind", ["full", "sharded", "sharded_async"])
def test_best_and_last_checkpoints_early_stopping_and_rates(tmp_path: Path, kind: str) -> None:
    data, module = small_data(), small_module(small_data())
    best = ModelCheckpoint(tmp_path, filename="best-{epoch}", monitor=MONITOR, mode="max", save_top_k=1, save_last=True)
    stop = EarlyStopping(MONITOR, mode="max", patience=1, min_delta=100.0)
    trainer = small_trainer(
        tmp_path,
        [AllocationMetrics((0.1, 0.5)), best, stop, LearningRateMonitor("step")],
        strategy=TorchRecStrategy(checkpoint=kind),
        max_epochs=5,
        logger=CSVLogger(tmp_path, "", "csv"),
        log_every_n_steps=1,
        enable_checkpointing=True,
        num_sanity_val_steps=1,
    )
    trainer.fit(module, data)
    assert trainer.current_epoch == 2  # the first epoch sets the mark, the second does not pass it by 100
    names = sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".ckpt")
    assert len(names) == 2
    assert names[1] == "last.ckpt"
    assert all(checkpoint_exists(tmp_path / n) for n in names)
    assert all((tmp_path / n).is_file() == (kind == "full") for n in names)
    rates = [float(row) for row in _column(tmp_path / "csv" / "metrics.csv", "lr-AdamW")]
    assert rates[0] == pytest.approx(0.01)
    assert rates[-1] < rates[0]

    # In a trainer of its own, one process and no trainer at all, the best checkpoint predicts the same.
    expected = predictions(Path(best.best_model_path), data)
    again = small_trainer(tmp_path)
    loader = data.table_dataloader(data.test)
    parts: Any = again.predict(small_module(data), dataloaders=loader, ckpt_path=best.best_model_path)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), expected, rtol=1e-6, atol=1e-6)


def _column(path: Path, name: str) -> list[str]:
    import csv

    with open(path, newline="") as f:
        return [row[name] for row in csv.DictReader(f) if row[name]]


def test_load_from_checkpoint_without_a_trainer(tmp_path: Path) -> None:
    data = small_data()
    trainer = small_trainer(tmp_path)
    trainer.fit(small_module(data), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    module = BudgetModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    batch = data.test.batch(torch.arange(len(data.test)))
    with torch.no_grad():
        value = module.eval()(batch).value
    torch.testing.assert_close(value, predictions(tmp_path / "a.ckpt", data), rtol=1e-6, atol=1e-6)


def test_validate_test_and_fit_again(tmp_path: Path) -> None:
    data, module = small_data(), small_module(small_data())
    trainer = small_trainer(tmp_path, [AllocationMetrics((0.1, 0.5))])
    trainer.fit(module, data)
    after_fit = float(trainer.callback_metrics[MONITOR])
    assert trainer.validate(module, data, verbose=False)[0][MONITOR] == pytest.approx(after_fit)
    tested = trainer.test(module, data, verbose=False)[0]["test/prediction_loss"]
    validated = trainer.validate(module, data.test_dataloader(), verbose=False)[0]["val/prediction_loss"]
    assert tested == pytest.approx(validated, rel=1e-6)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, data)
    assert trainer.global_step == 24


def test_bfloat16(tmp_path: Path) -> None:
    data = small_data()
    for precision in ("32-true", "bf16-mixed"):
        trainer = small_trainer(tmp_path, precision=precision)
        trainer.fit(small_module(data), data)
        trainer.save_checkpoint(tmp_path / f"{precision}.ckpt")
    exact, rounded = (predictions(tmp_path / f"{p}.ckpt", data) for p in ("32-true", "bf16-mixed"))
    assert not torch.equal(exact, rounded)
    assert float((exact - rounded).abs().mean()) < 0.05 * float(exact.std())


@pytest.mark.parametrize("callback", [StochasticWeightAveraging(0.01), EMAWeightAveraging()])
def test_averages_of_weights_are_refused(tmp_path: Path, callback: L.Callback) -> None:
    data = small_data()
    with pytest.raises(InputError, match=rf"callback {type(callback).__name__} .*fix: take it out"):
        small_trainer(tmp_path, [callback]).fit(small_module(data), data)


class LBFGS(BudgetModule):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(dense_parameters(self))


def test_an_optimizer_that_evaluates_several_times_is_refused(tmp_path: Path) -> None:
    data = small_data()
    with pytest.raises(InputError, match="LBFGS evaluates its closure several times"):
        small_trainer(tmp_path).fit(LBFGS(**dict(small_module(data).hparams)), data)


@pytest.mark.parametrize("name", ["adam", "partial_rowwise_adam"])
def test_the_adam_family_is_refused_on_cpu(tmp_path: Path, name: str) -> None:
    data = small_data()
    with pytest.raises(InputError, match=f"updated by '{name}' on CPU.*allowed: rowwise_adagrad, adagrad, sgd"):
        small_trainer(tmp_path).fit(small_module(data, embedding_optimizer=name), data)


def test_unknown_optimizer_and_format() -> None:
    with pytest.raises(InputError, match="embedding_optimizer='lamb'; allowed: rowwise_adagrad, adagrad, sgd, adam"):
        small_module(small_data(), embedding_optimizer="lamb")
    with pytest.raises(InputError, match="checkpoint='zip'; allowed: full, sharded, sharded_async"):
        TorchRecStrategy(checkpoint="zip")


def test_another_strategy(tmp_path: Path) -> None:
    data = small_data()
    module = small_module(data)
    small_trainer(tmp_path, strategy="auto").fit(module, data)
    assert all(math.isfinite(float(p.sum())) for p in module.parameters())
    module = small_module(data)
    module.trainer = type("Two", (), {"strategy": object(), "world_size": 2, "__class__": L.Trainer})()  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"trainer.strategy=object over 2 processes .*allowed: torchrec"):
        module.configure_model()


def test_one_process_of_another_strategy_starts_the_same(tmp_path: Path) -> None:
    data = small_data()
    starts = []
    for strategy in ("torchrec", "auto"):
        module = small_module(data)
        trainer = small_trainer(tmp_path, strategy=strategy, max_epochs=0)
        trainer.fit(module, data)
        trainer.save_checkpoint(tmp_path / "start.ckpt")
        starts.append(read_checkpoint(tmp_path / "start.ckpt")["state_dict"])
    assert starts[0].keys() == starts[1].keys()
    for name, tensor in starts[0].items():
        torch.testing.assert_close(starts[1][name], tensor, rtol=0, atol=0, equal_nan=True, msg=name)


def test_weights_decay_and_biases_and_linear_parts_do_not(tmp_path: Path) -> None:
    data = small_data()
    model = {"name": "tarnet", "embedding_dim": 4, "dense_hidden": [8], "trunk_hidden": [8], "head_hidden": 4}
    module = small_module(data, model={**model, "share_doses": 1, "wide": True}, lr=0.1, weight_decay=0.5)
    trainer = small_trainer(tmp_path)
    trainer.fit(module, data)
    decayed, kept = trainer.optimizers[0].param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.5, 0.0)
    names = {id(p): name for name, p in module.named_parameters()}
    assert all(names[id(p)].endswith(("weight", ".out")) for p in decayed["params"])
    assert {"wide_value_heads.weight", "wide_cost_heads.weight", "value_heads.bias", "trunk.0.bias"} <= {
        names[id(p)].removeprefix("net.") for p in kept["params"]
    }
    assert len(decayed["params"]) + len(kept["params"]) == len(dense_parameters(module))
    weight, bias = module.net.trunk[0].weight, module.net.trunk[0].bias  # type: ignore[union-attr,index]
    optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    before = weight.detach().clone(), bias.detach().clone()
    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    optimizer.step()
    torch.testing.assert_close(weight, before[0] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(bias, before[1])


def _gloo_threads() -> int:
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            names.append((task / "comm").read_text())
    return sum("gloo" in name for name in names)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_a_second_training_in_the_process_leaves_no_threads_behind(tmp_path: Path) -> None:
    data = small_data()
    counts = []
    for _ in range(2):
        small_trainer(tmp_path, max_epochs=1).fit(small_module(data), data)
        counts.append(_gloo_threads())
    assert counts[0] > 0
    assert counts[0] == counts[1]
