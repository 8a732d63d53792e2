from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from lightning_budget import cli
from lightning_budget.cli import folder as folder_module
from lightning_budget.cli.composition import check_command_line
from lightning_budget.errors import InputError
from tests.forked import Forked

ROOT = Path(__file__).resolve().parents[1]


class Colour(Enum):
    red = 1
    blue = 2


@dataclass
class Trainer:
    max_epochs: int = 3
    devices: Any = 1
    limit: float | None = None
    colour: Colour = Colour.red


@dataclass
class Config:
    data: Any = None
    budgets: list[float] = field(default_factory=list)
    ckpt: str = "none"
    ratio: Any = None
    run_dir: str = "runs/now"
    seed: int = 0
    trainer: Trainer = field(default_factory=Trainer)


ConfigStore.instance().store("cli_test_schema", Config)

CONFIG = """\
defaults:
- {schema}
- data: toy
- _self_
- override hydra/job_logging: none
- override hydra/hydra_logging: none
budgets: [1, 2]
seed: 1
run_dir: runs/now
hydra:
  run: {{dir: .}}
  sweep: {{dir: sweep, subdir: .}}
  output_subdir: null
  job: {{chdir: false, name: train}}
"""

APP = """\
import os, sys
from pathlib import Path
from lightning_budget import cli
from lightning_budget.errors import InputError

@cli.main("train", Path(__file__).parent / "configs")
def main(cfg):
    action, _, rest = cfg.get("action", "folder").partition(":")
    if action == "input":
        cli.run_folder(cfg)
        raise InputError("a hole", "none", "fill it")
    if action == "zero":
        1 / 0
    if action == "wait":
        import time
        print("ready", flush=True)
        time.sleep(60)
    # In one piece: ranks share the pipe.
    os.write(1, f"{os.environ.get('RANK', 0)} {cfg.seed} {cli.run_folder(cfg)}\\n".encode())

main()
"""


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A config tree like the real one, with a schema."""
    return _write_configs(tmp_path / "configs", "cli_test_schema")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A script of its own, whose config has no schema but an ``action``."""
    text = _write_configs(tmp_path / "configs", "base") / "base.yaml"
    text.write_text("action: folder\n")
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "work").mkdir()
    return tmp_path / "app.py"


def _write_configs(folder: Path, schema: str) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "train.yaml").write_text(CONFIG.format(schema=schema))
    (folder / "data" / "toy.yaml").write_text("rows: 10\n")
    (folder / "data" / "hillstrom.yaml").write_text("path: null\nrows: 10\n")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "quick.yaml").write_text("# @package _global_\nseed: 7\n")
    return folder


def run(app: Path, *args: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """From the interpreter's start: whatever imports say is heard."""
    return subprocess.run(
        [sys.executable, *launcher, str(app), *args],
        cwd=app.parent / "work",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def start(app: Path, *args: str, **env: str) -> Forked:
    return Forked([app, *args], {**os.environ, "PYTHONPATH": str(ROOT), **env}, app.parent / "work", told_by(app))


def told_by(app: Path) -> Path:
    """Where what a forked script says on standard error goes."""
    return app.with_suffix(".stderr")


def fork(app: Path, *args: str, **env: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    with start(app, *args, **env) as process:
        output = process.communicate(timeout=120)[0]
    return process.wait(), output, told_by(app).read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "trainer.devcies=2",
            "unknown key 'trainer.devcies'; allowed: trainer.max_epochs, trainer.devices, trainer.limit, "
            "trainer.colour; fix: did you mean 'trainer.devices'?",
        ),
        ("dta=hillstrom", "fix: did you mean 'data'?"),
        ("data=hilstrom", "unknown data 'hilstrom'; allowed: hillstrom, toy; fix: did you mean 'data=hillstrom'?"),
        ("data.pth=x", "unknown key 'data.pth'; allowed: data.rows; fix: choose one of those allowed"),
        ("max_epochs=4", "fix: did you mean 'trainer.max_epochs'?"),
        ("trainer.max_epochs=abc", "value 'abc' for 'trainer.max_epochs'; allowed: a whole number;"),
        ("trainer.limit=abc", "value 'abc' for 'trainer.limit'; allowed: a number or null;"),
        ("trainer.colour=green", "value 'green' for 'trainer.colour'; allowed: red, blue;"),
        ("trainer=5", "value '5' for 'trainer'; allowed: keys of its own"),
        ("seed=null", "value 'null' for 'seed'; allowed: a whole number;"),
        ("seed=1,2", "'seed=1,2' lists several values; allowed: one value; fix: add -m"),
        ("seed.x=1", "unknown key 'seed.x'; allowed: 'seed' is a single value;"),
        ("budgets.5=1", "unknown entry 'budgets.5'; allowed: 0 to 1;"),
        ("+trainer.devices=2", "fix: try 'trainer.devices=2'"),
        ("experiment=quick", "fix: write +experiment=quick"),
        ("hydra.run.dirr=x", "fix: did you mean 'hydra.run.dir'?"),
        ("trainer.max_epochs", "cannot read 'trainer.max_epochs'"),
        ("budgets=[1", "cannot read 'budgets=[1'"),
        ("ckpt=???", "no value for ckpt; allowed: a value for each; fix: add ckpt=<value>"),
        ("ratio=${nowhere}", "ratio refers to what is not there"),
        ("--config-name=trian", "fix: did you mean '--config-name=train'?"),
    ],
)
def test_one_line_for_each_mistake(configs: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str) -> None:
    # A good override before and after, so that the bad one has to be found.
    monkeypatch.setattr(sys, "argv", ["app", "seed=3", override, "trainer.limit=0.5"])
    if override.startswith("--"):
        monkeypatch.setattr(sys, "argv", ["app", override])
    with pytest.raises(InputError) as caught:
        check_command_line(configs, "train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_beside_configs_from_elsewhere(
    configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere" / "data").mkdir(parents=True)
    (tmp_path / "elsewhere" / "data" / "mine.yaml").write_text("rows: 3\n")
    search = f"hydra.searchpath=[{tmp_path / 'elsewhere'}]"
    monkeypatch.setattr(sys, "argv", ["app", "data=mine", "trainer.devcies=2", search])
    with pytest.raises(InputError, match=r"did you mean 'trainer\.devices'"):
        check_command_line(configs, "train")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["data.path=x", "data=hillstrom"],
        ["+experiment=quick", "++trainer.max_epochs=5", "~data.rows"],
        ["budgets=[3,4]", "hydra.run.dir=x", "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"],
        ["-m", "seed=1,2", "data=toy,hillstrom", "trainer.max_epochs=range(1,4)", "trainer.limit=interval(0,1)"],
        ["--cfg", "job", "ckpt=???"],
        ["--help", "nonsense=1"],
    ],
)
def test_good_command_lines_pass(configs: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["app", *args])
    check_command_line(configs, "train")


def test_every_value_of_a_sweep_is_tried(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["app", "-m", "data=toy,hillstrom,hilstrom", "seed=1,2"])
    with pytest.raises(InputError, match="unknown data 'hilstrom'"):
        check_command_line(configs, "train")


def test_broken_config_file_is_named(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (configs / "train.yaml").write_text("defaults:\n- cli_test_schema\n- _self_\nsede: 1\n")
    monkeypatch.setattr(sys, "argv", ["app", "seed=3"])
    with pytest.raises(InputError, match=r"config 'train' does not compose: .*sede"):
        check_command_line(configs, "train")


def test_config_dir_is_that_of_the_checkout() -> None:
    assert cli.config_dir() == ROOT / "configs"


def test_exit_codes(app: Path) -> None:
    good = run(app, "seed=4")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.split() == ["0", "4", str(app.parent / "work" / "runs" / "now")]

    code, output, error = fork(app, "sede=4")
    assert (code, output) == (2, "")
    assert error.startswith("error: unknown key 'sede'; allowed: action, ")
    assert error.count("\n") == 1

    code, _, error = fork(app, "action=zero")
    assert code == 1
    assert "1 / 0" in error
    assert "ZeroDivisionError" in error


def test_input_error_of_the_task_leaves_nothing(app: Path) -> None:
    assert fork(app, "action=input") == (2, "", "error: a hole; allowed: none; fix: fill it\n")
    assert list((app.parent / "work").iterdir()) == []

    code, _, error = fork(app, "action=input", LIGHTNING_BUDGET_TRACEBACK="1")
    assert code == 2
    assert 'raise InputError("a hole"' in error


def test_interrupt(app: Path) -> None:
    with start(app, "action=wait") as process:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 130
    assert told_by(app).read_text() == "interrupted\n"


def test_sweep_has_one_folder_per_job(app: Path) -> None:
    code, output, error = fork(app, "-m", "seed=1,2,3")
    assert (code, error) == (0, "")
    runs = app.parent / "work" / "runs"
    lines = [line.split() for line in output.splitlines()]
    assert lines == [["0", "1", f"{runs}/now"], ["0", "2", f"{runs}/now-1"], ["0", "3", f"{runs}/now-2"]]
    assert OmegaConf.load(runs / "now-1" / "config.yaml").seed == 2  # pyright: ignore


def test_torchrun_processes_agree(app: Path) -> None:
    (app.parent / "work" / "runs" / "now").mkdir(parents=True)
    (app.parent / "work" / "runs" / "now" / "best.ckpt").touch()
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = run(app, launcher=launcher)
    assert done.returncode == 0, done.stderr
    folder = f"{app.parent}/work/runs/now-1"
    assert sorted(done.stdout.splitlines()) == [f"0 1 {folder}", f"1 1 {folder}"]
    assert [p.name for p in Path(folder).iterdir()] == ["config.yaml"]


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(folder_module, "_claims", [])
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_fresh")
class TestRunFolder:
    def test_occupied_folder_is_left_alone(self, tmp_path: Path) -> None:
        cfg = OmegaConf.create({"run_dir": "runs/a"})
        assert cli.run_folder(cfg) == tmp_path / "runs" / "a"
        assert cli.run_folder(cfg) == tmp_path / "runs" / "a-1"
        assert cli.run_folder(cfg) == tmp_path / "runs" / "a-2"

    def test_empty_folder_is_used(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        assert cli.run_folder(OmegaConf.create({"run_dir": "mine"})) == tmp_path / "mine"

    def test_resuming_keeps_folder_and_record(self, tmp_path: Path) -> None:
        cli.run_folder(OmegaConf.create({"run_dir": "a", "seed": 1}))
        again = OmegaConf.create({"run_dir": "a", "seed": 2, "ckpt_path": "a/last.ckpt"})
        assert cli.run_folder(again) == tmp_path / "a"
        assert (tmp_path / "a" / "config.yaml").read_text() == "run_dir: a\nseed: 1\n"

    @pytest.mark.parametrize("where", ["file", "file/below", "file/far/below"])
    def test_a_file_in_the_way_is_refused(self, tmp_path: Path, where: str) -> None:
        (tmp_path / "file").write_text("precious")
        with pytest.raises(InputError, match=r"run folder .*file.*; fix: give run_dir="):
            cli.run_folder(OmegaConf.create({"run_dir": where}))
        assert (tmp_path / "file").read_text() == "precious"

    @pytest.mark.skipif(not Path("/proc/1").is_dir(), reason="needs a folder that even root cannot write")
    def test_a_folder_nobody_can_write_is_refused(self) -> None:
        with pytest.raises(InputError, match="a folder that can be written"):
            cli.run_folder(OmegaConf.create({"run_dir": "/proc/1/runs"}))

    def test_children_of_lightning_inherit_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = cli.run_folder(OmegaConf.create({"run_dir": "a"}))
        # A child process: nothing claimed there, another second on the clock.
        monkeypatch.setattr(folder_module, "_claims", [])
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert cli.run_folder(OmegaConf.create({"run_dir": "b"})) == made
        assert not (tmp_path / "b").exists()

    def test_processes_that_cannot_agree_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_PROCID", "1")
        with pytest.raises(InputError, match="set LIGHTNING_BUDGET_RUN_DIR"):
            cli.run_folder(OmegaConf.create({"run_dir": "a"}))

    def test_discard_spares_results_and_old_folders(self, tmp_path: Path) -> None:
        (tmp_path / "old").mkdir()
        cli.run_folder(OmegaConf.create({"run_dir": "old/new/run"}))
        folder_module.discard_unused()
        assert list((tmp_path / "old").iterdir()) == []

        folder = cli.run_folder(OmegaConf.create({"run_dir": "old/new/run"}))
        (folder / "best.ckpt").touch()
        folder_module.discard_unused()
        assert (folder / "best.ckpt").exists()
        assert (folder / "config.yaml").exists()
