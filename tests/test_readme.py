"""The README's examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from lightning_budget.campaign import Campaign
from lightning_budget.data.users import write_users
from lightning_budget.models.registry import build_model
from lightning_budget.serving import save_program
from lightning_budget.statistics import DataStatistics
from lightning_budget.training.serving_export import to_serving

ROOT = Path(__file__).resolve().parents[1]


def test_examples(tmp_path: Path) -> None:
    campaign = Campaign(train_rows=500, val_rows=10, test_rows=10, users=50)
    table, schema = campaign.partition("train", 0), campaign.schema
    statistics = DataStatistics.from_table(table, schema)
    config = {"name": "tarnet", "embedding_dim": 4}
    net = build_model(config, schema, statistics)
    run = tmp_path / "runs" / "example"
    run.mkdir(parents=True)
    torch.save(
        {
            "hyper_parameters": {"schema": schema.to_dict(), "statistics": statistics.to_dict(), "model": config},
            "state_dict": {f"net.{k}": v for k, v in net.state_dict().items()},
        },
        run / "best.ckpt",
    )
    write_users(table.select(torch.arange(100)), schema, run / "example_users.parquet")
    (run / "export").mkdir()
    save_program(to_serving(net, schema, statistics.to_dict()), run / "export" / "model.pt2")

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    # The allocator and serving have no trainer, and a program not even this library.
    untrained = "lightning=None, hydra=None"
    absent = (f"{untrained}, torchrec=None", untrained, f"{untrained}, torchrec=None, lightning_budget=None")
    for block, names, printed in zip(blocks, absent, ("the gap is", "100 users", "['"), strict=True):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys\nsys.modules.update({names})\n{block}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert printed in done.stdout
