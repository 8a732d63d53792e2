"""What tables that step inside backward cannot do is refused before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import small_data, small_module, small_trainer

from lightning_budget.errors import InputError
from lightning_budget.training.fit_check import check_same_model
from lightning_budget.training.module import BudgetModule


class Greedy(BudgetModule):
    """Hands its tables to Adam as well."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


def test_gradient_accumulation(tmp_path: Path) -> None:
    data = small_data()
    with pytest.raises(InputError, match=r"accumulate_grad_batches=2; allowed: 1, .*fix: raise data.batch_size"):
        small_trainer(tmp_path, accumulate_grad_batches=2).fit(small_module(data), data)


def test_scaled_gradients(tmp_path: Path) -> None:
    data = small_data()
    trainer = small_trainer(tmp_path)
    # As `16-mixed` sets it on a GPU; on CPU it has no scaler to refuse.
    trainer.strategy.precision_plugin.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(InputError, match=r"16-mixed.*fix: set trainer.precision=bf16-mixed"):
        trainer.fit(small_module(data), data)


def test_tables_in_the_dense_optimizer(tmp_path: Path) -> None:
    data = small_data()
    small = small_module(data)
    greedy = Greedy(**dict(small.hparams))
    with pytest.raises(ValueError, match=r"configure_optimizers\(\) took embedding tables too; .*dense_parameters"):
        small_trainer(tmp_path).fit(greedy, data)


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    data = small_data()
    module = small_module(data)
    trainer = small_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    check_same_model(tmp_path / "a.ckpt", small_module(data, lr=1.0))
    wider = small_module(data, model={**module.hparams["model"], "embedding_dim": 8})
    with pytest.raises(InputError, match=r"its model.embedding_dim is 4, this run's 8"):
        check_same_model(tmp_path / "a.ckpt", wider)
    fewer = small_data(users=50)
    with pytest.raises(InputError, match=r"its table 'user_id' has 101 rows, this run's 51; .*fix: slice it: .*resize"):
        check_same_model(tmp_path / "a.ckpt", small_module(fewer))
    arms = small_data(face_values=(0.0, 2.0, 4.0))
    with pytest.raises(InputError, match=r"it has 5 treatments .*, this run 3 .*extend or slice it: .*resize"):
        check_same_model(tmp_path / "a.ckpt", small_module(arms))
    with pytest.raises(InputError, match=r"its embedding_optimizer is 'rowwise_adagrad', this run's 'sgd'"):
        check_same_model(tmp_path / "a.ckpt", small_module(data, embedding_optimizer="sgd"))
    # Whoever does not ask first is told by the strategy.
    with pytest.raises(InputError, match=r"the checkpoint's .*user_id.weight is 101 × 4, the model's 51 × 4"):
        small_trainer(tmp_path).fit(small_module(fewer), fewer, ckpt_path=str(tmp_path / "a.ckpt"))
