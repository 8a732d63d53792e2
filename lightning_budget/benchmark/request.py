"""From the composed config of the command line to a suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lightning_budget.benchmark.search import check
from lightning_budget.benchmark.suite import DataSet, Suite
from lightning_budget.errors import InputError

FIRST = ("two_stage", "default")
"""Methods that head the table, where they are asked for."""
INSTALL = "pip install 'lightning-budget[classical]'"
"""What brings the libraries that some methods need."""


def suite_of(config: Mapping[str, Any], methods: Sequence[str], absent: Mapping[str, str] | None = None) -> Suite:
    """What to run.

    Args:
        config: of ``configs/benchmark.yaml``, in plain containers.
        methods: all that there are.
        absent: those among them that cannot run here, with the library that each needs: no part of all of them.

    Raises:
        InputError: for a name that there is not or that cannot run here, or numbers out of range.
    """
    absent = absent or {}
    presets, catalogue = config["presets"], config["catalogue"]
    preset = presets[_known(config["preset"], presets, "preset")]
    quick = config["preset"] == "quick"
    wanted = config["methods"] or preset.get("methods") or _ordered([m for m in methods if m not in absent])
    named = config["datasets"] or preset.get("datasets") or list(catalogue)
    seeds = preset["seeds"] if config["seeds"] is None else config["seeds"]
    own_seeds = config["seeds"] is None and not quick
    trials = preset["trials"] if config["trials"] is None else config["trials"]
    _check_seeds(seeds, "seeds")
    for key, number, least in (("trials", trials, 1), ("resamples", config["resamples"], 1)):
        if number < least:
            raise InputError(f"{key}={number}", f"at least {least}", f"{key}={least}")
    for key, names, known in (("methods", wanted, methods), ("datasets", named, list(catalogue))):
        for name in names:
            _known(name, known, key)
        if len(set(names)) < len(names):
            raise InputError(f"{key}={names}", "each once", "remove the repeated one")
    for name in wanted:
        if name in absent:
            raise InputError(f"methods={name} without {absent[name]}", f"{absent[name]} installed", INSTALL)
    check(config["search"] or {})
    return Suite(
        folder=Path(config["folder"]).expanduser().absolute(),
        data_root=Path(config["data_root"]).expanduser().absolute(),
        datasets={name: data_set(name, catalogue[name], quick, own_seeds) for name in named},
        methods=tuple(wanted),
        seeds=tuple(seeds),
        trials=trials,
        overrides=(*preset.get("overrides", ()), *config["overrides"]),
        search=config["search"] or {},
        resamples=config["resamples"],
    )


def data_set(name: str, entry: Mapping[str, Any], quick: bool, own_seeds: bool = True) -> DataSet:
    """One entry of the catalogue; ``quick`` makes it tiny, and without ``own_seeds`` it has those of the suite."""
    keys = {"about", "overrides", "quick", "quick_rows", "file", "prepare", "generate", "seeds"}
    if extra := sorted(set(entry) - keys):
        raise InputError(f"catalogue.{name}.{extra[0]}", ", ".join(sorted(keys)), "leave it out")
    seeds = entry.get("seeds") if own_seeds else None
    if seeds is not None:
        _check_seeds(seeds, f"catalogue.{name}.seeds")
    generate = entry.get("generate")
    if quick and generate is not None:
        generate = {**generate, "rows": entry["quick_rows"]}
    return DataSet(
        name,
        (*entry["overrides"], *(entry.get("quick", ()) if quick else ())),
        entry.get("about", ""),
        entry.get("file"),
        entry.get("prepare"),
        generate,
        None if seeds is None else tuple(seeds),
    )


def _check_seeds(seeds: Any, key: str) -> None:
    numbers = isinstance(seeds, list) and all(isinstance(s, int) for s in seeds)
    if not numbers or not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"{key}={seeds}", "at least one, each once and at least 0", f"{key}=[0,1,2,3,4]")


def _ordered(methods: Sequence[str]) -> list[str]:
    return [*(m for m in FIRST if m in methods), *(m for m in methods if m not in FIRST)]


def _known(name: str, known: Sequence[str] | Mapping[str, Any], key: str) -> str:
    if name not in known:
        close = get_close_matches(name, known, n=1)
        raise InputError(f"{key}={name}", ", ".join(known), f"{key}={close[0]}" if close else "name one of them")
    return name
