"""Scripts as processes of their own, forked from one that has already imported what they import.

Importing Lightning and TorchRec takes four seconds of processor time, many times more than what most tests run.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

PRELOAD = [
    "datamodules",
    "lightning_budget.allocation.compiled.run",
    "lightning_budget.cli.build",
    "lightning_budget.losses.compiled.softmax_goal",
    "lightning_budget.report",
    "lightning_budget.streaming.job",
    "lightning_budget.training.comparison",
    "lightning_budget.training.strategy",
    "pytest",
]


def context() -> ForkServerContext:
    """How to start processes; all users share one server, whose imports are settled at its start."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(PRELOAD)
    return forkserver


class Forked:
    """A running script, used like a ``subprocess.Popen[str]`` whose standard error goes where its output goes.

    Args:
        command: path of the script and its arguments.
        env: all of its environment; cwd: where it runs, here if not given.
        errors: file for its standard error.
    """

    def __init__(
        self, command: Sequence[str | Path], env: Mapping[str, str], cwd: Path | None = None, errors: Path | None = None
    ) -> None:
        read, write = os.pipe()
        self.stdout: TextIO = os.fdopen(read)
        told = str(errors) if errors else None
        arguments = [str(c) for c in command], dict(env), str(cwd or Path.cwd()), _Descriptor(write), told
        try:
            self._process = context().Process(target=_run, args=arguments)
            self._process.start()
        finally:
            os.close(write)
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Negative for a signal; ``None`` as long as it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("forked script", timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Everything printed until all who could print are gone."""
        texts: list[str] = []
        reader = threading.Thread(target=lambda: texts.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired("forked script", timeout or 0.0)
        self.wait(timeout)
        return texts[0], None

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()
        self.stdout.close()


class _Descriptor:
    """A file descriptor that travels to the process it is an argument of."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (DupFd(self.number),)


def _detach(copy: Any) -> int:
    return copy.detach()


def _run(command: list[str], env: dict[str, str], cwd: str, output: int, errors: str | None) -> None:
    os.setsid()
    # What was imported stays: a collection that looks through it costs a quarter of a second and copies its memory.
    gc.freeze()
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    if errors:
        told = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 2)
        os.close(told)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]
    # A shell that runs tests in the background has interruptions ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = command
    sys.path[:0] = [str(Path(command[0]).resolve().parent), *env.get("PYTHONPATH", "").split(os.pathsep)]
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        # multiprocessing ends its processes without.
        atexit._run_exitfuncs()
