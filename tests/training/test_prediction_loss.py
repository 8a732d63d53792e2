"""Every loss trains by the Trainer, needs what it needs, and refuses what it cannot train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from training_runs import EpochCheckpoints, small_data, small_module, small_trainer

from datamodules import CampaignDataModule
from lightning_budget.errors import InputError
from lightning_budget.estimators import Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer
from lightning_budget.losses.choice import LOSSES, PAIRS, LossChoice
from lightning_budget.losses.cross_fitting import cross_fit
from lightning_budget.training.callbacks import BudgetObjective
from lightning_budget.training.export import load_model, read_checkpoint
from lightning_budget.training.module import FIRST_STEP, BudgetModule
from lightning_budget.training.objective.schedule import Schedule

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def data() -> CampaignDataModule:
    return small_data()


def module_of(data: CampaignDataModule, loss: str | None, **changes: Any) -> BudgetModule:
    model = {"name": "tarnet", "embedding_dim": 4, "dense_hidden": [8], "trunk_hidden": [8], "head_hidden": 4}
    if loss in PAIRS:
        model |= {"name": "direct_ranking", "pairs": PAIRS[loss]}
    choice = None if loss is None else {"name": loss}
    return small_module(data, **{"model": model, "loss": choice, **changes})


@pytest.fixture(scope="module")
def runs(data: CampaignDataModule, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Folder of each loss's checkpoints, and what was logged last."""
    found = {}
    for loss in LOSSES:
        folder = tmp_path_factory.mktemp(loss)
        trainer = small_trainer(folder, [EpochCheckpoints(folder)], num_sanity_val_steps=1)
        trainer.fit(module_of(data, loss), data)
        found[loss] = folder, dict(trainer.callback_metrics)
    return found


@pytest.mark.parametrize("loss", LOSSES)
def test_it_trains_and_its_checkpoint_scores(
    runs: dict[str, tuple[Path, dict[str, Any]]], data: CampaignDataModule, loss: str
) -> None:
    folder, logged = runs[loss]
    assert torch.isfinite(logged["train/prediction_loss_epoch"])
    assert torch.isfinite(logged["val/prediction_loss"])
    checkpoint = read_checkpoint(folder / "1.ckpt")
    assert (FIRST_STEP in checkpoint) == (loss in ("dr", "x"))
    assert checkpoint["hyper_parameters"]["loss"] == {"name": loss}
    batch = data.val.batch(torch.arange(50))
    with torch.no_grad():
        prediction = load_model(folder / "1.ckpt")(batch.dense, batch.sparse)
    effect = prediction.value - prediction.value[:, :1]
    assert effect[:, 1:].std(0).min() > 0
    assert prediction.cost.isfinite().all()


def test_losses_differ(runs: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    found = [float(logged["train/prediction_loss_epoch"]) for _, logged in runs.values()]
    assert len(set(found)) == len(LOSSES)


def test_a_checkpoint_that_names_no_loss_is_a_factual_one(data: CampaignDataModule) -> None:
    one, other = module_of(data, None), module_of(data, "factual")
    assert one.prediction_loss.choice == other.prediction_loss.choice == LossChoice()
    for module in (one, other):
        module.configure_model()
    batch = data.train.batch(torch.arange(64))
    losses = [module.prediction_losses(batch, module(batch)) for module in (one, other)]  # type: ignore[arg-type]
    assert torch.equal(*losses)


def test_a_resumed_two_step_fit_goes_on_from_the_same_first_step(
    runs: dict[str, tuple[Path, dict[str, Any]]], data: CampaignDataModule, tmp_path: Path
) -> None:
    folder, _ = runs["dr"]
    module = module_of(data, "dr")
    small_trainer(tmp_path, [EpochCheckpoints(tmp_path)]).fit(module, data, ckpt_path=str(folder / "0.ckpt"))
    expected, found = (read_checkpoint(f / "1.ckpt") for f in (folder, tmp_path))
    for key in ("state_dict", FIRST_STEP):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0, equal_nan=True)
    fitted = cross_fit(data.train, data.schema, data.statistics)
    assert torch.equal(found[FIRST_STEP]["coefficient"], fitted.coefficient)
    batch, zero = data.train.batch(torch.arange(64)), torch.zeros_like(fitted.coefficient)
    with torch.no_grad():
        prediction = module(batch)
        before = module.prediction_losses(batch, prediction)  # type: ignore[arg-type]
        module.prediction_loss.load_state_dict({**found[FIRST_STEP], "coefficient": zero})
        module.prediction_loss.prepare(data, torch.device("cpu"))
        after = module.prediction_losses(batch, prediction)  # type: ignore[arg-type]
    assert not torch.allclose(before, after)


def test_where_a_row_stood_in_the_training_split_matters_in_training_alone(data: CampaignDataModule) -> None:
    module = module_of(data, "x")
    module.configure_model()
    module.prediction_loss.prepare(data, torch.device("cpu"))
    batch = data.train.batch(torch.arange(64))
    moved = replace(batch, row=batch.row.flip(0))
    with torch.no_grad():
        prediction = module(batch)
        for mode in (True, False):
            module.train(mode)
            pair = [module.prediction_losses(b, prediction) for b in (batch, moved)]  # type: ignore[arg-type]
            assert torch.equal(*pair) != mode


@pytest.mark.parametrize(
    ("loss", "model", "objective", "word"),
    [
        ("drp", {"name": "tarnet"}, False, "add model=direct_ranking model.pairs=control"),
        ("dpm", {"name": "direct_ranking"}, False, "model.pairs=adjacent"),
        ("factual", {"name": "direct_ranking"}, False, "loss=drp or drm"),
        ("dr", {"name": "tarnet", "value_head": "ziln"}, False, "model.value_head=plain"),
        ("drm", {"name": "direct_ranking"}, True, "add objective=none"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    data: CampaignDataModule, tmp_path: Path, loss: str, model: dict[str, Any], objective: bool, word: str
) -> None:
    callbacks = [BudgetObjective(BudgetRegularizer(Softmax()))] if objective else []
    with pytest.raises(InputError, match=word):
        small_trainer(tmp_path, callbacks).fit(module_of(data, loss, model=model), data)


def test_a_two_step_fit_of_more_than_memory_holds_is_refused(
    data: CampaignDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "train_is_sample", True, raising=False)
    with pytest.raises(InputError, match="loss=x with 1,024 rows in memory"):
        small_trainer(tmp_path).fit(module_of(data, "x"), data)


def test_a_ratio_of_one_batch_is_refused_over_several_processes(
    data: CampaignDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(InputError, match="loss=drm over 2 processes"):
        module_of(data, "drm").prediction_loss.prepare(data, torch.device("cpu"))
    module_of(data, "drp").prediction_loss.prepare(data, torch.device("cpu"))


def test_a_two_step_fit_trains_beside_the_marketing_goal(data: CampaignDataModule, tmp_path: Path) -> None:
    goal = BudgetObjective(BudgetRegularizer(Softmax()), schedule=Schedule(warm_start_epochs=0))
    trainer = small_trainer(tmp_path, [goal], max_epochs=1, log_every_n_steps=1)
    trainer.fit(module_of(data, "dr"), data)
    assert torch.isfinite(trainer.callback_metrics["train/goal_epoch"])
    assert trainer.callback_metrics["objective/gradient_prediction"] > 0


@pytest.mark.parametrize("bad", [{"name": "dm"}, {"name": "dr", "folds": 1}, {"ridge": -1.0}, {"fold": 5}])
def test_other_losses_and_numbers_are_refused(data: CampaignDataModule, bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"dm|folds|ridge|fold"):
        small_module(data, loss=bad)


def test_every_loss_has_a_config_that_builds_it() -> None:
    configs = {path.stem: OmegaConf.load(path) for path in (CONFIGS / "loss").glob("*.yaml")}
    assert configs.keys() == set(LOSSES)
    for name, config in configs.items():
        plain: Any = OmegaConf.to_container(config)
        assert LossChoice.of(plain) == LossChoice(name)
